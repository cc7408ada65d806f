//! Space that a volume does not use any more goes back to the pool: by a trim, by `mount -o discard`, by a discard of a raw
//! device; and without any of them it stays.
#![allow(clippy::unwrap_used, clippy::panic)] // The helpers below are no test functions.

mod common;

use common::{Lab, device};
use conformance::backend::{at_least, lock, refused};
use host::command::{Command, run};
use host::{Effects, Host, LinuxHost, MountRequest};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use volume::{ErrorKind, FsType, NodeIdentity, Trimmed, VolumeId, VolumeKind, VolumeSpec};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 512 * MIB;

/// A volume attached, connected and mounted.
struct Mounted<'a> {
    lab: &'a Lab,
    id: VolumeId,
    node: NodeIdentity,
    target: PathBuf,
    /// What an empty file system takes: its log, its tables.
    empty_bytes: u64,
}

/// Unmounts when a test fails, so that the scratch file system goes away.
impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = LinuxHost::new(Effects::default()).unmount(&self.target);
    }
}

impl<'a> Mounted<'a> {
    fn new(lab: &'a Lab, name: &str, fs: FsType, flags: &[&str]) -> Self {
        let (id, node) = (made(lab, name, VolumeKind::FileSystem(fs)), lab.subject.register("n1"));
        lab.subject.attach(&id, &node).unwrap();
        let path = device(lab.subject.connect(&id, &node, None).unwrap());
        let host = LinuxHost::new(Effects::default());
        let number = host.loops().unwrap().into_iter().find(|one| one.path == path).unwrap().number;
        let target = lab.directory.parent().unwrap().join(format!("mounted-{name}"));
        fs::create_dir(&target).unwrap();
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let request = MountRequest { device: &path, number, fs, target: &target, read_only: false, flags: &flags };
        host.mount(&request).unwrap();
        sync(&target);
        let empty_bytes = allocated(lab, &id);
        Self { lab, id, node, target, empty_bytes }
    }

    /// Beyond the empty file system.
    fn allocated(&self) -> u64 {
        allocated(self.lab, &self.id).saturating_sub(self.empty_bytes)
    }

    fn trim(&self) -> Trimmed {
        self.lab.subject.backend.trim().unwrap().trim(&lock(self.id.as_str()), &self.id).unwrap()
    }

    /// Two files; one is deleted again, and that is on the disk.
    fn write_and_delete(&self) {
        write(&self.target.join("kept"), 8 * MIB);
        write(&self.target.join("deleted"), 64 * MIB);
        sync(&self.target);
        assert!(self.allocated() > 70 * MIB, "{}", self.allocated());
        fs::remove_file(self.target.join("deleted")).unwrap();
        sync(&self.target);
    }

    fn kept_is_whole(&self) {
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
        assert!(fs::read(self.target.join("kept")).unwrap() == content(8 * MIB), "the other file suffered");
    }

    fn give_back(&self) {
        LinuxHost::new(Effects::default()).unmount(&self.target).unwrap();
        self.lab.subject.disconnect(&self.id, &self.node);
        self.lab.subject.detach(&self.id, Some(&self.node)).unwrap();
    }
}

#[test]
fn deleted_files_give_their_space_back_by_a_trim() {
    for below in FsType::ALL {
        let Some(lab) = Lab::new("deleted_files_give_their_space_back_by_a_trim", below) else { return };
        // The pool's file system makes no difference to the volume's: all of them once.
        for fs in FsType::ALL.into_iter().filter(|&fs| below == FsType::Xfs || fs == FsType::Ext4) {
            let mounted = Mounted::new(&lab, fs.as_str(), fs, &[]);
            mounted.write_and_delete();
            // btrfs discards by itself after a while, and says how much of it it will.
            let is_by_itself = fs == FsType::Btrfs;
            if !is_by_itself {
                std::thread::sleep(Duration::from_millis(300));
                assert!(mounted.allocated() > 70 * MIB, "{fs} on {below}: it went away without a trim");
            }
            let trimmed = mounted.trim();
            assert!(trimmed.discarded_bytes > 0 || is_by_itself, "{fs} on {below}: {trimmed:?}");
            assert_eq!(trimmed.allocated_after_bytes, allocated(&lab, &mounted.id));
            assert!(mounted.allocated() < 24 * MIB, "{fs} on {below}: {trimmed:?}");
            assert!(trimmed.allocated_before_bytes > trimmed.allocated_after_bytes + 48 * MIB || is_by_itself);
            mounted.kept_is_whole();
            mounted.give_back();
            let unmounted = lab.subject.backend.trim().unwrap().trim(&lock(mounted.id.as_str()), &mounted.id);
            let message = refused(unmounted, ErrorKind::FailedPrecondition);
            assert!(message.contains("not mounted"), "{message}");
        }
    }
}

#[test]
fn a_mount_with_discard_gives_back_at_once() {
    for below in FsType::ALL {
        let Some(lab) = Lab::new("a_mount_with_discard_gives_back_at_once", below) else { return };
        for fs in [FsType::Ext4, FsType::Xfs].into_iter().filter(|&fs| below == FsType::Xfs || fs == FsType::Ext4) {
            let mounted = Mounted::new(&lab, fs.as_str(), fs, &["discard"]);
            mounted.write_and_delete();
            within_seconds(&format!("{fs} on {below}"), || {
                sync(&mounted.target);
                mounted.allocated() < 24 * MIB
            });
            mounted.kept_is_whole();
            mounted.give_back();
        }
    }
}

#[test]
fn a_discard_of_a_raw_device_makes_a_hole() {
    for below in [FsType::Xfs, FsType::Btrfs] {
        let Some(lab) = Lab::new("a_discard_of_a_raw_device_makes_a_hole", below) else { return };
        let (id, node) = (made(&lab, "raw", VolumeKind::Block), lab.subject.register("n1"));
        lab.subject.attach(&id, &node).unwrap();
        let path = device(lab.subject.connect(&id, &node, None).unwrap());
        let mut raw = fs::OpenOptions::new().write(true).open(&path).unwrap();
        raw.write_all(&content(72 * MIB)).unwrap();
        raw.sync_all().unwrap();
        drop(raw);
        assert!(allocated(&lab, &id) >= 72 * MIB);
        let (offset, length) = ((8 * MIB).to_string(), (64 * MIB).to_string());
        let discard =
            Command::new("blkdiscard", Duration::from_secs(60)).args(["-o", &offset, "-l", &length]).arg(&path);
        run(&discard).unwrap();
        within_seconds(&format!("on {below}"), || allocated(&lab, &id) <= 9 * MIB);
        let mut found = vec![0; 8 << 20];
        std::io::Read::read_exact(&mut File::open(&path).unwrap(), &mut found).unwrap();
        assert!(found == content(8 * MIB), "what was not discarded suffered");
        lab.subject.disconnect(&id, &node);
    }
}

/// A trim takes shared blocks from the volume and leaves them to the snapshot.
#[test]
fn a_snapshot_keeps_what_is_trimmed() {
    let Some(lab) = Lab::new("a_snapshot_keeps_what_is_trimmed", FsType::Xfs) else { return };
    let mounted = Mounted::new(&lab, "v", FsType::Ext4, &[]);
    write(&mounted.target.join("kept"), 8 * MIB);
    write(&mounted.target.join("deleted"), 64 * MIB);
    sync(&mounted.target);
    let snapshot = lab.subject.snapshot("s", &mounted.id).unwrap().id;
    let copy = lab.directory.join("snapshots").join(snapshot.as_str()).join("image");
    let before = fs::metadata(&copy).unwrap().blocks();
    fs::remove_file(mounted.target.join("deleted")).unwrap();
    mounted.trim();
    assert!(mounted.allocated() < 24 * MIB);
    assert_eq!(fs::metadata(&copy).unwrap().blocks(), before);
    assert!(before * 512 > 72 * MIB);
    mounted.give_back();
}

fn made(lab: &Lab, name: &str, kind: VolumeKind) -> VolumeId {
    lab.subject.ensure(&VolumeSpec { kind, size: at_least(SIZE), ..lab.subject.spec(name) }).unwrap().id
}

fn allocated(lab: &Lab, id: &VolumeId) -> u64 {
    fs::metadata(lab.image(id)).unwrap().blocks() * 512
}

fn write(path: &Path, bytes: u64) {
    let mut file = File::create(path).unwrap();
    file.write_all(&content(bytes)).unwrap();
    file.sync_all().unwrap();
}

/// Nothing that a file system would leave out.
fn content(bytes: u64) -> Vec<u8> {
    let block: Vec<u8> = (0..MIB).map(|n| (n / 251 + n) as u8 | 1).collect();
    block.repeat(usize::try_from(bytes / MIB).unwrap())
}

fn sync(on: &Path) {
    run(&Command::new("sync", Duration::from_secs(60)).arg("-f").arg(on)).unwrap();
}

fn within_seconds(what: &str, done: impl Fn() -> bool) {
    for _ in 0..100 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{what}: the space did not come back");
}
