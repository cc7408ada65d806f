//! Which blocks a snapshot holds, and which differ between two: for backups that read only what changed.

use crate::{Result, SnapshotId};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    pub offset_bytes: u64,
    /// Never 0.
    pub length_bytes: u64,
}

/// Ranges in ascending order that neither overlap nor touch, within the snapshot's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRanges {
    /// Of the snapshot (of the target, for differences).
    pub size_bytes: u64,
    pub ranges: Vec<ByteRange>,
}

/// Answers from extents: no data is read, and the cost follows their number, not the size.
pub trait ChangedBlocks: Send + Sync {
    /// What holds data in `snapshot`, from `from_bytes` on (a range that spans it is cut there). Everything else reads
    /// as zeros. `OutOfRange` when `from_bytes` is beyond the snapshot's size.
    fn allocated(&self, snapshot: &SnapshotId, from_bytes: u64) -> Result<BlockRanges>;

    /// A superset of the bytes in which `target` differs from `base`, from `from_bytes` on. Ranges that became holes are
    /// among them: they read as zeros from the target. `InvalidArgument` when the two are of different volumes or
    /// `base` is the younger one, `NotFound` when one is gone, `OutOfRange` as in [`ChangedBlocks::allocated`].
    fn changed(&self, base: &SnapshotId, target: &SnapshotId, from_bytes: u64) -> Result<BlockRanges>;
}
