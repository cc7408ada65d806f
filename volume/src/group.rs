//! Group snapshots: snapshots of several volumes at one instant.

use crate::{GroupSnapshotId, Result, Snapshot, VolumeGuard, VolumeId, VolumeName};
use serde::{Deserialize, Serialize};

/// A group and its members, which are ordinary snapshots but for [`Snapshot::group`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSnapshot {
    pub id: GroupSnapshotId,
    pub name: VolumeName,
    /// One of each source, in the order of the members' ids.
    pub snapshots: Vec<Snapshot>,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    pub ready: bool,
}

/// All members show their volumes at one instant: no write that a workload began after another one had ended is in a
/// member unless the other one is.
pub trait GroupSnapshots: Send + Sync {
    /// Idempotent by name, in whatever order the sources come. `AlreadyExists` when the group has other sources,
    /// `NotFound` when a source does not exist, `FailedPrecondition` when the sources cannot be stopped together.
    /// All members are made or none. The guard covers the group's id, its members' and its sources'.
    fn ensure_group_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &GroupSnapshotId,
        name: &VolumeName,
        sources: &[VolumeId],
    ) -> Result<GroupSnapshot>;

    fn find_group_snapshot(&self, id: &GroupSnapshotId) -> Result<Option<GroupSnapshot>>;

    /// Deletes the group with all its members; fine when absent, or deleted in part by an earlier call. The guard
    /// covers the group's id; its members are nobody else's to change.
    fn delete_group_snapshot(&self, guard: &VolumeGuard, id: &GroupSnapshotId) -> Result<()>;
}
