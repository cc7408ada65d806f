//! From the types of `volume` to CSI's messages.

use csi_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource as WireVolumeSource};
use csi_proto::csi::{self, VolumeContentSource};
use prost_types::Timestamp;
use rpc::Profile;
use volume::{GroupSnapshot, Segments, Snapshot, Volume, VolumeSource};

pub(crate) fn volume(volume: &Volume, profile: Profile) -> csi::Volume {
    csi::Volume {
        capacity_bytes: bytes(volume.size_bytes),
        volume_id: volume.id.to_string(),
        volume_context: volume.parameters.to_volume_context(),
        content_source: volume.source.as_ref().map(content_source),
        accessible_topology: topology(&volume.accessible_topology, profile),
    }
}

/// Nodes to which the volume is granted, by its record. Directories are granted to nobody in particular.
pub(crate) fn published_nodes(volume: &Volume) -> Vec<String> {
    volume.attachment.iter().map(|held| held.holder.node.to_string()).collect()
}

pub(crate) fn snapshot(snapshot: &Snapshot, profile: Profile) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: bytes(snapshot.size_bytes),
        snapshot_id: snapshot.id.to_string(),
        source_volume_id: snapshot.source.to_string(),
        creation_time: Some(timestamp(snapshot.created_at_ms)),
        ready_to_use: snapshot.ready,
        group_snapshot_id: snapshot.group.as_ref().map(ToString::to_string).unwrap_or_default(),
        accessible_topology: topology(&snapshot.accessible_topology, profile),
    }
}

pub(crate) fn group_snapshot(group: &GroupSnapshot, profile: Profile) -> csi::VolumeGroupSnapshot {
    csi::VolumeGroupSnapshot {
        group_snapshot_id: group.id.to_string(),
        snapshots: group.snapshots.iter().map(|member| snapshot(member, profile)).collect(),
        creation_time: Some(timestamp(group.created_at_ms)),
        ready_to_use: group.ready,
    }
}

/// Sizes are below 2^63 by construction ([`volume::MAX_SIZE_BYTES`]); sums of them might not be.
pub(crate) fn bytes(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn content_source(source: &VolumeSource) -> VolumeContentSource {
    let source = match source {
        VolumeSource::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
        VolumeSource::Volume(id) => Type::Volume(WireVolumeSource { volume_id: id.to_string() }),
    };
    VolumeContentSource { r#type: Some(source) }
}

fn topology(places: &[Segments], profile: Profile) -> Vec<csi::Topology> {
    if profile.has_topology() { places.iter().map(place).collect() } else { Vec::new() }
}

fn place(segments: &Segments) -> csi::Topology {
    csi::Topology { segments: segments.0.clone() }
}

fn timestamp(ms: u64) -> Timestamp {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(ms % 1000 * 1_000_000).unwrap_or(0);
    Timestamp { seconds, nanos }
}
