//! Volumes, snapshots, proofs and records as JSON and as text.

use crate::output::printable;
use crate::units::{format_size, format_time};
use serde_json::{Value, json};
use volume::{
    Attachment, Failover, FenceProof, NodeRecord, NodeState, Orphan, Snapshot, Volume, VolumeKind, VolumeSource,
};

pub fn volume_json(volume: &Volume) -> Value {
    json!({
        "id": volume.id,
        "name": volume.name,
        "size_bytes": volume.size_bytes,
        "kind": kind(volume.kind),
        "thick": volume.thick,
        "source": volume.source,
        "parameters": volume.parameters.to_volume_context(),
        "failover": volume.parameters.failover,
        "mutable_parameters": mutable_json(volume),
        "accessible_topology": volume.accessible_topology,
        "epoch": volume.epoch,
        "attachment": volume.attachment,
        "created_at": format_time(volume.created_at_ms),
        "problem": volume.problem,
    })
}

fn mutable_json(volume: &Volume) -> Value {
    volume.mutable.to_pairs().into_iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect()
}

pub fn snapshot_json(snapshot: &Snapshot) -> Value {
    json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "source": snapshot.source,
        "size_bytes": snapshot.size_bytes,
        "kind": kind(snapshot.kind),
        "created_at": format_time(snapshot.created_at_ms),
        "ready": snapshot.ready,
        "group": snapshot.group,
    })
}

pub fn orphan_json(orphan: &Orphan) -> Value {
    json!({
        "volume": orphan.volume,
        "image": orphan.image,
        "allocated_bytes": orphan.allocated_bytes,
        "created_at": format_time(orphan.created_at_ms),
    })
}

/// Everything of one volume, a line each.
pub fn volume_text(volume: &Volume, orphans: &[Orphan]) -> String {
    let mut lines = vec![
        ("id", volume.id.to_string()),
        ("name", format!("{:?}", volume.name.as_str())),
        ("size", format!("{} ({} bytes)", format_size(volume.size_bytes), volume.size_bytes)),
        ("kind", format!("{}{}", volume.kind, if volume.thick { ", thick" } else { "" })),
        ("failover", failover(volume).to_owned()),
        ("created", format_time(volume.created_at_ms)),
        ("epoch", volume.epoch.to_string()),
        ("holder", holder(volume.attachment.as_ref())),
    ];
    if let Some(source) = &volume.source {
        lines.push((
            "source",
            match source {
                VolumeSource::Snapshot(id) => format!("snapshot {id}"),
                VolumeSource::Volume(id) => format!("volume {id}"),
            },
        ));
    }
    if let Some(attachment) = &volume.attachment {
        lines.push(("incarnation", attachment.holder.incarnation.to_string()));
        lines.push(("granted", format_time(attachment.granted_at_ms)));
        match &attachment.proof {
            Some(proof) => lines.extend(proof_lines(proof)),
            None => lines.push(("proof", "none: the holder may write".to_owned())),
        }
    }
    for (key, value) in volume.parameters.to_volume_context() {
        lines.push(("parameter", format!("{key}={value}")));
    }
    for (key, value) in volume.mutable.to_pairs() {
        lines.push(("mutable", format!("{key}={value}")));
    }
    for orphan in orphans {
        let size = format_size(orphan.allocated_bytes);
        lines.push(("orphan", format!("{}, {size}, since {}", orphan.image.name, format_time(orphan.created_at_ms))));
    }
    if let Some(problem) = &volume.problem {
        lines.push(("problem", problem.clone()));
    }
    lines.iter().map(|(key, value)| format!("{key:<12} {}\n", printable(value))).collect()
}

/// One cell: who holds it, and whether that holder is cut off.
pub fn holder(attachment: Option<&Attachment>) -> String {
    match attachment {
        None => "-".to_owned(),
        Some(held) => {
            let fenced = if held.proof.is_some() { " (fenced)" } else { "" };
            let access = if held.read_only { " (read-only)" } else { "" };
            format!("{}{fenced}{access}", held.holder.node)
        }
    }
}

pub fn kind(kind: VolumeKind) -> String {
    match kind {
        VolumeKind::FileSystem(fs) => fs.to_string(),
        VolumeKind::Block => "block".to_owned(),
        VolumeKind::Directory => "directory".to_owned(),
    }
}

fn failover(volume: &Volume) -> &'static str {
    match volume.parameters.failover {
        Failover::On => "on",
        Failover::Off => "off: stays with its node until an administrator fences that",
    }
}

pub fn node_state(record: &NodeRecord) -> String {
    match &record.state {
        NodeState::Live => "live".to_owned(),
        NodeState::Fenced { actor, at_ms, powered_off } => {
            let how = if *powered_off { "declared off" } else { "fenced" };
            format!("{how} by {actor} at {}", format_time(*at_ms))
        }
    }
}

fn method(proof: &FenceProof) -> String {
    serde_json::to_value(proof.method).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// One line.
pub fn proof(proof: &FenceProof) -> String {
    format!("{} {}", method(proof), proof.evidence.join(", "))
}

fn proof_lines(proof: &FenceProof) -> Vec<(&'static str, String)> {
    let mut lines = vec![("proof", format!("{} by {} at {}", method(proof), proof.actor, format_time(proof.at_ms)))];
    if let Some(image) = &proof.fenced_image {
        lines
            .push(("fenced image", format!("{} (inode {}, generation {})", image.name, image.inode, image.generation)));
    }
    lines.extend(proof.evidence.iter().map(|evidence| ("evidence", evidence.clone())));
    lines
}
