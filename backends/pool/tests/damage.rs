//! Pools that are damaged, full, foreign, or gone: what is refused and how it is said, and that nothing else suffers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // The helpers below are no test functions.

use conformance::backend::refused;
use conformance::scratch::ScratchPool;
use host::command::{Command, run};
use host::{Effects, Host, LinuxHost, LoopRequest};
use pool::{Pool, PoolConfig, Scope};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use volume::{
    AttachRequest, Backend, BackendName, ConnectRequest, Connector, ErrorKind, FenceHow, FsType, Incarnation,
    LockTable, Modify, MutableChange, NodeId, NodeIdentity, PageRequest, Parameters, Result, SizeRange, SnapshotId,
    Snapshots, TopologyRequirement, Volume, VolumeGuard, VolumeId, VolumeKind, VolumeName, VolumeSource, VolumeSpec,
};

const SIZE: u64 = 64 << 20;

/// A pool on whatever the temporary directory is on, with two volumes.
struct Bench {
    directory: TempDir,
    path: PathBuf,
    pool: Pool,
    victim: Volume,
    other: Volume,
}

#[test]
fn a_directory_that_holds_something_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.txt"), "years of work").unwrap();
    let message = refused(try_open(directory.path()).map(drop), ErrorKind::FailedPrecondition);
    assert!(message.contains("thesis.txt"), "{message}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing was made in it");
    // A fresh ext4 is not empty, but nobody's.
    fs::remove_file(directory.path().join("thesis.txt")).unwrap();
    fs::create_dir(directory.path().join("lost+found")).unwrap();
    try_open(directory.path()).unwrap();
}

#[test]
fn a_missing_directory_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let pool = try_open(&directory.path().join("a/b/c")).unwrap();
    pool.check().unwrap();
}

#[test]
fn a_pool_belongs_to_its_node_and_keeps_its_scope() {
    let directory = tempfile::tempdir().unwrap();
    let local = |node: &str| PoolConfig {
        scope: Scope::Local,
        node: Some(NodeId::parse(node).unwrap()),
        ..config(directory.path())
    };
    let pool = open_with(local("n1")).unwrap();
    let own = Backend::topology(&pool).unwrap();
    assert_eq!(own[0].0.get("csi.hawser.dev/node").map(String::as_str), Some("n1"));
    open_with(local("n1")).unwrap();
    let message = refused(open_with(local("n2")).map(drop), ErrorKind::FailedPrecondition);
    assert!(message.contains("n1") && message.contains("n2"), "{message}");
    refused(open_with(config(directory.path())).map(drop), ErrorKind::FailedPrecondition);
    let nobodys = PoolConfig { scope: Scope::Local, ..config(directory.path()) };
    refused(open_with(nobodys).map(drop), ErrorKind::InvalidArgument);
}

#[test]
fn the_pools_file_is_versioned_and_survives_its_loss() {
    let bench = Bench::new();
    let file = bench.path().join("pool.json");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, whole.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let message = refused(try_open(bench.path()).map(drop), ErrorKind::Unsupported);
    assert!(message.contains("newer"), "{message}");
    fs::write(&file, "{").unwrap();
    refused(try_open(bench.path()).map(drop), ErrorKind::Corrupt);
    refused(bench.pool.check(), ErrorKind::Unavailable);
    fs::remove_file(&file).unwrap();
    let again = try_open(bench.path()).unwrap();
    assert_eq!(Backend::topology(&again).unwrap(), Backend::topology(&bench.pool).unwrap(), "it has the same UUID");
    assert_eq!(fs::read_to_string(&file).unwrap(), whole);
}

#[test]
fn a_damaged_record_is_shown_and_hides_no_other() {
    let bench = Bench::new();
    let record = bench.record(&bench.victim);
    let mut bytes = fs::read(&record).unwrap();
    bytes[100] ^= 1;
    fs::write(&record, bytes).unwrap();
    let problem = bench.problem();
    assert!(problem.contains("damaged") && problem.contains("hawser volume rebuild"), "{problem}");
    bench.other_is_well();
    refused(bench.pool.ensure_volume(&lock(&bench.victim.id), &spec(&bench.pool, "victim")), ErrorKind::Corrupt);
    refused(bench.pool.delete_volume(&lock(&bench.victim.id), &bench.victim.id), ErrorKind::Corrupt);
    // Opening the pool repairs nothing by itself: the record might name a holder.
    let again = try_open(bench.path()).unwrap();
    assert!(again.find_volume(&bench.victim.id).unwrap().unwrap().problem.is_some());
    again.rebuild_volume(&lock(&bench.victim.id), &bench.victim.id).unwrap();
    bench.assert_rebuilt(&again);
}

#[test]
fn a_record_of_a_newer_driver_is_left_alone() {
    let bench = Bench::new();
    rewrite(&bench.record(&bench.victim), |written| written["format"] = 7.into());
    let problem = bench.problem();
    assert!(problem.contains("newer"), "{problem}");
    bench.other_is_well();
    refused(bench.pool.delete_volume(&lock(&bench.victim.id), &bench.victim.id), ErrorKind::Unsupported);
    refused(bench.pool.rebuild_volume(&lock(&bench.victim.id), &bench.victim.id), ErrorKind::Unsupported);
    assert!(bench.problem().contains("newer"), "a rebuild does not replace it");
}

/// Format 1 had no mutable parameters.
#[test]
fn a_record_of_format_1_is_read_and_changed() {
    let bench = Bench::new();
    rewrite(&bench.record(&bench.victim), |written| {
        written["format"] = 1.into();
        assert!(written["record"].as_object_mut().unwrap().remove("mutable").is_some());
    });
    assert_eq!(bench.pool.find_volume(&bench.victim.id).unwrap().as_ref(), Some(&bench.victim));
    let change = MutableChange::parse([("readAheadKiB", "256")]).unwrap();
    Modify::modify(&bench.pool, &lock(&bench.victim.id), &bench.victim.id, &change).unwrap();
    let found = bench.pool.find_volume(&bench.victim.id).unwrap().unwrap();
    assert_eq!(found.mutable.read_ahead_kib, Some(256));
}

#[test]
fn a_record_that_could_not_be_read_again_is_not_written() {
    let bench = Bench::new();
    let parameters = Parameters { mount_flags: vec!["x".repeat(2 << 20)], ..Parameters::default() };
    let large = VolumeSpec { parameters, ..spec(&bench.pool, "large") };
    refused(bench.pool.ensure_volume(&lock(&large.id), &large), ErrorKind::InvalidArgument);
    assert_eq!(bench.pool.find_volume(&large.id).unwrap(), None);
}

#[test]
fn lost_records_are_made_again_from_the_images() {
    let bench = Bench::new();
    let directory = VolumeSpec { kind: VolumeKind::Directory, ..spec(&bench.pool, "directory") };
    let directory = bench.pool.ensure_volume(&lock(&directory.id), &directory).unwrap();
    let snapshot = bench.snapshot("s").unwrap();
    for volume in [&bench.victim, &directory] {
        fs::remove_file(bench.record(volume)).unwrap();
    }
    let of_snapshot = bench.path().join("snapshots").join(snapshot.as_str());
    fs::remove_file(newest_record(&of_snapshot)).unwrap();
    assert!(bench.problem().contains("no record"));
    bench.other_is_well();
    let again = try_open(bench.path()).unwrap();
    bench.assert_rebuilt(&again);
    let found = again.find_volume(&directory.id).unwrap().unwrap();
    assert_eq!((found.kind, found.size_bytes, found.problem), (VolumeKind::Directory, SIZE, None));
    let found = again.find_snapshot(&snapshot).unwrap().unwrap();
    assert_eq!((found.source, found.size_bytes), (bench.victim.id.clone(), SIZE));
}

#[test]
fn what_is_attached_is_not_rebuilt() {
    let test = "what_is_attached_is_not_rebuilt";
    let bench = Bench::new();
    let host = LinuxHost::new(Effects::default());
    let image = bench.image(&bench.victim);
    let identity = host.image_identity(&image).unwrap();
    let request = LoopRequest { image: &image, identity: &identity, label: "test", read_only: false };
    let device = match host.attach_loop(&request) {
        Ok(device) => device,
        Err(error) => return println!("SKIPPED: {test}: {}", error.chain()),
    };
    fs::remove_file(bench.record(&bench.victim)).unwrap();
    let opened = try_open(bench.path());
    let asked = bench.pool.rebuild_volume(&lock(&bench.victim.id), &bench.victim.id);
    host.detach_loop(&device).unwrap();
    assert!(opened.unwrap().find_volume(&bench.victim.id).unwrap().unwrap().problem.is_some());
    let message = refused(asked, ErrorKind::FailedPrecondition);
    assert!(message.contains("/dev/loop"), "{message}");
    bench.assert_rebuilt(&try_open(bench.path()).unwrap());
}

#[test]
fn a_truncated_image_is_noticed_and_not_copied() {
    let bench = Bench::new();
    let image = fs::OpenOptions::new().write(true).open(bench.image(&bench.victim)).unwrap();
    image.set_len(SIZE / 2).unwrap();
    let problem = bench.problem();
    assert!(problem.contains("truncated"), "{problem}");
    bench.other_is_well();
    refused(bench.snapshot("s"), ErrorKind::Corrupt);
    let source = Some(VolumeSource::Volume(bench.victim.id.clone()));
    let copy = VolumeSpec { source, ..spec(&bench.pool, "copy") };
    let guard = LockTable::default().try_lock([copy.id.as_str(), bench.victim.id.as_str()]).unwrap();
    refused(bench.pool.ensure_volume(&guard, &copy), ErrorKind::Corrupt);
    let expand = bench.pool.clone();
    let larger = SizeRange { required_bytes: Some(SIZE * 2), limit_bytes: None };
    refused(volume::Expand::expand(&expand, &lock(&bench.victim.id), &bench.victim.id, larger), ErrorKind::Corrupt);
    assert_eq!(image.metadata().unwrap().len(), SIZE / 2, "nothing papered over it");
}

#[test]
fn an_image_that_was_replaced_or_removed_is_noticed() {
    let bench = Bench::new();
    let image = bench.image(&bench.victim);
    fs::copy(&image, bench.path().join("backup")).unwrap();
    fs::remove_file(&image).unwrap();
    assert!(bench.problem().contains("gone"));
    fs::rename(bench.path().join("backup"), &image).unwrap();
    assert!(bench.problem().contains("not the file"));
    bench.other_is_well();
    // Somebody who wants to be rid of it can.
    fs::remove_file(&image).unwrap();
    bench.pool.delete_volume(&lock(&bench.victim.id), &bench.victim.id).unwrap();
    assert_eq!(bench.pool.find_volume(&bench.victim.id).unwrap(), None);
}

#[test]
fn a_pool_that_disappears_is_unavailable() {
    let bench = Bench::new();
    bench.pool.check().unwrap();
    let away = bench.directory.path().join("elsewhere");
    fs::rename(bench.path(), &away).unwrap();
    refused(bench.pool.check(), ErrorKind::Unavailable);
    // The empty mount point below an unmounted pool.
    fs::create_dir(bench.path()).unwrap();
    let message = refused(bench.pool.check(), ErrorKind::Unavailable);
    assert!(message.contains("mount"), "{message}");
    refused(bench.pool.find_volume(&bench.victim.id), ErrorKind::Unavailable);
    refused(bench.pool.list_volumes(&PageRequest::default()), ErrorKind::Unavailable);
    let new = spec(&bench.pool, "new");
    refused(bench.pool.ensure_volume(&lock(&new.id), &new), ErrorKind::Unavailable);
    refused(bench.pool.delete_volume(&lock(&bench.victim.id), &bench.victim.id), ErrorKind::Unavailable);
    fs::remove_dir(bench.path()).unwrap();
    fs::rename(&away, bench.path()).unwrap();
    bench.pool.check().unwrap();
    bench.other_is_well();
}

#[test]
fn a_full_pool_refuses_new_things_and_keeps_the_old() {
    let test = "a_full_pool_refuses_new_things_and_keeps_the_old";
    for below in FsType::ALL {
        let scratch = match ScratchPool::new(below, 1 << 30) {
            Ok(scratch) => scratch,
            Err(reason) => return println!("SKIPPED: {test}: {reason}"),
        };
        let bench = Bench::at(tempfile::tempdir_in(scratch.path()).unwrap());
        let ballast = fs::File::create(scratch.path().join("ballast")).unwrap();
        let capacity = bench.pool.capacity(&Default::default()).unwrap();
        assert!(capacity.available_bytes > 0);
        // All but 4 MiB.
        fill(&ballast, scratch.path());
        let capacity = bench.pool.capacity(&Default::default()).unwrap();
        assert_eq!((capacity.available_bytes, capacity.maximum_volume_bytes), (0, 0), "{below}");
        let new = spec(&bench.pool, "new");
        let message = refused(bench.pool.ensure_volume(&lock(&new.id), &new), ErrorKind::Exhausted);
        assert!(message.contains("too full"), "{message}");
        refused(bench.snapshot("s"), ErrorKind::Exhausted);
        assert_eq!(bench.pool.list_volumes(&PageRequest::default()).unwrap().entries.len(), 2);
        bench.other_is_well();
        // Deleting works, although it has to write.
        bench.pool.delete_volume(&lock(&bench.victim.id), &bench.victim.id).unwrap();
        ballast.set_len(0).unwrap();
        ballast.sync_all().unwrap();
        let freed = (0..20).any(|_| {
            sync(scratch.path());
            bench.pool.ensure_volume(&lock(&new.id), &new).is_ok()
        });
        assert!(freed, "{below}: {:?}", bench.pool.ensure_volume(&lock(&new.id), &new));
    }
}

/// Thin volumes took the last block: holders can still be fenced, let go, and volumes deleted.
#[test]
fn a_pool_without_a_single_free_block_can_be_emptied() {
    let test = "a_pool_without_a_single_free_block_can_be_emptied";
    for below in FsType::ALL {
        let scratch = match ScratchPool::new(below, 1 << 30) {
            Ok(scratch) => scratch,
            Err(reason) => return println!("SKIPPED: {test}: {reason}"),
        };
        let bench = Bench::at(tempfile::tempdir_in(scratch.path()).unwrap());
        let node = NodeIdentity {
            id: NodeId::parse("n1").unwrap(),
            incarnation: Incarnation::new_random(),
            boot_id: "here".to_owned(),
        };
        bench.pool.register(&node).unwrap();
        let other = &bench.other.id;
        let request = AttachRequest { volume: other, node: &node.id, read_only: false };
        let context = bench.pool.attach().unwrap().attach(&lock(other), &request).unwrap();
        let request = ConnectRequest { volume: other, node: &node, read_only: false, context: Some(&context) };
        bench.pool.connect(&lock(other), &request).unwrap();
        fill(&fs::File::create(scratch.path().join("ballast")).unwrap(), scratch.path());
        fill_to_the_brim(scratch.path());
        let report = bench.pool.fence().unwrap().fence(&node.id, None, "test", FenceHow::Enforce).unwrap();
        report.volumes[0].proof.as_ref().unwrap_or_else(|e| panic!("{below}: {}", e.chain()));
        bench.pool.disconnect(&lock(other), other, &node).unwrap();
        bench.pool.attach().unwrap().detach(&lock(other), other, Some(&node.id)).unwrap();
        fill_to_the_brim(scratch.path());
        for volume in [&bench.victim.id, other] {
            let deleted = bench.pool.delete_volume(&lock(volume), volume);
            deleted.unwrap_or_else(|e| panic!("{below}: {}", e.chain()));
        }
        assert_eq!(bench.pool.list_volumes(&PageRequest::default()).unwrap().entries, []);
    }
}

#[test]
fn a_pool_image_is_made_once_and_mounted_once() {
    let test = "a_pool_image_is_made_once_and_mounted_once";
    let scratch = match ScratchPool::new(FsType::Ext4, 4 << 30) {
        Ok(scratch) => scratch,
        Err(reason) => return println!("SKIPPED: {test}: {reason}"),
    };
    let directory = scratch.path().join("pool");
    let config = PoolConfig { image_bytes: Some(2 << 30), ..config(&directory) };
    // Several drivers start at once.
    let pools: Vec<Pool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| open_with(config.clone()).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let host = LinuxHost::new(Effects::default());
    let mounted = directory.join("mnt");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mounts = host.mounts().unwrap();
        assert_eq!(mounts.iter().filter(|entry| entry.mounted_at == mounted).count(), 1);
        let device = mounts.iter().find(|entry| entry.mounted_at == mounted).unwrap().device;
        let backing = host.loops().unwrap().into_iter().find(|found| found.number == device).unwrap();
        let same = |other: &host::LoopDevice| {
            (other.backing_device, other.backing_inode) == (backing.backing_device, backing.backing_inode)
        };
        assert_eq!(host.loops().unwrap().into_iter().filter(same).count(), 1, "one loop device");
        assert!(!pools[0].restrictions().copies_are_full, "images are cloned in it");
        let made = pools[0].ensure_volume(&lock(&spec(&pools[0], "v").id), &spec(&pools[0], "v")).unwrap();
        for pool in &pools {
            assert_eq!(pool.find_volume(&made.id).unwrap().as_ref(), Some(&made));
        }
        // Without the option it is found all the same: the volumes are in it.
        let again = open_with(PoolConfig { image_bytes: None, ..config.clone() }).unwrap();
        assert_eq!(again.find_volume(&made.id).unwrap(), Some(made));
        backing
    }));
    drop(pools);
    for _ in 0..100 {
        if host.unmount(&mounted).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    match result {
        Ok(backing) => host.detach_loop(&backing).unwrap(),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl Bench {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(directory: TempDir) -> Self {
        let path = directory.path().join("pool");
        let pool = try_open(&path).unwrap();
        let make = |name| pool.ensure_volume(&lock(&spec(&pool, name).id), &spec(&pool, name)).unwrap();
        Self { victim: make("victim"), other: make("other"), directory, path, pool }
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn volume(&self, volume: &Volume) -> PathBuf {
        self.path().join("volumes").join(volume.id.as_str())
    }

    fn image(&self, volume: &Volume) -> PathBuf {
        self.volume(volume).join("image.0000000000000000")
    }

    fn record(&self, volume: &Volume) -> PathBuf {
        newest_record(&self.volume(volume))
    }

    fn snapshot(&self, name: &str) -> Result<SnapshotId> {
        let name = VolumeName::parse(name).unwrap();
        let id = SnapshotId::of_name(self.pool.name(), &name);
        let guard = LockTable::default().try_lock([id.as_str(), self.victim.id.as_str()]).unwrap();
        self.pool.ensure_snapshot(&guard, &id, &name, &self.victim.id).map(|snapshot| snapshot.id)
    }

    /// What is said of the victim, by looking at it and by listing.
    fn problem(&self) -> String {
        let found = self.pool.find_volume(&self.victim.id).unwrap().unwrap();
        let listed = self.pool.list_volumes(&PageRequest::default()).unwrap().entries;
        assert!(listed.contains(&found));
        found.problem.expect("it looks well")
    }

    fn other_is_well(&self) {
        assert_eq!(self.pool.find_volume(&self.other.id).unwrap().as_ref(), Some(&self.other));
        let listed = self.pool.list_volumes(&PageRequest::default()).unwrap().entries;
        assert!(listed.contains(&self.other));
        let again = spec(&self.pool, "other");
        assert_eq!(self.pool.ensure_volume(&lock(&again.id), &again).unwrap(), self.other);
    }

    /// As it was, but with an epoch that no grant before the loss can have had.
    fn assert_rebuilt(&self, pool: &Pool) {
        let found = pool.find_volume(&self.victim.id).unwrap().unwrap();
        assert!(found.epoch > self.victim.epoch);
        assert_eq!(Volume { epoch: self.victim.epoch, ..found }, self.victim);
    }
}

/// Changes a record's file, with the checksum that belongs to it.
fn rewrite(record: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let text = fs::read_to_string(record).unwrap();
    let mut written = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    change(&mut written);
    let body = written.to_string();
    let checksum = crc32c::crc32c(body.as_bytes());
    fs::write(record, format!("{body}\n{{\"crc32c\":{checksum}}}\n")).unwrap();
}

fn newest_record(directory: &Path) -> PathBuf {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_str().unwrap().contains("/record.")).max().unwrap()
}

/// Takes all space but about 4 MiB.
fn fill(ballast: &fs::File, on: &Path) {
    let dir = host::file::Dir::open(on, Effects::default()).unwrap();
    let mut size = 0;
    loop {
        let free = host::file::space(&dir).unwrap().available_bytes.saturating_sub(4 << 20);
        let step = free.min(64 << 20);
        if step < 1 << 20 {
            return;
        }
        if let Err(error) = host::file::allocate(ballast, size..size + step, &Effects::default()) {
            panic!("{} with {free} bytes free", error.chain());
        }
        size += step;
        sync(on);
    }
}

/// Small files until not even an empty one can be made.
fn fill_to_the_brim(on: &Path) {
    for round in 0..2 {
        for n in 0.. {
            if fs::write(on.join(format!("brim-{}-{round}-{n}", std::process::id())), [7; 4096]).is_err() {
                break;
            }
        }
        sync(on);
    }
}

/// btrfs counts what was taken and given back when it commits.
fn sync(on: &Path) {
    run(&Command::new("sync", Duration::from_secs(60)).arg("-f").arg(on)).unwrap();
}

fn config(directory: &Path) -> PoolConfig {
    PoolConfig::new(BackendName::parse("pool").unwrap(), directory)
}

fn try_open(directory: &Path) -> Result<Pool> {
    open_with(config(directory))
}

fn open_with(config: PoolConfig) -> Result<Pool> {
    Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default())
}

fn spec(pool: &Pool, name: &str) -> VolumeSpec {
    let name = VolumeName::parse(name).unwrap();
    VolumeSpec {
        id: VolumeId::of_name(pool.name(), &name),
        name,
        size: SizeRange { required_bytes: Some(SIZE), limit_bytes: None },
        kind: VolumeKind::FileSystem(FsType::Ext4),
        source: None,
        parameters: Parameters::default(),
        mutable: Default::default(),
        topology: TopologyRequirement::default(),
    }
}

fn lock(id: &VolumeId) -> VolumeGuard {
    LockTable::default().try_lock([id.as_str()]).unwrap()
}
