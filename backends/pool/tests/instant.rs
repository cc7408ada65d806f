//! That the members of a group are of one instant: writers go round over its volumes, and what each restored group holds
//! could have been there at one moment. And that nothing stays frozen, wherever the work ends.
#![allow(clippy::unwrap_used, clippy::panic)] // The helpers below are no test functions.

mod common;

use common::{Lab, device, open};
use conformance::backend::take_group;
use host::{Effects, Host, LinuxHost, MountRequest};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};
use volume::{
    FsType, GroupSnapshots, NodeIdentity, PageRequest, SizeRange, SnapshotFilter, SnapshotId, Snapshots, VolumeId,
    VolumeKind, VolumeSource, VolumeSpec,
};

const WRITERS: u64 = 4;
const GROUPS: u64 = 6;
/// Each writer has a block of its own in every volume.
const BLOCK: u64 = 4096;
/// In the order in which a writer goes round. One raw device is among them; nothing could stop two.
const KINDS: [VolumeKind; 4] = [
    VolumeKind::FileSystem(FsType::Ext4),
    VolumeKind::FileSystem(FsType::Xfs),
    VolumeKind::FileSystem(FsType::Ext4),
    VolumeKind::Block,
];

/// Volumes that a node uses. Dropped, it gives them back.
struct Bench {
    lab: Lab,
    node: NodeIdentity,
    host: LinuxHost,
    mounts: tempfile::TempDir,
    volumes: Vec<VolumeId>,
}

/// The number that each writer wrote last, volume by volume.
type Seen = Vec<Vec<u64>>;

#[test]
fn a_group_is_of_one_instant() {
    let Some(bench) = Bench::new("a_group_is_of_one_instant") else { return };
    bench.while_written(|| {
        for n in 0..GROUPS {
            sleep(Duration::from_millis(20 + n * 7));
            bench.group(&format!("g{n}"));
        }
    });
    let mut last = 0;
    for n in 0..GROUPS {
        let seen = bench.restored(&format!("g{n}"), |source| bench.member(&format!("g{n}"), source));
        assert!(is_of_one_instant(&seen), "group {n} is torn: {seen:?}");
        let sum = seen.iter().flatten().sum();
        assert!(sum > last, "nobody wrote between groups {n} and the one before");
        last = sum;
    }
}

/// The same oracle sees that snapshots taken one after the other, each with its own freeze, are not.
#[test]
fn snapshots_one_after_the_other_are_not_of_one_instant() {
    let Some(bench) = Bench::new("snapshots_one_after_the_other_are_not_of_one_instant") else { return };
    let name = |n: u64, source: &VolumeId| format!("{n} of {source}");
    bench.while_written(|| {
        for n in 0..GROUPS {
            for source in &bench.volumes {
                bench.lab.subject.snapshot(&name(n, source), source).unwrap();
            }
        }
    });
    let torn = (0..GROUPS).filter(|&n| {
        let snapshot = |source: &VolumeId| bench.lab.subject.snapshot_id(&name(n, source));
        !is_of_one_instant(&bench.restored(&format!("r{n}"), snapshot))
    });
    assert!(torn.count() > 0, "the oracle saw no difference");
}

struct Crash;

/// The work is ended at each freeze and each clone. The volumes can be written to at once, and there is no member.
#[test]
fn an_end_while_frozen_leaves_nothing_frozen() {
    let Some(bench) = Bench::new("an_end_while_frozen_leaves_nothing_frozen") else { return };
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<Crash>() {
            default(info);
        }
    }));
    let volumes: Vec<&VolumeId> = bench.volumes.iter().collect();
    let group = bench.lab.subject.group_id("g");
    for stop_after in 1.. {
        let seen = AtomicU64::new(0);
        let effects = Effects::with_action(move |_, name| {
            if matches!(name, "freeze" | "clone") && seen.fetch_add(1, Ordering::SeqCst) + 1 == stop_after {
                panic_any(Crash);
            }
        });
        let doomed = open(&bench.lab.directory, effects);
        let taken = catch_unwind(AssertUnwindSafe(|| take_group(&doomed, "g", &volumes).unwrap()));
        if let Ok(taken) = taken {
            // Three file systems and four images.
            assert_eq!((taken.snapshots.len(), stop_after), (KINDS.len(), 8));
            return;
        }
        drop(doomed);
        let begun = Instant::now();
        bench.write_all(0, stop_after);
        assert!(begun.elapsed() < Duration::from_secs(5), "frozen after effect {stop_after}");
        let pool = open(&bench.lab.directory, Effects::default());
        assert_eq!(pool.find_group_snapshot(&group).unwrap(), None);
        assert_eq!(pool.list_snapshots(&SnapshotFilter::default(), &PageRequest::default()).unwrap().entries, []);
    }
}

/// A writer writes the next number to the first volume, and when that is durable to the second, and so on.
fn is_of_one_instant(seen: &Seen) -> bool {
    (0..WRITERS as usize).all(|writer| {
        let numbers: Vec<u64> = seen.iter().map(|volume| volume[writer]).collect();
        let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
        numbers.is_sorted_by(|a, b| a >= b) && first <= last + 1
    })
}

#[test]
fn the_oracle_knows_what_could_have_been_at_one_moment() {
    let all = |numbers: [u64; 4]| numbers.map(|number| vec![number; WRITERS as usize]).to_vec();
    for possible in [[0, 0, 0, 0], [1, 0, 0, 0], [5, 5, 5, 4], [5, 5, 4, 4], [7, 7, 7, 7]] {
        assert!(is_of_one_instant(&all(possible)), "{possible:?}");
    }
    for torn in [[0, 1, 0, 0], [5, 5, 5, 6], [6, 5, 5, 4], [6, 6, 6, 4], [5, 4, 5, 4]] {
        assert!(!is_of_one_instant(&all(torn)), "{torn:?}");
    }
}

impl Bench {
    fn new(test: &str) -> Option<Self> {
        let lab = Lab::new(test, FsType::Xfs)?;
        let node = lab.subject.register("n1");
        let (host, mounts) = (LinuxHost::new(Effects::default()), tempfile::tempdir().unwrap());
        let mut bench = Self { lab, node, host, mounts, volumes: Vec::new() };
        for (n, kind) in KINDS.into_iter().enumerate() {
            let name = format!("v{n}");
            let spec = VolumeSpec { kind, size: SizeRange::default(), ..bench.lab.subject.spec(&name) };
            let id = bench.lab.subject.ensure(&VolumeSpec { size: size_of(kind), ..spec }).unwrap().id;
            bench.use_volume(&id, kind);
            bench.volumes.push(id);
        }
        bench.write_all(0, 0);
        Some(bench)
    }

    fn use_volume(&self, id: &VolumeId, kind: VolumeKind) {
        let s = &self.lab.subject;
        s.attach(id, &self.node).unwrap();
        let path = device(s.connect(id, &self.node, None).unwrap());
        let place = self.place(id);
        match kind {
            VolumeKind::FileSystem(fs) => {
                let number = self.host.loops().unwrap().into_iter().find(|device| device.path == path).unwrap().number;
                std::fs::create_dir(&place).unwrap();
                let request = MountRequest { device: &path, number, fs, target: &place, read_only: false, flags: &[] };
                self.host.mount(&request).unwrap();
                File::create_new(place.join("file")).map(drop).unwrap_or_default();
            }
            _ => std::os::unix::fs::symlink(&path, &place).unwrap(),
        }
    }

    fn give_back(&self, id: &VolumeId) {
        let place = self.place(id);
        if place.is_symlink() {
            std::fs::remove_file(&place).unwrap();
        } else {
            self.host.unmount(&place).unwrap();
            std::fs::remove_dir(&place).unwrap();
        }
        self.lab.subject.disconnect(id, &self.node);
        self.lab.subject.detach(id, Some(&self.node)).unwrap();
    }

    fn place(&self, id: &VolumeId) -> PathBuf {
        self.mounts.path().join(id.as_str())
    }

    fn file(&self, id: &VolumeId) -> File {
        let place = self.place(id);
        let path: &Path = &if place.is_symlink() { place } else { place.join("file") };
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }

    fn write_all(&self, writer: u64, number: u64) {
        for id in &self.volumes {
            write(&self.file(id), writer, number);
        }
    }

    /// Runs `work` while the writers go round.
    fn while_written(&self, work: impl FnOnce()) {
        let stop = AtomicBool::new(false);
        scope(|scope| {
            for writer in 0..WRITERS {
                let stop = &stop;
                scope.spawn(move || {
                    let files: Vec<File> = self.volumes.iter().map(|id| self.file(id)).collect();
                    for number in 1.. {
                        for file in &files {
                            write(file, writer, number);
                        }
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                    }
                });
            }
            sleep(Duration::from_millis(100));
            let done = catch_unwind(AssertUnwindSafe(work));
            stop.store(true, Ordering::SeqCst);
            if let Err(panic) = done {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn group(&self, name: &str) {
        let volumes: Vec<&VolumeId> = self.volumes.iter().collect();
        take_group(&*self.lab.subject.backend, name, &volumes).unwrap_or_else(|e| panic!("{}", e.chain()));
    }

    fn member(&self, group: &str, source: &VolumeId) -> SnapshotId {
        SnapshotId::of_member(&self.lab.subject.group_id(group), source)
    }

    /// What is in the volumes made from one snapshot of each.
    fn restored(&self, name: &str, snapshot: impl Fn(&VolumeId) -> SnapshotId) -> Seen {
        let s = &self.lab.subject;
        let read = |(source, kind): (&VolumeId, VolumeKind)| {
            let from = VolumeSource::Snapshot(snapshot(source));
            let spec = VolumeSpec { kind, ..s.spec_from(&format!("{name} from {source}"), from) };
            let id = s.ensure(&spec).unwrap_or_else(|e| panic!("{}", e.chain())).id;
            self.use_volume(&id, kind);
            let file = self.file(&id);
            let numbers = (0..WRITERS).map(|writer| read(&file, writer)).collect();
            drop(file);
            self.give_back(&id);
            s.delete(&id).unwrap();
            numbers
        };
        self.volumes.iter().zip(KINDS).map(read).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for id in &self.volumes {
                self.give_back(id);
            }
        } else {
            for id in &self.volumes {
                let _ = self.host.unmount(&self.place(id));
            }
        }
    }
}

fn write(file: &File, writer: u64, number: u64) {
    let mut block = [0; BLOCK as usize];
    block[..8].copy_from_slice(&number.to_le_bytes());
    file.write_all_at(&block, writer * BLOCK).unwrap();
    file.sync_data().unwrap();
}

fn read(file: &File, writer: u64) -> u64 {
    let mut number = [0; 8];
    match file.read_exact_at(&mut number, writer * BLOCK) {
        Ok(()) => u64::from_le_bytes(number),
        // Not written yet when the snapshot was taken.
        Err(_) => 0,
    }
}

fn size_of(kind: VolumeKind) -> SizeRange {
    let bytes = if kind == VolumeKind::FileSystem(FsType::Xfs) { 320 << 20 } else { 64 << 20 };
    SizeRange { required_bytes: Some(bytes), limit_bytes: None }
}
