//! Volumes as every backend answers for them.

use crate::{
    Attachment, Epoch, MutableChange, MutableParameters, Parameters, Segments, SizeRange, SnapshotId,
    TopologyRequirement, VolumeId, VolumeKind, VolumeName,
};
use serde::{Deserialize, Serialize};

/// What to make. Two calls with the same name and compatible specs give the same volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeSpec {
    pub id: VolumeId,
    pub name: VolumeName,
    pub size: SizeRange,
    pub kind: VolumeKind,
    pub source: Option<VolumeSource>,
    pub parameters: Parameters,
    /// What a new volume starts with apart from the defaults; one that is there must have it already.
    pub mutable: MutableChange,
    pub topology: TopologyRequirement,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from", content = "id")]
pub enum VolumeSource {
    Snapshot(SnapshotId),
    Volume(VolumeId),
}

/// A volume as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub id: VolumeId,
    pub name: VolumeName,
    pub size_bytes: u64,
    pub kind: VolumeKind,
    pub thick: bool,
    pub source: Option<VolumeSource>,
    /// What CreateVolume was given that the node needs ([`Parameters::to_volume_context`]).
    pub parameters: Parameters,
    /// What the node applies to the device while the volume is connected.
    pub mutable: MutableParameters,
    /// Empty: reachable from everywhere.
    pub accessible_topology: Vec<Segments>,
    pub epoch: Epoch,
    /// `None`: free. Directory volumes are never held.
    pub attachment: Option<Attachment>,
    pub created_at_ms: u64,
    /// Set when something is wrong with the volume, in plain words: what, and what to do.
    pub problem: Option<String>,
}
