//! Which blocks snapshots hold and in which they differ.

use super::{MIB, SIZE, Subject, at_least, lock, refused};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use volume::{
    ByteRange, ChangedBlocks, Connected, ErrorKind, NodeIdentity, Result, Snapshot, SnapshotId, VolumeId, VolumeKind,
    VolumeSpec,
};

const BLOCK: u64 = 4096;

pub fn refusals(s: &Subject) {
    let Some(blocks) = s.backend.changed_blocks() else { return };
    let (one, two) = (s.create("one"), s.create("two"));
    let base = s.snapshot("base", &one.id).unwrap();
    let target = younger(s, "target", &base);
    let other = s.snapshot("other", &two.id).unwrap();
    let never = s.snapshot_id("never made");
    refused(blocks.allocated(&never, 0), ErrorKind::NotFound);
    refused(blocks.changed(&never, &target.id, 0), ErrorKind::NotFound);
    refused(blocks.changed(&base.id, &never, 0), ErrorKind::NotFound);
    refused(blocks.changed(&other.id, &target.id, 0), ErrorKind::InvalidArgument);
    refused(blocks.changed(&target.id, &base.id, 0), ErrorKind::InvalidArgument);
    refused(blocks.allocated(&base.id, SIZE + 1), ErrorKind::OutOfRange);
    refused(blocks.changed(&base.id, &target.id, SIZE + 1), ErrorKind::OutOfRange);
    let snapshots = s.backend.snapshots().unwrap();
    snapshots.delete_snapshot(&lock(base.id.as_str()), &base.id).unwrap();
    refused(blocks.allocated(&base.id, 0), ErrorKind::NotFound);
    refused(blocks.changed(&base.id, &target.id, 0), ErrorKind::NotFound);
    // One of the same name is another one, and the younger one.
    let again = younger(s, "base", &target);
    refused(blocks.changed(&again.id, &target.id, 0), ErrorKind::InvalidArgument);
}

pub fn what_is_the_same(s: &Subject) {
    let Some(blocks) = s.backend.changed_blocks() else { return };
    let volume = s.create("one");
    let base = s.snapshot("base", &volume.id).unwrap();
    let target = s.snapshot("target", &volume.id).unwrap();
    let held = allocated(blocks, &target.id, 0).unwrap();
    assert!(!held.is_empty(), "a file system is not nothing");
    let found = changed(blocks, &base.id, &target.id, 0).unwrap();
    if s.backend.restrictions().copies_are_full {
        // What shares no block cannot be told from a change without reading it.
        assert!(found.iter().all(|range| covers(&held, range.offset_bytes..range.end_bytes())));
    } else {
        assert_eq!(found, []);
        assert_eq!(changed(blocks, &base.id, &base.id, 0).unwrap(), []);
    }
    // The volume itself is not looked at: it may be gone.
    if s.delete(&volume.id).is_ok() {
        assert_eq!(changed(blocks, &base.id, &target.id, 0).unwrap(), found);
    }
}

pub fn what_was_written(s: &Subject) {
    let Some(blocks) = s.backend.changed_blocks() else { return };
    let (id, node) = raw(s, "raw");
    let device = connect(s, &id, &node);
    let first = [16 * MIB..16 * MIB + BLOCK, 20 * MIB..20 * MIB + 8 * BLOCK];
    let second = [16 * MIB..16 * MIB + BLOCK, 40 * MIB..40 * MIB + BLOCK, SIZE - BLOCK..SIZE];
    write(s, &device, &first, 1);
    let base = s.snapshot("base", &id).unwrap();
    write(s, &device, &second, 2);
    let target = s.snapshot("target", &id).unwrap();
    let (before, after) = (allocated(blocks, &base.id, 0).unwrap(), allocated(blocks, &target.id, 0).unwrap());
    let found = changed(blocks, &base.id, &target.id, 0).unwrap();
    for range in first {
        assert!(covers(&before, range.clone()) && covers(&after, range.clone()), "{range:?} in {before:?}, {after:?}");
    }
    for range in second {
        assert!(covers(&after, range.clone()) && covers(&found, range.clone()), "{range:?} in {after:?}, {found:?}");
    }
    assert!(!covers(&before, 40 * MIB..40 * MIB + BLOCK), "nothing was there: {before:?}");
    if !s.backend.restrictions().copies_are_full {
        assert!(!touches(&found, 20 * MIB..20 * MIB + 8 * BLOCK), "it is as it was: {found:?}");
    }
    s.disconnect(&id, &node);
}

/// What the base does not have is compared with zeros.
pub fn growth(s: &Subject) {
    let (Some(blocks), Some(expand)) = (s.backend.changed_blocks(), s.backend.expand()) else { return };
    let (id, node) = raw(s, "raw");
    let device = connect(s, &id, &node);
    write(s, &device, std::slice::from_ref(&(16 * MIB..16 * MIB + BLOCK)), 1);
    let base = s.snapshot("base", &id).unwrap();
    expand.expand(&lock(id.as_str()), &id, at_least(SIZE * 2)).unwrap();
    s.connector.refresh_size(&lock(id.as_str()), &id).unwrap();
    let grown = s.snapshot("grown", &id).unwrap();
    assert_eq!(grown.size_bytes, SIZE * 2);
    assert!(!touches(&changed(blocks, &base.id, &grown.id, 0).unwrap(), SIZE..SIZE * 2));
    let written = SIZE + 8 * MIB..SIZE + 8 * MIB + BLOCK;
    write(s, &device, std::slice::from_ref(&written), 2);
    let target = s.snapshot("target", &id).unwrap();
    let found = changed(blocks, &base.id, &target.id, 0).unwrap();
    assert!(covers(&found, written), "{found:?}");
    assert!(!touches(&found, SIZE * 2 - MIB..SIZE * 2));
    // Offsets are those of the target.
    assert_eq!(changed(blocks, &base.id, &target.id, SIZE * 2).unwrap(), []);
    s.disconnect(&id, &node);
}

/// From wherever a list was cut, the rest of it comes.
pub fn lists_go_on(s: &Subject) {
    let Some(blocks) = s.backend.changed_blocks() else { return };
    let (id, node) = raw(s, "raw");
    let device = connect(s, &id, &node);
    let base = s.snapshot("base", &id).unwrap();
    let written: Vec<_> = (0..20).map(|n| 8 * MIB + n * MIB..8 * MIB + n * MIB + (1 + n % 3) * BLOCK).collect();
    write(s, &device, &written, 1);
    let target = s.snapshot("target", &id).unwrap();
    s.disconnect(&id, &node);
    let whole = changed(blocks, &base.id, &target.id, 0).unwrap();
    let held = allocated(blocks, &target.id, 0).unwrap();
    assert!(whole.len() >= written.len() && held.len() >= written.len(), "{whole:?} {held:?}");
    for (n, range) in whole.iter().enumerate() {
        let rest = |from| changed(blocks, &base.id, &target.id, from).unwrap();
        assert_eq!(rest(range.end_bytes()), whole[n + 1..]);
        // Within a range, what is left of it comes first.
        let from = range.offset_bytes + range.length_bytes / 2;
        let left = ByteRange { offset_bytes: from, length_bytes: range.end_bytes() - from };
        assert_eq!(rest(from), [&[left], &whole[n + 1..]].concat());
    }
    for (n, range) in held.iter().enumerate() {
        assert_eq!(allocated(blocks, &target.id, range.end_bytes()).unwrap(), held[n + 1..]);
    }
}

/// The whole list from `from` on; its form is checked.
pub fn changed(
    blocks: &dyn ChangedBlocks,
    base: &SnapshotId,
    target: &SnapshotId,
    from: u64,
) -> Result<Vec<ByteRange>> {
    let found = blocks.changed(base, target, from)?;
    checked(found.size_bytes, from, found.ranges)
}

/// As [`changed`].
pub fn allocated(blocks: &dyn ChangedBlocks, snapshot: &SnapshotId, from: u64) -> Result<Vec<ByteRange>> {
    let found = blocks.allocated(snapshot, from)?;
    checked(found.size_bytes, from, found.ranges)
}

fn checked(size: u64, from: u64, ranges: impl Iterator<Item = Result<ByteRange>>) -> Result<Vec<ByteRange>> {
    let ranges = ranges.collect::<Result<Vec<_>>>()?;
    let is_sound = ranges.iter().all(|range| range.length_bytes > 0 && range.end_bytes() <= size);
    let is_apart = ranges.windows(2).all(|pair| pair[0].end_bytes() < pair[1].offset_bytes);
    let begins = ranges.first().is_none_or(|first| first.offset_bytes >= from);
    assert!(is_sound && is_apart && begins, "from {from} of {size}: {ranges:?}");
    Ok(ranges)
}

fn covers(ranges: &[ByteRange], wanted: Range<u64>) -> bool {
    ranges.iter().any(|range| range.offset_bytes <= wanted.start && range.end_bytes() >= wanted.end)
}

fn touches(ranges: &[ByteRange], wanted: Range<u64>) -> bool {
    ranges.iter().any(|range| range.offset_bytes < wanted.end && range.end_bytes() > wanted.start)
}

/// A volume whose device can be written to: raw block where there is that.
fn raw(s: &Subject, name: &str) -> (VolumeId, NodeIdentity) {
    let spec = s.spec(name);
    let kind = if s.backend.restrictions().no_block.is_some() { spec.kind } else { VolumeKind::Block };
    let volume = s.ensure(&VolumeSpec { kind, ..spec }).unwrap();
    let node = s.register("n1");
    s.attach(&volume.id, &node).unwrap();
    (volume.id, node)
}

fn connect(s: &Subject, id: &VolumeId, node: &NodeIdentity) -> PathBuf {
    match s.connect(id, node, None).unwrap() {
        Connected::Device { path, .. } => path,
        Connected::Directory { path } => panic!("a directory: {}", path.display()),
    }
}

fn write(s: &Subject, device: &std::path::Path, ranges: &[Range<u64>], byte: u8) {
    for range in ranges {
        (s.write)(device, range.start, &vec![byte; (range.end - range.start) as usize]).unwrap();
    }
}

/// A snapshot of the same volume that a clock of milliseconds calls younger.
fn younger(s: &Subject, name: &str, than: &Snapshot) -> Snapshot {
    std::thread::sleep(Duration::from_millis(10));
    let snapshot = s.snapshot(name, &than.source).unwrap();
    assert!(snapshot.created_at_ms > than.created_at_ms);
    snapshot
}
