//! The fence under load, by the oracles that matter: no write is acknowledged after the fence returned, every write
//! acknowledged before is in the image that the next node gets, and that image does not change any more. With a fence
//! that only says that it fenced, the same oracles must fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Lab, device, open_on};
use conformance::backend::{at_least, lock};
use host::{
    Effects, Fenced, FileSystemCheck, FileSystemStats, Host, IoCgroup, LinuxHost, LoopDevice, LoopRequest, MountEntry,
    MountRequest, MountState, Owner, PathState, Probe,
};
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use volume::{
    AttachRequest, Connected, DeviceNumber, Fence, FenceHow, FsType, HealthProblem, ImageIdentity, IoLimits, Result,
    VolumeKind, VolumeSpec,
};

const BLOCK: u64 = 4096;
const BLOCKS_OF_EACH: u64 = 64;
const SIZE: u64 = 96 << 20;
const RUN: Duration = Duration::from_millis(300);
const AFTER: Duration = Duration::from_millis(500);

#[test]
fn nothing_is_lost_or_late_with_1_32_and_128_writers() {
    for fs in [FsType::Xfs, FsType::Btrfs] {
        let Some(lab) = Lab::new("nothing_is_lost_or_late", fs) else { return };
        for kind in [VolumeKind::FileSystem(FsType::Ext4), VolumeKind::Block] {
            for writers in [1, 32, 128] {
                let verdict = fail_over(&lab, kind, writers, Arc::new(LinuxHost::new(Effects::default())));
                assert_eq!(verdict, Verdict::default(), "{kind} on {fs}, {writers} writers");
            }
        }
    }
    // Without a fork: file systems only.
    let Some(lab) = Lab::new("nothing_is_lost_or_late", FsType::Ext4) else { return };
    for writers in [1, 32, 128] {
        let kind = VolumeKind::FileSystem(FsType::Ext4);
        let verdict = fail_over(&lab, kind, writers, Arc::new(LinuxHost::new(Effects::default())));
        assert_eq!(verdict, Verdict::default(), "{kind} on ext4, {writers} writers");
    }
}

#[test]
fn a_fence_that_does_nothing_is_caught() {
    let Some(lab) = Lab::new("a_fence_that_does_nothing", FsType::Xfs) else { return };
    for kind in [VolumeKind::FileSystem(FsType::Ext4), VolumeKind::Block] {
        let verdict = fail_over(&lab, kind, 32, Arc::new(Idle::default()));
        assert!(verdict.late > 0 && verdict.lost > 0, "{kind}: {verdict:?}");
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Acknowledged after the fence returned.
    late: usize,
    /// Acknowledged, and not in the next node's image.
    lost: usize,
    /// Blocks there that are neither zero nor what a writer wrote.
    torn: usize,
    /// Whether the next node's image changed while the old writers went on.
    changed: bool,
}

/// n1 writes, is fenced, and goes on trying; n2 takes the volume over.
fn fail_over(lab: &Lab, kind: VolumeKind, writers: u64, host: Arc<dyn Host>) -> Verdict {
    let s = &lab.subject;
    let name = uuid::Uuid::new_v4().to_string();
    let volume = s.ensure(&VolumeSpec { size: at_least(SIZE), kind, ..s.spec(&name) }).unwrap();
    let id = volume.id.clone();
    let (n1, n2) = (s.register("n1"), s.register("n2"));
    let context = s.attach(&id, &n1).unwrap();
    let connected = s.connect(&id, &n1, Some(&context)).unwrap();
    let old = Place::new(connected, volume.kind, writers, true);
    let ledger = Ledger { nonce: uuid::Uuid::new_v4(), acks: Mutex::default() };
    let stop = AtomicBool::new(false);
    let mut verdict = Verdict::default();
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let (old, ledger, stop) = (&old, &ledger, &stop);
            scope.spawn(move || write(old, writer, ledger, stop));
        }
        std::thread::sleep(RUN);
        let pool = open_on(&lab.directory, host, Effects::default());
        let report = Fence::fence(&pool, &n1.id, None, "test", FenceHow::Enforce).unwrap();
        let returned = Instant::now();
        report.volumes[0].proof.as_ref().unwrap();
        let image = lab.image(&id);
        let before = std::fs::read(&image).unwrap();
        std::thread::sleep(AFTER);
        verdict.changed = std::fs::read(&image).unwrap() != before;
        stop.store(true, Ordering::SeqCst);
        verdict.late = ledger.acks.lock().unwrap().iter().filter(|ack| ack.at > returned).count();
    });
    let request = AttachRequest { volume: &id, node: &n2.id, read_only: false };
    s.backend.attach().unwrap().attach(&lock(id.as_str()), &request).unwrap();
    let new = Place::new(s.connect(&id, &n2, None).unwrap(), volume.kind, writers, false);
    new.check(writers, &ledger, &mut verdict);
    assert!(ledger.acks.lock().unwrap().len() as u64 >= writers.min(32), "the writers hardly ran");
    drop((new, old));
    s.disconnect(&id, &n1);
    s.disconnect(&id, &n2);
    s.detach(&id, Some(&n2)).unwrap();
    s.delete(&id).unwrap();
    verdict
}

struct Ledger {
    nonce: uuid::Uuid,
    acks: Mutex<Vec<Ack>>,
}

struct Ack {
    writer: u64,
    sequence: u64,
    at: Instant,
}

/// Where blocks go: a raw device, or a file for each writer in a file system.
struct Place {
    device: PathBuf,
    mounted: Option<tempfile::TempDir>,
}

impl Place {
    fn new(connected: Connected, kind: VolumeKind, writers: u64, make_files: bool) -> Self {
        let Connected::Device { number, .. } = connected.clone() else { panic!("not a device") };
        let device = device(connected);
        let VolumeKind::FileSystem(fs) = kind else { return Self { device, mounted: None } };
        let target = tempfile::tempdir().unwrap();
        let request = MountRequest { device: &device, number, fs, target: target.path(), read_only: false, flags: &[] };
        LinuxHost::new(Effects::default()).mount(&request).unwrap();
        let place = Self { device: device.clone(), mounted: Some(target) };
        if make_files {
            for writer in 0..writers {
                let file = File::create_new(place.path(writer)).unwrap();
                file.write_all_at(&vec![0; usize::try_from(BLOCKS_OF_EACH * BLOCK).unwrap()], 0).unwrap();
                file.sync_all().unwrap();
            }
        }
        place
    }

    fn path(&self, writer: u64) -> PathBuf {
        match &self.mounted {
            None => self.device.clone(),
            Some(target) => target.path().join(format!("writer-{writer}")),
        }
    }

    fn offset(&self, writer: u64, sequence: u64) -> u64 {
        let first = if self.mounted.is_some() { 0 } else { writer * BLOCKS_OF_EACH };
        (first + sequence % BLOCKS_OF_EACH) * BLOCK
    }

    fn open(&self, writer: u64) -> File {
        let direct = nix::fcntl::OFlag::O_DIRECT | nix::fcntl::OFlag::O_DSYNC;
        OpenOptions::new().read(true).write(true).custom_flags(direct.bits()).open(self.path(writer)).unwrap()
    }

    fn check(&self, writers: u64, ledger: &Ledger, verdict: &mut Verdict) {
        let mut newest: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for ack in ledger.acks.lock().unwrap().iter() {
            let slot = newest.entry((ack.writer, ack.sequence % BLOCKS_OF_EACH)).or_default();
            *slot = (*slot).max(ack.sequence);
        }
        for writer in 0..writers {
            // All blocks at once, through a page cache that nobody has filled yet.
            let mut blocks = vec![0; usize::try_from(BLOCKS_OF_EACH * BLOCK).unwrap()];
            File::open(self.path(writer)).unwrap().read_exact_at(&mut blocks, self.offset(writer, 0)).unwrap();
            for (slot, block) in (0..).zip(blocks.chunks(4096)) {
                let sequence = u64::from_le_bytes(block[24..32].try_into().unwrap());
                let written = block == Block::new(ledger, writer, sequence).0;
                verdict.torn += usize::from(!written && block.iter().any(|&b| b != 0));
                if let Some(&acked) = newest.get(&(writer, slot)) {
                    // A later one that was not acknowledged may be there as well.
                    verdict.lost += usize::from(!written || sequence < acked);
                }
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(target) = &self.mounted {
            let host = LinuxHost::new(Effects::default());
            let begun = Instant::now();
            while host.unmount(target.path()).is_err() && begun.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// As O_DIRECT wants it. Each is unlike every other: nonce, writer, sequence, and a filling that depends on them.
#[repr(align(4096))]
struct Block([u8; 4096]);

impl Block {
    fn new(ledger: &Ledger, writer: u64, sequence: u64) -> Box<Self> {
        let mut block = Box::new(Self([0; 4096]));
        block.0[..16].copy_from_slice(ledger.nonce.as_bytes());
        block.0[16..24].copy_from_slice(&writer.to_le_bytes());
        block.0[24..32].copy_from_slice(&sequence.to_le_bytes());
        let mut hasher = DefaultHasher::new();
        hasher.write(&block.0[..32]);
        let filling = hasher.finish().to_le_bytes();
        for chunk in block.0[32..].chunks_mut(8) {
            chunk.copy_from_slice(&filling);
        }
        block
    }
}

fn write(place: &Place, writer: u64, ledger: &Ledger, stop: &AtomicBool) {
    let file = place.open(writer);
    for sequence in 1.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let block = Block::new(ledger, writer, sequence);
        match file.write_all_at(&block.0, place.offset(writer, sequence)) {
            Ok(()) => ledger.acks.lock().unwrap().push(Ack { writer, sequence, at: Instant::now() }),
            // Fenced: goes on trying.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A machine whose fence says that it fenced, and does nothing.
struct Idle {
    linux: LinuxHost,
    fenced: Mutex<HashSet<DeviceNumber>>,
}

impl Default for Idle {
    fn default() -> Self {
        Self { linux: LinuxHost::new(Effects::default()), fenced: Mutex::default() }
    }
}

impl Host for Idle {
    fn fence_loop(&self, device: &LoopDevice, _: u64) -> Result<Option<Fenced>> {
        self.fenced.lock().unwrap().insert(device.number);
        Ok(Some(Fenced { device: device.number, size_limit_bytes: 512, froze: true }))
    }
    fn loops(&self) -> Result<Vec<LoopDevice>> {
        let mut loops = self.linux.loops()?;
        for device in &mut loops {
            if self.fenced.lock().unwrap().contains(&device.number) {
                device.size_limit_bytes = 512;
            }
        }
        Ok(loops)
    }

    fn resolve_parents(&self, path: &Path) -> Result<PathBuf> {
        self.linux.resolve_parents(path)
    }
    fn observe_path(&self, path: &Path) -> Result<PathState> {
        self.linux.observe_path(path)
    }
    fn ensure_directory(&self, path: &Path) -> Result<()> {
        self.linux.ensure_directory(path)
    }
    fn ensure_file(&self, path: &Path) -> Result<()> {
        self.linux.ensure_file(path)
    }
    fn seal_target(&self, path: &Path) -> Result<bool> {
        self.linux.seal_target(path)
    }
    fn remove_target(&self, path: &Path) -> Result<()> {
        self.linux.remove_target(path)
    }
    fn mounts(&self) -> Result<Vec<MountEntry>> {
        self.linux.mounts()
    }
    fn mount(&self, request: &MountRequest<'_>) -> Result<()> {
        self.linux.mount(request)
    }
    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<()> {
        self.linux.bind(source, target, read_only)
    }
    fn unmount(&self, path: &Path) -> Result<()> {
        self.linux.unmount(path)
    }
    fn stats(&self, path: &Path) -> Result<FileSystemStats> {
        self.linux.stats(path)
    }
    fn owner(&self, path: &Path) -> Result<Owner> {
        self.linux.owner(path)
    }
    fn set_owner(&self, path: &Path, uid: Option<u32>, gid: Option<u32>, mode: Option<u32>) -> Result<()> {
        self.linux.set_owner(path, uid, gid, mode)
    }
    fn probe(&self, device: &Path) -> Result<Probe> {
        self.linux.probe(device)
    }
    fn check_filesystem(&self, device: &Path, fs: FsType) -> Result<FileSystemCheck> {
        self.linux.check_filesystem(device, fs)
    }
    fn grow_filesystem(&self, device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<()> {
        self.linux.grow_filesystem(device, fs, mounted_at)
    }
    fn device_size(&self, device: &Path) -> Result<u64> {
        self.linux.device_size(device)
    }
    fn with_frozen(&self, device: DeviceNumber, deadline_ms: u64, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.linux.with_frozen(device, deadline_ms, work)
    }
    fn with_all_frozen(
        &self,
        devices: &[DeviceNumber],
        deadline_ms: u64,
        work: &mut dyn FnMut(&[DeviceNumber]) -> Result<()>,
    ) -> Result<()> {
        self.linux.with_all_frozen(devices, deadline_ms, work)
    }
    fn thaw_left_over(&self, device: DeviceNumber, mounted_at: Option<&Path>) -> Result<bool> {
        self.linux.thaw_left_over(device, mounted_at)
    }
    fn try_device(&self, device: &Path) -> Result<()> {
        self.linux.try_device(device)
    }
    fn try_mounted(&self, path: &Path) -> Result<MountState> {
        self.linux.try_mounted(path)
    }
    fn trim(&self, device: DeviceNumber) -> Result<Option<u64>> {
        self.linux.trim(device)
    }
    fn missing_privileges(&self) -> Vec<HealthProblem> {
        self.linux.missing_privileges()
    }
    fn attach_loop(&self, request: &LoopRequest<'_>) -> Result<LoopDevice> {
        self.linux.attach_loop(request)
    }
    fn detach_loop(&self, device: &LoopDevice) -> Result<()> {
        self.linux.detach_loop(device)
    }
    fn refresh_loop(&self, device: &LoopDevice) -> Result<()> {
        self.linux.refresh_loop(device)
    }
    fn shutdown_filesystem(&self, mounted_at: &Path) -> Result<()> {
        self.linux.shutdown_filesystem(mounted_at)
    }
    fn boot_id(&self) -> Result<String> {
        self.linux.boot_id()
    }
    fn read_ahead_kib(&self, device: &Path, number: DeviceNumber) -> Result<u32> {
        self.linux.read_ahead_kib(device, number)
    }
    fn set_read_ahead(&self, device: &Path, number: DeviceNumber, kib: u32) -> Result<()> {
        self.linux.set_read_ahead(device, number, kib)
    }
    fn io_cgroups(&self, names: &[PathBuf]) -> Result<Vec<IoCgroup>> {
        self.linux.io_cgroups(names)
    }
    fn set_io_limits(&self, device: DeviceNumber, limits: &IoLimits, cgroup: &IoCgroup) -> Result<()> {
        self.linux.set_io_limits(device, limits, cgroup)
    }
    fn image_identity(&self, image: &Path) -> Result<ImageIdentity> {
        self.linux.image_identity(image)
    }
}
