//! What is in the images: snapshots and clones of mounted file systems hold what was written, mount beside their source,
//! and stay as they were.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // The helpers below are no test functions.

use conformance::scratch::ScratchPool;
use host::{Effects, Host, LinuxHost, LoopDevice, LoopRequest, MountRequest, Probe};
use pool::{Pool, PoolConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use volume::{
    Backend, BackendName, FsType, LockTable, Parameters, SizeRange, SnapshotId, Snapshots, TopologyRequirement, Volume,
    VolumeGuard, VolumeId, VolumeKind, VolumeName, VolumeSource, VolumeSpec,
};

const MIB: u64 = 1 << 20;

/// A volume's image on a loop device, mounted. Dropped, both go.
struct Mounted {
    host: Arc<LinuxHost>,
    device: LoopDevice,
    target: PathBuf,
}

struct Bench {
    host: Arc<LinuxHost>,
    pool: Pool,
    mounts: tempfile::TempDir,
    /// Last: the others are on it.
    scratch: ScratchPool,
}

#[test]
fn copies_of_a_mounted_file_system_on_xfs() {
    copies_of_mounted("copies_of_a_mounted_file_system_on_xfs", FsType::Xfs);
}

#[test]
fn copies_of_a_mounted_file_system_on_btrfs() {
    copies_of_mounted("copies_of_a_mounted_file_system_on_btrfs", FsType::Btrfs);
}

#[test]
fn copies_of_a_mounted_file_system_on_ext4() {
    copies_of_mounted("copies_of_a_mounted_file_system_on_ext4", FsType::Ext4);
}

fn copies_of_mounted(test: &str, below: FsType) {
    let Some(bench) = Bench::new(test, below) else { return };
    for fs in FsType::ALL {
        let volume = bench.create(&format!("{fs}"), VolumeKind::FileSystem(fs), None, 1);
        let source = bench.mount(&volume, fs);
        // Nothing is synced here: the freeze writes it out.
        write(&source, "first", b"written before the snapshot");
        let snapshot = bench.snapshot(&format!("{fs}-s"), &volume);
        write(&source, "second", b"written after the snapshot");
        let clone = bench.create(&format!("{fs}-clone"), volume.kind, Some(VolumeSource::Volume(volume.id.clone())), 0);
        std::fs::remove_file(source.target.join("first")).unwrap();

        let from_snapshot = Some(VolumeSource::Snapshot(snapshot));
        let size = volume.size_bytes + 256 * MIB;
        let restored = bench.create(&format!("{fs}-restored"), volume.kind, from_snapshot.clone(), size);
        let clone = bench.mount(&clone, fs);
        assert_eq!(read(&clone, "first").as_deref(), Some(&b"written before the snapshot"[..]), "{fs}");
        assert_eq!(read(&clone, "second").as_deref(), Some(&b"written after the snapshot"[..]), "{fs}");
        let mounted = bench.mount(&restored, fs);
        assert_eq!(read(&mounted, "first").as_deref(), Some(&b"written before the snapshot"[..]), "{fs}");
        assert_eq!(read(&mounted, "second"), None, "{fs}");
        assert_eq!(bench.host.device_size(&mounted.device.path).unwrap(), size);
        // What is written to the copies stays with them.
        write(&mounted, "third", b"of the copy");
        drop(mounted);
        assert_eq!(read(&source, "third"), None);
        // A second restore is what the first was.
        let again = bench.create(&format!("{fs}-again"), volume.kind, from_snapshot, 0);
        let again = bench.mount(&again, fs);
        assert_eq!((read(&again, "first").is_some(), read(&again, "third")), (true, None), "{fs}");
    }
}

/// Three nodes of one machine: each new file system has a UUID of its own, whatever template it came from.
#[test]
fn new_volumes_are_mounted_beside_each_other() {
    let Some(bench) = Bench::new("new_volumes_are_mounted_beside_each_other", FsType::Xfs) else { return };
    for fs in FsType::ALL {
        let volumes = [0, 1, 2].map(|n| bench.create(&format!("{fs}-{n}"), VolumeKind::FileSystem(fs), None, 1));
        let mut uuids: Vec<[u8; 16]> = Vec::new();
        let mounted: Vec<Mounted> = volumes.iter().map(|volume| bench.mount(volume, fs)).collect();
        for (n, volume) in volumes.iter().enumerate() {
            write(&mounted[n], "name", volume.name.as_str().as_bytes());
            match bench.host.probe(&bench.image(volume)).unwrap() {
                Probe::FileSystem { fs: found, uuid, .. } if found == fs => uuids.push(uuid),
                other => panic!("{other:?}"),
            }
        }
        for (n, volume) in volumes.iter().enumerate() {
            assert_eq!(read(&mounted[n], "name").unwrap(), volume.name.as_str().as_bytes());
        }
        uuids.sort_unstable();
        uuids.dedup();
        assert_eq!(uuids.len(), 3, "{fs}");
    }
}

#[test]
fn thick_volumes_have_their_blocks_and_their_file_system() {
    let test = "thick_volumes_have_their_blocks_and_their_file_system";
    for below in [FsType::Xfs, FsType::Ext4] {
        let Some(bench) = Bench::new(test, below) else { return };
        let parameters = Parameters { thick: true, ..Parameters::default() };
        let spec =
            VolumeSpec { parameters, ..bench.spec("thick", VolumeKind::FileSystem(FsType::Ext4), None, 64 * MIB) };
        let volume = bench.pool.ensure_volume(&bench.lock(&spec), &spec).unwrap();
        use std::os::unix::fs::MetadataExt;
        let allocated = std::fs::metadata(bench.image(&volume)).unwrap().blocks() * 512;
        assert!(allocated >= 64 * MIB, "{allocated} of {}", 64 * MIB);
        let mounted = bench.mount(&volume, FsType::Ext4);
        write(&mounted, "file", &vec![7; 8 << 20]);
        assert_eq!(read(&mounted, "file").unwrap().len(), 8 << 20);
    }
}

/// What is on a raw device is in its copies, to the last block.
#[test]
fn raw_block_is_copied_whole() {
    use std::os::unix::fs::FileExt;
    let Some(bench) = Bench::new("raw_block_is_copied_whole", FsType::Xfs) else { return };
    let volume = bench.create("raw", VolumeKind::Block, None, 32 * MIB);
    let write = |byte: u8| {
        let image = std::fs::OpenOptions::new().write(true).open(bench.image(&volume)).unwrap();
        image.write_all_at(&[byte; 4096], 0).unwrap();
        image.write_all_at(&[byte; 4096], 32 * MIB - 4096).unwrap();
    };
    write(1);
    let snapshot = bench.snapshot("raw-s", &volume);
    write(2);
    let restored = bench.create("restored", VolumeKind::Block, Some(VolumeSource::Snapshot(snapshot)), 64 * MIB);
    let clone = bench.create("clone", VolumeKind::Block, Some(VolumeSource::Volume(volume.id.clone())), 0);
    for (copy, byte, size) in [(restored, 1, 64 * MIB), (clone, 2, 32 * MIB)] {
        let bytes = std::fs::read(bench.image(&copy)).unwrap();
        assert_eq!(bytes.len() as u64, size);
        assert!(bytes[..4096].iter().all(|&b| b == byte));
        assert!(bytes[32 << 20..].iter().all(|&b| b == 0), "what is beyond the source is zeros");
        assert!(bytes[(32 << 20) - 4096..32 << 20].iter().all(|&b| b == byte));
    }
}

impl Bench {
    fn new(test: &str, below: FsType) -> Option<Self> {
        let scratch = match ScratchPool::new(below, 8 << 30) {
            Ok(scratch) => scratch,
            Err(reason) => {
                println!("SKIPPED: {test}: {reason}");
                return None;
            }
        };
        let host = Arc::new(LinuxHost::new(Effects::default()));
        let config = PoolConfig::new(BackendName::parse("pool").unwrap(), scratch.path());
        let pool = Pool::open(config, host.clone(), Effects::default()).unwrap();
        Some(Self { scratch, host, pool, mounts: tempfile::tempdir().unwrap() })
    }

    fn spec(&self, name: &str, kind: VolumeKind, source: Option<VolumeSource>, size: u64) -> VolumeSpec {
        let name = VolumeName::parse(name).unwrap();
        VolumeSpec {
            id: VolumeId::of_name(self.pool.name(), &name),
            name,
            size: SizeRange { required_bytes: (size > 0).then_some(size), limit_bytes: None },
            kind,
            source,
            parameters: Parameters::default(),
            mutable: Default::default(),
            topology: TopologyRequirement::default(),
        }
    }

    fn create(&self, name: &str, kind: VolumeKind, source: Option<VolumeSource>, size: u64) -> Volume {
        let spec = self.spec(name, kind, source, size);
        self.pool.ensure_volume(&self.lock(&spec), &spec).unwrap_or_else(|e| panic!("{name}: {}", e.chain()))
    }

    fn snapshot(&self, name: &str, volume: &Volume) -> SnapshotId {
        let name = VolumeName::parse(name).unwrap();
        let id = SnapshotId::of_name(self.pool.name(), &name);
        let guard = LockTable::default().try_lock([id.as_str(), volume.id.as_str()]).unwrap();
        self.pool.ensure_snapshot(&guard, &id, &name, &volume.id).unwrap_or_else(|e| panic!("{}", e.chain())).id
    }

    fn lock(&self, spec: &VolumeSpec) -> VolumeGuard {
        let source = match &spec.source {
            Some(VolumeSource::Volume(id)) => Some(id.as_str()),
            Some(VolumeSource::Snapshot(id)) => Some(id.as_str()),
            None => None,
        };
        LockTable::default().try_lock([spec.id.as_str()].into_iter().chain(source)).unwrap()
    }

    fn image(&self, volume: &Volume) -> PathBuf {
        self.scratch.path().join("volumes").join(volume.id.as_str()).join("image.0000000000000000")
    }

    fn mount(&self, volume: &Volume, fs: FsType) -> Mounted {
        let image = self.image(volume);
        let identity = self.host.image_identity(&image).unwrap();
        let request = LoopRequest { image: &image, identity: &identity, label: "test", read_only: false };
        let device = self.host.attach_loop(&request).unwrap();
        let target = self.mounts.path().join(volume.id.as_str());
        let mounted = Mounted { host: self.host.clone(), device, target };
        std::fs::create_dir_all(&mounted.target).unwrap();
        self.host
            .mount(&MountRequest {
                device: &mounted.device.path,
                number: mounted.device.number,
                fs,
                target: &mounted.target,
                read_only: false,
                flags: &[],
            })
            .unwrap_or_else(|e| panic!("mounting {}: {}", volume.name, e.chain()));
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..100 {
            if self.host.unmount(&self.target).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = self.host.detach_loop(&self.device);
    }
}

fn write(mounted: &Mounted, name: &str, bytes: &[u8]) {
    std::fs::write(mounted.target.join(name), bytes).unwrap();
}

fn read(mounted: &Mounted, name: &str) -> Option<Vec<u8>> {
    let path: &Path = &mounted.target.join(name);
    path.exists().then(|| std::fs::read(path).unwrap())
}
