//! Which blocks snapshots hold and in which they differ: the host of this backend sees every block.

use crate::MemoryBackend;
use crate::state::{SnapshotRecord, State};
use std::ops::Range;
use volume::{BlockRanges, ByteRange, ChangedBlocks, Error, ErrorKind, Result, Snapshot, SnapshotId};

impl ChangedBlocks for MemoryBackend {
    fn allocated(&self, snapshot: &SnapshotId, from_bytes: u64) -> Result<BlockRanges> {
        let state = self.storage.state();
        let record = find(&state, snapshot)?;
        list(&record.snapshot, from_bytes, || self.storage.host.allocated_blocks(&record.path))
    }

    fn changed(&self, base: &SnapshotId, target: &SnapshotId, from_bytes: u64) -> Result<BlockRanges> {
        let state = self.storage.state();
        let (base, target) = (find(&state, base)?, find(&state, target)?);
        let (older, younger) = (&base.snapshot, &target.snapshot);
        if older.source != younger.source {
            return Err(Error::invalid(format!("{} and {} are of different volumes", older.id, younger.id)));
        }
        if older.created_at_ms > younger.created_at_ms {
            return Err(Error::invalid(format!("the base {} is younger than {}", older.id, younger.id)));
        }
        list(younger, from_bytes, || self.storage.host.changed_blocks(&base.path, &target.path))
    }
}

fn find<'a>(state: &'a State, id: &SnapshotId) -> Result<&'a SnapshotRecord> {
    state.snapshots.get(id).ok_or_else(|| Error::not_found(format!("there is no snapshot {id}")))
}

fn list(of: &Snapshot, from_bytes: u64, blocks: impl Fn() -> Result<Vec<Range<u64>>>) -> Result<BlockRanges> {
    let size_bytes = of.size_bytes;
    if from_bytes > size_bytes {
        let message = format!("offset {from_bytes} is beyond the end of snapshot {}, at {size_bytes}", of.id);
        return Err(Error::new(ErrorKind::OutOfRange, message));
    }
    let mut ranges: Vec<ByteRange> = Vec::new();
    for block in blocks()? {
        let (start, end) = (block.start.max(from_bytes), block.end.min(size_bytes));
        match ranges.last_mut() {
            _ if start >= end => {}
            Some(last) if last.end_bytes() == start => last.length_bytes += end - start,
            _ => ranges.push(ByteRange { offset_bytes: start, length_bytes: end - start }),
        }
    }
    Ok(BlockRanges { size_bytes, ranges: Box::new(ranges.into_iter().map(Ok)) })
}
