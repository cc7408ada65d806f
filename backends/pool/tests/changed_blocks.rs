//! What the pool says of its snapshots' blocks, against their bytes, over random workloads on real file systems.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers are no test functions.

mod common;

use common::{Lab, device};
use conformance::backend::changed_blocks::{allocated, changed};
use conformance::backend::{MIB, at_least, lock};
use host::{Effects, Host, LinuxHost, MountRequest};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use volume::{ByteRange, Connected, FsType, NodeIdentity, Snapshot, VolumeId, VolumeKind, VolumeSpec};

const BLOCK: u64 = 4096;
const ROUNDS: usize = 5;
const SIZE: u64 = 32 * MIB;

/// xorshift64*: the workloads are to be repeatable by their seed alone.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

#[test]
fn raw_block_on_xfs() {
    raw_block("raw_block_on_xfs", FsType::Xfs);
}

#[test]
fn raw_block_on_btrfs() {
    raw_block("raw_block_on_btrfs", FsType::Btrfs);
}

#[test]
fn a_file_system_on_xfs() {
    file_system("a_file_system_on_xfs", FsType::Xfs);
}

#[test]
fn a_file_system_on_btrfs() {
    file_system("a_file_system_on_btrfs", FsType::Btrfs);
}

/// Where copies share nothing, everything that is there is a change.
#[test]
fn a_file_system_on_ext4() {
    file_system("a_file_system_on_ext4", FsType::Ext4);
}

/// More extents than are read at once, of snapshots that are deleted after the first of them: what is open stays whole.
#[test]
fn deleted_while_they_are_read() {
    for fs in [FsType::Xfs, FsType::Btrfs, FsType::Ext4] {
        let Some(lab) = Lab::new("deleted_while_they_are_read", fs) else { return };
        let s = &lab.subject;
        let id = s.ensure(&VolumeSpec { size: at_least(SIZE), ..s.spec("v") }).unwrap().id;
        let image = File::options().write(true).open(lab.image(&id)).unwrap();
        let base = s.snapshot("base", &id).unwrap();
        for n in 0..3000 {
            image.write_all_at(&[7; BLOCK as usize], 2 * BLOCK * n).unwrap();
        }
        image.sync_all().unwrap();
        let target = s.snapshot("target", &id).unwrap();
        let blocks = s.backend.changed_blocks().unwrap();
        let expected = changed(blocks, &base.id, &target.id, 0).unwrap();
        assert!(expected.len() > 2500, "{}", expected.len());
        let mut reading = blocks.changed(&base.id, &target.id, 0).unwrap().ranges;
        let mut found = vec![reading.next().unwrap().unwrap()];
        for snapshot in [&base, &target] {
            let snapshots = s.backend.snapshots().unwrap();
            snapshots.delete_snapshot(&lock(snapshot.id.as_str()), &snapshot.id).unwrap();
        }
        // Others take the space.
        image.write_all_at(&vec![8; SIZE as usize], 0).unwrap();
        image.sync_all().unwrap();
        s.snapshot("base", &id).unwrap();
        found.extend(reading.map(Result::unwrap));
        assert_eq!(found, expected, "{fs}");
    }
}

/// Compressed extents have addresses that do not tell their bytes: they count as changed, though nothing happened.
#[test]
fn compressed_images() {
    let Some(lab) = Lab::new("compressed_images", FsType::Btrfs) else { return };
    let flags = nix::mount::MsFlags::MS_REMOUNT;
    let mounted = lab.directory.parent().unwrap();
    nix::mount::mount(None::<&str>, mounted, None::<&str>, flags, Some("compress-force=zlib")).unwrap();
    let s = &lab.subject;
    let id = s.ensure(&VolumeSpec { kind: VolumeKind::Block, size: at_least(SIZE), ..s.spec("v") }).unwrap().id;
    // Not through a loop: direct I/O may pass compression by.
    let image = File::options().write(true).open(lab.image(&id)).unwrap();
    let mut snapshots = Vec::new();
    for (n, at) in [8 * MIB, 8 * MIB + 64 * 1024, 8 * MIB].into_iter().enumerate() {
        image.write_all_at(&vec![n as u8 + 1; MIB as usize], at).unwrap();
        image.sync_all().unwrap();
        snapshots.extend(["a", "b"].map(|half| s.snapshot(&format!("{half}{n}"), &id).unwrap()));
    }
    let blocks = s.backend.changed_blocks().unwrap();
    let found = changed(blocks, &snapshots[0].id, &snapshots[1].id, 0).unwrap();
    assert_eq!(
        found,
        [ByteRange { offset_bytes: 8 * MIB, length_bytes: MIB }],
        "nothing happened, and nobody can tell"
    );
    check_all(&lab, &snapshots, false, random_of(4));
}

fn raw_block(test: &str, pool: FsType) {
    for seed in [1, 2] {
        let Some(lab) = Lab::new(test, pool) else { return };
        let mut workload = Workload::begin(&lab, VolumeKind::Block, seed);
        let snapshots = workload.run(|workload, random| {
            let disk = File::options().read(true).write(true).open(&workload.device).unwrap();
            let size = workload.size();
            for _ in 0..40 {
                scribble(&disk, size, random);
            }
            disk.sync_all().unwrap();
        });
        drop(workload);
        check_all(&lab, &snapshots, true, random_of(seed));
    }
}

fn file_system(test: &str, pool: FsType) {
    let Some(lab) = Lab::new(test, pool) else { return };
    let mut workload = Workload::begin(&lab, VolumeKind::FileSystem(FsType::Ext4), 3);
    let mount = tempfile::tempdir().unwrap();
    let host = LinuxHost::new(Effects::default());
    let (device, number) = (workload.device.clone(), workload.number);
    let request =
        MountRequest { device: &device, number, fs: FsType::Ext4, target: mount.path(), read_only: false, flags: &[] };
    host.mount(&request).unwrap();
    let snapshots = workload.run(|_, random| {
        for _ in 0..12 {
            let path = mount.path().join(format!("f{}", random.below(8)));
            match random.below(4) {
                0 => drop(std::fs::remove_file(&path)),
                1 => std::fs::write(&path, vec![9; random.below(2 << 20) as usize]).unwrap(),
                _ => {
                    let file = File::options().create(true).truncate(false).write(true).open(&path).unwrap();
                    file.write_all_at(&vec![random.below(255) as u8; 20_000], random.below(1 << 20)).unwrap();
                }
            }
        }
    });
    host.unmount(mount.path()).unwrap();
    drop(workload);
    // A freeze writes the superblock.
    check_all(&lab, &snapshots, false, random_of(3));
}

/// Writes, writes the same bytes again, punches holes, writes zeros, preallocates.
fn scribble(disk: &File, size: u64, random: &mut Random) {
    let length = BLOCK * (1 + random.below(64));
    let at = random.below((size - length) / BLOCK) * BLOCK;
    match random.below(8) {
        0 => {
            let mut same = vec![0; length as usize];
            disk.read_exact_at(&mut same, at).unwrap();
            disk.write_all_at(&same, at).unwrap();
        }
        1 | 2 => punch(disk, FallocateFlags::FALLOC_FL_PUNCH_HOLE, at, length),
        3 => punch(disk, FallocateFlags::FALLOC_FL_ZERO_RANGE, at, length),
        4 => disk.write_all_at(&vec![0; length as usize], at).unwrap(),
        _ => disk.write_all_at(&vec![1 + random.below(255) as u8; length as usize], at).unwrap(),
    }
}

/// On a block device: discard, or zeros that the image may keep as unwritten extents.
fn punch(disk: &File, how: FallocateFlags, at: u64, length: u64) {
    fallocate(disk, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, at as i64, length as i64).unwrap();
}

struct Workload<'a> {
    lab: &'a Lab,
    id: VolumeId,
    node: NodeIdentity,
    device: PathBuf,
    number: volume::DeviceNumber,
    random: Random,
}

impl<'a> Workload<'a> {
    fn begin(lab: &'a Lab, kind: VolumeKind, seed: u64) -> Self {
        let s = &lab.subject;
        let id = s.ensure(&VolumeSpec { kind, size: at_least(SIZE), ..s.spec("v") }).unwrap().id;
        let node = s.register("n1");
        s.attach(&id, &node).unwrap();
        let connected = s.connect(&id, &node, None).unwrap();
        let Connected::Device { number, .. } = connected else { panic!("a directory") };
        Self { lab, id, node, device: device(connected), number, random: random_of(seed) }
    }

    fn size(&self) -> u64 {
        self.lab.subject.find(&self.id).size_bytes
    }

    /// A snapshot before and after each round; in the middle the volume grows.
    fn run(&mut self, mut round: impl FnMut(&Self, &mut Random)) -> Vec<Snapshot> {
        let s = &self.lab.subject;
        let mut snapshots = vec![s.snapshot("s0", &self.id).unwrap()];
        for n in 1..=ROUNDS {
            if n == 3 {
                let expand = s.backend.expand().unwrap();
                expand.expand(&lock(self.id.as_str()), &self.id, at_least(SIZE + 16 * MIB)).unwrap();
                s.connector.refresh_size(&lock(self.id.as_str()), &self.id).unwrap();
            }
            let mut random = Random(self.random.below(u64::MAX) | 1);
            round(self, &mut random);
            snapshots.push(s.snapshot(&format!("s{n}"), &self.id).unwrap());
        }
        // Nothing happens before the last.
        snapshots.push(s.snapshot("last", &self.id).unwrap());
        snapshots
    }
}

impl Drop for Workload<'_> {
    fn drop(&mut self) {
        // What is mounted is unmounted by the test first; a failed one leaves it to the scratch pool.
        let _ = self.lab.subject.connector.disconnect(&lock(self.id.as_str()), &self.id, &self.node);
    }
}

fn random_of(seed: u64) -> Random {
    Random(0x9e37_79b9_7f4a_7c15 ^ (seed << 32 | seed))
}

/// `is_quiet`: nothing was written between the last two, and the pool can tell.
fn check_all(lab: &Lab, snapshots: &[Snapshot], is_quiet: bool, mut random: Random) {
    let blocks = lab.subject.backend.changed_blocks().unwrap();
    let bytes: Vec<Vec<u8>> = snapshots.iter().map(|snapshot| content(lab, snapshot)).collect();
    let mut left_out = 0;
    for (j, target) in snapshots.iter().enumerate() {
        let held = allocated(blocks, &target.id, 0).unwrap();
        assert_eq!(first_difference(&[], &bytes[j], &held), None, "outside of what {} holds", target.name);
        for (i, base) in snapshots[..=j].iter().enumerate() {
            let delta = changed(blocks, &base.id, &target.id, 0).unwrap();
            let missed = first_difference(&bytes[i], &bytes[j], &delta);
            assert_eq!(missed, None, "{} to {}: {delta:?}", base.name, target.name);
            resume(&delta, bytes[j].len() as u64, &mut random, |from| {
                changed(blocks, &base.id, &target.id, from).unwrap()
            });
            let is_same = j == i || j + 1 == snapshots.len() && i + 2 == snapshots.len();
            if is_quiet && is_same {
                assert_eq!(delta, [], "nothing happened between {} and {}", base.name, target.name);
            }
            // The oracle sees what is left out: without one range that matters the copy is another.
            let matters =
                |r: &ByteRange| differs(&bytes[i], &bytes[j], r.offset_bytes as usize..r.end_bytes() as usize);
            let needed = delta.iter().position(matters);
            if let Some(needed) = needed {
                let without: Vec<_> = [&delta[..needed], &delta[needed + 1..]].concat();
                assert!(first_difference(&bytes[i], &bytes[j], &without).is_some());
                left_out += 1;
            }
        }
    }
    assert!(left_out > 5, "a workload that changes nothing proves nothing");
}

/// The target's bytes in `ranges`, put over the base (cut or filled up with zeros to the target's size), are to be the
/// target: the first place outside of the ranges where the two differ.
fn first_difference(base: &[u8], target: &[u8], ranges: &[ByteRange]) -> Option<usize> {
    let end = ByteRange { offset_bytes: target.len() as u64, length_bytes: 0 };
    let mut at = 0;
    for range in ranges.iter().chain([&end]) {
        let gap = at..range.offset_bytes as usize;
        if differs(base, target, gap.clone()) {
            return Some(gap.start);
        }
        at = range.end_bytes() as usize;
    }
    None
}

fn differs(base: &[u8], target: &[u8], range: Range<usize>) -> bool {
    let middle = base.len().clamp(range.start, range.end);
    let is_zero = |bytes: &[u8]| bytes.chunks(BLOCK as usize).all(|chunk| *chunk == [0; BLOCK as usize][..chunk.len()]);
    let (old, beyond) = (range.start.min(base.len())..middle.min(base.len()), middle..range.end);
    base[old.clone()] != target[old] || !is_zero(&target[beyond])
}

/// Cut at a random place, within a range or not.
fn resume(whole: &[ByteRange], size: u64, random: &mut Random, from: impl Fn(u64) -> Vec<ByteRange>) {
    let at = random.below(size + 1);
    let rest: Vec<_> = whole
        .iter()
        .filter(|range| range.end_bytes() > at)
        .map(|range| {
            let start = range.offset_bytes.max(at);
            ByteRange { offset_bytes: start, length_bytes: range.end_bytes() - start }
        })
        .collect();
    assert_eq!(from(at), rest, "from {at}");
}

fn content(lab: &Lab, snapshot: &Snapshot) -> Vec<u8> {
    let image = lab.directory.join("snapshots").join(snapshot.id.as_str()).join("image");
    let mut bytes = std::fs::read(Path::new(&image)).unwrap();
    bytes.truncate(snapshot.size_bytes as usize);
    bytes
}
