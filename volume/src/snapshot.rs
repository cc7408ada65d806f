//! Snapshots: crash-consistent images of one volume at one instant.

use crate::{SnapshotId, VolumeId, VolumeKind, VolumeName};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub name: VolumeName,
    pub source: VolumeId,
    /// The source's size when the snapshot was taken; a restore needs at least this.
    pub size_bytes: u64,
    pub kind: VolumeKind,
    pub created_at_ms: u64,
    pub ready: bool,
}

#[derive(Debug, Clone, Default)]
pub struct SnapshotFilter {
    pub id: Option<SnapshotId>,
    pub source: Option<VolumeId>,
}
