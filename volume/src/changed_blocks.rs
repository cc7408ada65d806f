//! Which blocks a snapshot holds, and which differ between two: for backups that read only what changed.

use crate::{Result, SnapshotId};
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    pub offset_bytes: u64,
    /// Never 0.
    pub length_bytes: u64,
}

/// Ranges of one snapshot, found as they are asked for: the storage holds what it reads until this is dropped, and a
/// snapshot that is deleted meanwhile ends it with an error or not at all.
pub struct BlockRanges {
    /// Of the snapshot (of the target, for differences).
    pub size_bytes: u64,
    /// In ascending order; they neither overlap nor touch, and lie within the size. After an error nothing more comes.
    pub ranges: Box<dyn Iterator<Item = Result<ByteRange>> + Send>,
}

/// Answers from extents: no data is read, and the cost follows their number, not the size.
pub trait ChangedBlocks: Send + Sync {
    /// What holds data in `snapshot`, from `from_bytes` on (a range that spans it is cut there). Everything else reads
    /// as zeros. `OutOfRange` when `from_bytes` is beyond the snapshot's size.
    fn allocated(&self, snapshot: &SnapshotId, from_bytes: u64) -> Result<BlockRanges>;

    /// A superset of the bytes in which `target` differs from `base`, from `from_bytes` on. Ranges that became holes are
    /// among them: they read as zeros from the target. What is beyond the base's end is compared with zeros.
    /// `InvalidArgument` when the two are of different volumes or `base` is the younger one, `NotFound` when one is
    /// gone, `OutOfRange` as in [`ChangedBlocks::allocated`].
    fn changed(&self, base: &SnapshotId, target: &SnapshotId, from_bytes: u64) -> Result<BlockRanges>;
}

impl ByteRange {
    pub fn end_bytes(self) -> u64 {
        self.offset_bytes.saturating_add(self.length_bytes)
    }
}

impl fmt::Debug for BlockRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockRanges").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}
