//! Snapshots: crash-consistent images of one volume at one instant.

use crate::{GroupSnapshotId, Segments, SnapshotId, VolumeId, VolumeKind, VolumeName};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub name: VolumeName,
    pub source: VolumeId,
    /// The source's size when the snapshot was taken; a restore needs at least this.
    pub size_bytes: u64,
    pub kind: VolumeKind,
    pub created_at_ms: u64,
    pub ready: bool,
    /// The group snapshot that it belongs to: it is deleted with that, not alone.
    pub group: Option<GroupSnapshotId>,
    /// From where it can be restored; empty: from everywhere.
    pub accessible_topology: Vec<Segments>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SnapshotFilter {
    pub id: Option<SnapshotId>,
    pub source: Option<VolumeId>,
}
