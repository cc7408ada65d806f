//! What the pool says of a volume, read where it is kept and not through anything that is tested: the states of its record,
//! and the blocks of its images.

use super::clock::monotonic_ns;
use crate::failure::{Context, Result, ensure};
use crate::lab::entries;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::UNIX_EPOCH;
use uuid::Uuid;

/// One state of a volume's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) generation: u64,
    /// When it was written, on CLOCK_MONOTONIC.
    pub(super) at_ns: u64,
    pub(super) holder: Option<Grant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) node: String,
    pub(super) incarnation: String,
    pub(super) epoch: u64,
    pub(super) is_fenced: bool,
}

/// The records of one run in an image, by their place: epoch, writer, sequence, and a hash of all.
pub(super) type Blocks = BTreeMap<u64, (u64, u32, u64, u64)>;

/// What is in the images of a volume, by their inodes: a fence renames the image of the old holder.
pub(super) type Images = BTreeMap<u64, Image>;

pub(super) struct Image {
    pub(super) name: String,
    pub(super) blocks: Blocks,
}

/// As `hawser workload write` makes them.
const MAGIC: &[u8] = b"hawserwr";
const BLOCK: usize = 4096;
const ORPHAN: &str = "orphan.";

/// All states of a record that are kept, the earliest first.
pub(super) fn states(volume: &Path) -> Result<Vec<State>> {
    let mut states = Vec::new();
    for path in entries(volume) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.starts_with("record.") {
            continue;
        }
        // One that is removed meanwhile is long past.
        let (Ok(text), Ok(metadata)) = (std::fs::read_to_string(&path), std::fs::metadata(&path)) else { continue };
        let written = metadata.modified()?.duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
        let state = state(&text, u64::try_from(written.as_nanos()).unwrap_or(0));
        states.push(state.context(|| path.display().to_string())?);
    }
    states.sort_by_key(|state| state.generation);
    Ok(states)
}

fn state(text: &str, written_ns: u64) -> Result<State> {
    let first = text.lines().next().unwrap_or_default();
    let value: Value = serde_json::from_str(first).map_err(|error| error.to_string())?;
    let generation = value["generation"].as_u64().ok_or("it has no generation")?;
    let held = &value["record"]["attachment"];
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| format!("its holder is {held}"));
    let holder = match held {
        Value::Null => None,
        held => Some(Grant {
            node: text(&held["holder"]["node"])?,
            incarnation: text(&held["holder"]["incarnation"])?,
            epoch: held["epoch"].as_u64().ok_or_else(|| format!("its holder is {held}"))?,
            is_fenced: !held["proof"].is_null(),
        }),
    };
    Ok(State { generation, at_ns: monotonic_ns(written_ns)?, holder })
}

/// Whether the pool's latest record of a node says so.
pub(super) fn is_fenced(pool: &Path, node: &str) -> Result<bool> {
    let mut latest = (0, Value::Null);
    for path in entries(&pool.join("nodes").join(node)) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if name.starts_with("record.") {
            let first = text.lines().next().unwrap_or_default();
            let value: Value = serde_json::from_str(first).map_err(|error| error.to_string())?;
            let generation = value["generation"].as_u64().unwrap_or(0);
            if generation > latest.0 {
                latest = (generation, value["record"]["state"]["state"].clone());
            }
        }
    }
    ensure(latest.0 > 0, || format!("the pool has no record of {node}"))?;
    Ok(latest.1 != "live")
}

/// When the holder of `epoch`, or its node in a later life, was recorded as fenced: the earliest state that says so.
pub(super) fn fenced_at(states: &[State], epoch: u64) -> Option<u64> {
    let is_it = |state: &&State| state.holder.as_ref().is_some_and(|held| held.epoch >= epoch && held.is_fenced);
    states.iter().find(is_it).map(|state| state.at_ns)
}

/// When the node gave the volume back without a fence, for the last time before another node had it: as one does that finds,
/// in its next life, that nothing of the last one is left.
pub(super) fn given_back_at(states: &[State], node: &str) -> Option<u64> {
    let moved = states.iter().position(|state| state.holder.as_ref().is_some_and(|held| held.node != node))?;
    let free = states.get(..moved)?.iter().rev().take_while(|state| state.holder.is_none()).last()?;
    Some(free.at_ns)
}

/// A volume passes to another holder only from one that has given it back, is fenced, or was the same node's earlier
/// life; and each grant has a higher epoch.
pub(super) fn ensure_one_holder(states: &[State]) -> Result<()> {
    for (before, after) in states.iter().zip(states.iter().skip(1)) {
        let (Some(old), Some(new)) = (&before.holder, &after.holder) else { continue };
        if (&old.node, &old.incarnation, old.epoch) == (&new.node, &new.incarnation, new.epoch) {
            ensure(new.is_fenced || !old.is_fenced, || format!("a proof is gone again: {before:?}, {after:?}"))?;
            continue;
        }
        ensure(new.epoch > old.epoch, || format!("an epoch was granted twice: {before:?}, {after:?}"))?;
        ensure(old.is_fenced || old.node == new.node, || format!("two holders: {before:?}, {after:?}"))?;
    }
    Ok(())
}

/// Records of the run `nonce` whose epoch is wanted, in the volume's images and in what they were before a fence.
pub(super) fn scan(volume: &Path, nonce: Uuid, is_wanted: impl Fn(u64) -> bool) -> Result<Images> {
    let mut images = Images::new();
    for path in entries(volume) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // One that is renamed meanwhile is found under its other name, or is the same as before.
        let Ok(file) = File::open(&path) else { continue };
        if name.starts_with("image.") || name.starts_with(ORPHAN) {
            let blocks = blocks(&file, nonce, &is_wanted).context(|| path.display().to_string())?;
            images.insert(file.metadata()?.ino(), Image { name, blocks });
        }
    }
    Ok(images)
}

fn blocks(file: &File, nonce: Uuid, is_wanted: impl Fn(u64) -> bool) -> Result<Blocks> {
    use nix::unistd::{Whence, lseek};
    let mut found = Blocks::new();
    let mut buffer = vec![0; 256 * BLOCK];
    let mut at = 0;
    // ENXIO: there is no more data.
    while let Ok(data) = lseek(file, at, Whence::SeekData) {
        let hole = lseek(file, data, Whence::SeekHole).map_err(|errno| errno.to_string())?;
        let (mut position, end) =
            (u64::try_from(data).unwrap_or(0) & !(BLOCK as u64 - 1), u64::try_from(hole).unwrap_or(0));
        while position < end {
            let wanted = buffer.len().min(usize::try_from(end - position).unwrap_or(usize::MAX));
            let read = file.read_at(&mut buffer[..wanted], position)?;
            if read == 0 {
                break;
            }
            for (index, block) in buffer[..read].chunks_exact(BLOCK).enumerate() {
                if let Some(record) = record(block, nonce).filter(|record| is_wanted(record.0)) {
                    found.insert(position + (index * BLOCK) as u64, record);
                }
            }
            position += read as u64;
        }
        at = hole;
    }
    Ok(found)
}

fn record(block: &[u8], nonce: Uuid) -> Option<(u64, u32, u64, u64)> {
    if !block.starts_with(MAGIC) || block.get(8..24)? != nonce.as_bytes() {
        return None;
    }
    let word = |at: usize| block.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let writer = u32::from_le_bytes(block.get(48..52)?.try_into().ok()?);
    let mut hasher = DefaultHasher::new();
    block.hash(&mut hasher);
    Some((word(24)?, writer, word(32)?, hasher.finish()))
}

/// How many blocks the old writer changed between the two looks. In an orphan nothing may change at all; in the image of the
/// new holder blocks of the old one that no file has any more are used again, so there only what came counts.
pub(super) fn written_between(before: &Images, after: &Images) -> usize {
    written_where(before, after, |_| true)
}

/// As [`written_between`], but for the orphans: of what a fork took from the old writer, nothing may change.
pub(super) fn written_outside_orphans(before: &Images, after: &Images) -> usize {
    written_where(before, after, |image| !image.name.starts_with(ORPHAN))
}

fn written_where(before: &Images, after: &Images, counts: impl Fn(&Image) -> bool) -> usize {
    let of = |inode: &u64, now: &Image| {
        // A fork that was made after the first look has what its original had.
        let then = before.get(inode).or_else(|| before.values().find(|image| !image.blocks.is_empty()));
        let empty = Blocks::new();
        let then = then.map_or(&empty, |image| &image.blocks);
        let came = now.blocks.iter().filter(|(at, record)| then.get(at) != Some(record)).count();
        let gone = then.keys().filter(|at| !now.blocks.contains_key(at)).count();
        if now.name.starts_with(ORPHAN) { came + gone } else { came }
    };
    after.iter().filter(|(_, image)| counts(image)).map(|(inode, image)| of(inode, image)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(generation: u64, node: &str, incarnation: &str, epoch: u64, is_fenced: bool) -> State {
        let grant = Grant { node: node.to_owned(), incarnation: incarnation.to_owned(), epoch, is_fenced };
        State { generation, at_ns: generation, holder: Some(grant) }
    }

    #[test]
    fn holders_follow_each_other_only_over_a_fence() {
        let free = State { generation: 1, at_ns: 1, holder: None };
        let one = |fenced| held(2, "one", "a", 1, fenced);
        let two = held(3, "two", "b", 2, false);
        assert!(ensure_one_holder(&[free.clone(), one(false), one(true), two.clone()]).is_ok());
        assert!(ensure_one_holder(&[one(false), free, two.clone()]).is_ok());
        assert!(ensure_one_holder(&[one(false), two.clone()]).is_err());
        assert!(ensure_one_holder(&[one(true), held(3, "two", "b", 1, false)]).is_err());
        assert!(ensure_one_holder(&[one(true), one(false)]).is_err());
        assert!(ensure_one_holder(&[one(false), held(3, "one", "c", 2, false)]).is_ok());
        assert_eq!(fenced_at(&[one(false), one(true), two], 1), Some(2));
    }

    #[test]
    fn what_a_node_gives_back_itself_needs_no_fence() {
        let free = |generation| State { generation, at_ns: generation, holder: None };
        let (one, again, two) =
            (held(1, "one", "a", 1, false), held(3, "one", "b", 2, false), held(6, "two", "c", 3, false));
        let moved = [one.clone(), free(2), again.clone(), free(4), free(5), two.clone()];
        assert_eq!(given_back_at(&moved, "one"), Some(4));
        assert_eq!(given_back_at(&[one.clone(), free(2)], "one"), None, "nobody else has it");
        assert_eq!(given_back_at(&[one, free(2), again, two], "one"), None, "it was taken from the next life");
    }

    #[test]
    fn records_of_the_pool() {
        let text = r#"{"format":2,"generation":7,"record":{"attachment":{"holder":{"node":"n","incarnation":"i"},"epoch":3,"proof":null}}}
{"crc32c":1}"#;
        let state = state(text, 0).unwrap();
        assert_eq!((state.generation, state.holder.map(|held| (held.epoch, held.is_fenced))), (7, Some((3, false))));
    }

    #[test]
    fn blocks_are_found_and_compared() {
        let directory = std::env::temp_dir().join(format!("hawser-e2e-blocks-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let nonce = Uuid::new_v4();
        let mut block = vec![0; BLOCK];
        block[..8].copy_from_slice(MAGIC);
        block[8..24].copy_from_slice(nonce.as_bytes());
        block[24] = 5;
        let file = File::create(directory.join("image.1")).unwrap();
        file.set_len(1 << 24).unwrap();
        file.write_all_at(&block, 1 << 20).unwrap();
        let scan = |epoch| scan(&directory, nonce, |of| of == epoch).unwrap();
        let before = scan(5);
        let places: Vec<u64> = before.values().flat_map(|image| image.blocks.keys().copied()).collect();
        assert_eq!(places, [1 << 20]);
        assert!(scan(6).values().all(|image| image.blocks.is_empty()));
        assert_eq!(written_between(&before, &scan(5)), 0);
        block[100] = 1;
        file.write_all_at(&block, 1 << 20).unwrap();
        assert_eq!(written_between(&before, &scan(5)), 1);
        // The new holder may use a block again; nobody may change an orphan.
        file.write_all_at(&[0; BLOCK], 1 << 20).unwrap();
        assert_eq!(written_between(&before, &scan(5)), 0);
        std::fs::rename(directory.join("image.1"), directory.join("orphan.1")).unwrap();
        assert_eq!(written_between(&before, &scan(5)), 1);
        assert_eq!(written_outside_orphans(&before, &scan(5)), 0);
        std::fs::rename(directory.join("orphan.1"), directory.join("image.2")).unwrap();
        block[100] = 2;
        file.write_all_at(&block, 1 << 20).unwrap();
        assert_eq!(written_outside_orphans(&before, &scan(5)), 1);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
