//! The records, and what is computed from them.

use crate::Storage;
use std::collections::BTreeMap;
use std::path::PathBuf;
use volume::{
    Error, GroupSnapshotId, ImageIdentity, NodeId, NodeRecord, Orphan, Result, Snapshot, SnapshotId, Volume, VolumeId,
    VolumeName,
};

#[derive(Default)]
pub(crate) struct State {
    pub(crate) volumes: BTreeMap<VolumeId, VolumeRecord>,
    pub(crate) snapshots: BTreeMap<SnapshotId, SnapshotRecord>,
    pub(crate) groups: BTreeMap<GroupSnapshotId, GroupRecord>,
    pub(crate) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(crate) orphans: Vec<OrphanRecord>,
    /// How often each node has shown that it lives.
    pub(crate) signs_of_life: BTreeMap<NodeId, u64>,
}

pub(crate) struct VolumeRecord {
    pub(crate) volume: Volume,
    /// `None` for a directory volume.
    pub(crate) image: Option<Image>,
    /// How often its mutable parameters were changed.
    pub(crate) modified: u64,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) identity: ImageIdentity,
}

pub(crate) struct SnapshotRecord {
    pub(crate) snapshot: Snapshot,
    pub(crate) path: PathBuf,
}

pub(crate) struct GroupRecord {
    pub(crate) id: GroupSnapshotId,
    pub(crate) name: VolumeName,
    /// In order.
    pub(crate) members: Vec<SnapshotId>,
    pub(crate) created_at_ms: u64,
}

pub(crate) struct OrphanRecord {
    pub(crate) orphan: Orphan,
    /// Who was fenced from it.
    pub(crate) node: NodeId,
    pub(crate) path: PathBuf,
}

impl State {
    pub(crate) fn volume(&self, id: &VolumeId) -> Result<&VolumeRecord> {
        self.volumes.get(id).ok_or_else(|| no_volume(id))
    }

    pub(crate) fn volume_mut(&mut self, id: &VolumeId) -> Result<&mut VolumeRecord> {
        self.volumes.get_mut(id).ok_or_else(|| no_volume(id))
    }

    pub(crate) fn node(&self, id: &NodeId) -> Result<&NodeRecord> {
        self.nodes.get(id).ok_or_else(|| {
            Error::not_found(format!("no node {id} is known to this storage; its driver registers it when it starts"))
        })
    }
}

impl Storage {
    /// Bytes that are neither promised to thick volumes nor written.
    pub(crate) fn available_bytes(&self, state: &State) -> u64 {
        let volumes = state.volumes.values().map(|record| self.allocated_bytes(record));
        let snapshots = state.snapshots.values().map(|r| self.host.allocated_bytes(&r.path).unwrap_or(0));
        let orphans = state.orphans.iter().map(|record| record.orphan.allocated_bytes);
        self.capacity_bytes.saturating_sub(volumes.chain(snapshots).chain(orphans).sum())
    }

    pub(crate) fn allocated_bytes(&self, record: &VolumeRecord) -> u64 {
        match &record.image {
            Some(_) if record.volume.thick => record.volume.size_bytes,
            Some(image) => self.host.allocated_bytes(&image.path).unwrap_or(0),
            None => 0,
        }
    }
}

fn no_volume(id: &VolumeId) -> Error {
    Error::not_found(format!("no volume {id}"))
}
