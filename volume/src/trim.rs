//! Giving back to the storage what a volume's file system does not use any more.

use crate::{Result, VolumeGuard, VolumeId};

/// What a trim did, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trimmed {
    /// What the file system told its device that it does not use: free space, whether or not it was allocated below.
    pub discarded_bytes: u64,
    /// What the volume took of the storage before and after. Blocks that it shares with snapshots count in both: a trim
    /// takes them from the volume, and they stay as long as a snapshot has them.
    pub allocated_before_bytes: u64,
    pub allocated_after_bytes: u64,
}

pub trait Trim: Send + Sync {
    /// Discards the free space of the volume's mounted file system. `FailedPrecondition` when it is not mounted on this
    /// machine, and for thick volumes, whose space is reserved on purpose; `Unsupported` for kinds without a file
    /// system of their own.
    fn trim(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<Trimmed>;
}
