//! What the pool records of volumes, snapshots and nodes, and how it names images.

use crate::record::Record;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;
use volume::{
    Attachment, Epoch, GroupSnapshotId, Holder, ImageIdentity, MutableParameters, NodeId, NodeRecord, Parameters,
    SnapshotId, VolumeId, VolumeKind, VolumeName, VolumeSource,
};

/// `volumes/<id>/record.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    pub(crate) id: VolumeId,
    pub(crate) name: VolumeName,
    pub(crate) size_bytes: u64,
    pub(crate) kind: VolumeKind,
    pub(crate) thick: bool,
    pub(crate) source: Option<VolumeSource>,
    pub(crate) parameters: Parameters,
    #[serde(default)]
    pub(crate) mutable: MutableParameters,
    pub(crate) created_at_ms: u64,
    /// Of the latest grant; 0 before the first.
    pub(crate) epoch: Epoch,
    /// The current image; `None` for directory volumes.
    pub(crate) image: Option<ImageIdentity>,
    pub(crate) fs_uuid: Option<Uuid>,
    /// False only while the volume is as it was created empty: it has never been granted to a node that could write to it.
    pub(crate) staged: bool,
    pub(crate) attachment: Option<Attachment>,
    /// A detach looks for connections before it drops the grant: meanwhile none may be made.
    pub(crate) releasing: bool,
    /// On a network file system, where the loops of other machines cannot be seen: the holder has a connection.
    pub(crate) connected: bool,
    /// Holders that were cut off and have not been seen clean since.
    pub(crate) former: Vec<Former>,
    /// The volume is being removed: nothing may be granted, cloned or connected any more.
    pub(crate) deleting: bool,
}

/// A holder that was fenced, with the image it wrote to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Former {
    pub(crate) holder: Holder,
    pub(crate) epoch: Epoch,
    pub(crate) image: Option<ImageIdentity>,
    pub(crate) fenced_at_ms: u64,
}

/// `snapshots/<id>/record.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) id: SnapshotId,
    pub(crate) name: VolumeName,
    pub(crate) source: VolumeId,
    pub(crate) size_bytes: u64,
    pub(crate) kind: VolumeKind,
    pub(crate) created_at_ms: u64,
    pub(crate) image: Option<ImageIdentity>,
    pub(crate) deleting: bool,
}

/// `groups/<id>/record.*`: all that are in the group, each in a directory beside it as a snapshot's is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    pub(crate) id: GroupSnapshotId,
    pub(crate) name: VolumeName,
    /// In order. Which volume one is of follows from its id.
    pub(crate) members: Vec<SnapshotId>,
    pub(crate) created_at_ms: u64,
    pub(crate) deleting: bool,
}

/// `nodes/<id>/record.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct NodeRecordFile(pub(crate) NodeRecord);

impl Record for VolumeRecord {
    const WHAT: &'static str = "volume";
    const FORMAT: u32 = 2;
    const REMEDY: &'static str = "Make sure that no node uses this volume, then: hawser volume rebuild VOLUME";

    /// Format 1 had no `mutable`, which is then the default. So have descriptions on images that were made with it.
    fn upgrade(from: u32, record: Value) -> Option<Value> {
        (from == 1).then_some(record)
    }
}

impl Record for SnapshotRecord {
    const WHAT: &'static str = "snapshot";
    const FORMAT: u32 = 1;
    const REMEDY: &'static str = "Remove its files record.*: the driver makes the record again from the snapshot's image \
                                  when it starts next";
}

impl Record for GroupRecord {
    const WHAT: &'static str = "group snapshot";
    const FORMAT: u32 = 1;
    const REMEDY: &'static str = "Remove its files record.*: the driver makes the record again from the group's members \
                                  when it starts next";
}

impl Record for NodeRecordFile {
    const WHAT: &'static str = "node";
    const FORMAT: u32 = 1;
    const REMEDY: &'static str = "Stop the driver of this node, take its workloads down, remove this directory, and start \
                                  the driver: the node registers anew";
}

impl VolumeRecord {
    /// Who was granted `epoch`, as far as the record still knows.
    pub(crate) fn node_of(&self, epoch: Epoch) -> Option<&NodeId> {
        let current = self.attachment.iter().map(|a| (a.epoch, &a.holder.node));
        let former = self.former.iter().map(|f| (f.epoch, &f.holder.node));
        current.chain(former).find_map(|(of, node)| (of == epoch).then_some(node))
    }
}

/// The image that a volume is created with, or gets from a snapshot: `image.<epoch>`.
pub(crate) fn image_name(epoch: Epoch) -> String {
    format!("image.{:016x}", epoch.0)
}

/// A fork: `image.<epoch>.<random>`. Two fencers that race make one each, and the record names the winner's; a shared
/// name would let one remove what the other is about to record.
pub(crate) fn fork_name(epoch: Epoch) -> String {
    let (random, ..) = Uuid::new_v4().as_fields();
    format!("{}.{random:08x}", image_name(epoch))
}

/// What an image is called once a fork took its place.
pub(crate) fn orphan_name(image: &str) -> Option<String> {
    image_epoch(image)?;
    image.strip_prefix("image.").map(|rest| format!("orphan.{rest}"))
}

/// The epoch in the name of an image.
pub(crate) fn image_epoch(name: &str) -> Option<Epoch> {
    epoch_after(name, "image.")
}

/// The epoch in the name of an orphan.
pub(crate) fn orphan_epoch(name: &str) -> Option<Epoch> {
    epoch_after(name, "orphan.")
}

fn epoch_after(name: &str, prefix: &str) -> Option<Epoch> {
    let rest = name.strip_prefix(prefix)?;
    let (epoch, suffix) = rest.split_once('.').map_or((rest, None), |(epoch, suffix)| (epoch, Some(suffix)));
    let hex = |text: &str, digits| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !hex(epoch, 16) || suffix.is_some_and(|suffix| !hex(suffix, 8)) {
        return None;
    }
    u64::from_str_radix(epoch, 16).ok().map(Epoch)
}

/// Tells the loops of a pool from those of others on the same file system, whose volumes can have the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolTag(u32);

impl PoolTag {
    pub(crate) fn of(pool: &Uuid) -> Self {
        Self(pool.as_fields().0)
    }
}

/// The loop device's label: `v<32 hex>@<epoch>#<8 hex of the pool>`, at most the 63 bytes of lo_file_name.
pub(crate) fn loop_label(tag: PoolTag, id: &VolumeId, epoch: Epoch) -> String {
    format!("{}@{epoch}#{:08x}", short(id), tag.0)
}

/// The epoch of a loop device of this volume, by its label. One that names no pool may be of any.
pub(crate) fn label_epoch(tag: PoolTag, id: &VolumeId, label: &str) -> Option<Epoch> {
    let rest = label.strip_prefix(short(id))?.strip_prefix('@')?;
    let epoch = match rest.split_once('#') {
        None => rest,
        Some((epoch, of)) if of == format!("{:08x}", tag.0) => epoch,
        Some(_) => return None,
    };
    epoch.parse().ok().map(Epoch)
}

fn short(id: &VolumeId) -> &str {
    id.as_str().split_once('.').map_or(id.as_str(), |(_, short)| short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As format 1 wrote it.
    #[test]
    fn a_record_of_format_1_is_read() {
        let record = crate::testing::record("v");
        let mut old = serde_json::to_value(&record).unwrap();
        assert!(old.as_object_mut().unwrap().remove("mutable").is_some());
        let upgraded = VolumeRecord::upgrade(1, old).unwrap();
        assert_eq!(serde_json::from_value::<VolumeRecord>(upgraded).unwrap(), record);
        assert!(VolumeRecord::upgrade(0, json!({})).is_none());
    }

    #[test]
    fn names_and_labels_round_trip() {
        let id = VolumeId::parse("pool.v00112233445566778899aabbccddeeff").unwrap();
        let (tag, other) = (PoolTag(0xab), PoolTag(0xabcd_ef01));
        let label = loop_label(tag, &id, Epoch(u64::MAX));
        assert!(label.len() <= 63);
        assert_eq!(label_epoch(tag, &id, &label), Some(Epoch(u64::MAX)));
        assert_eq!(label_epoch(other, &id, &label), None);
        assert_eq!(label_epoch(tag, &id, &format!("{}@7", short(&id))), Some(Epoch(7)), "of before there were tags");
        for bad in ["vdead@1", "v00112233445566778899aabbccddeeff@1#", "v00112233445566778899aabbccddeeff@1#ab"] {
            assert_eq!(label_epoch(tag, &id, bad), None, "{bad}");
        }
        let fork = fork_name(Epoch(0x1f));
        assert_eq!(image_epoch(&fork), Some(Epoch(0x1f)));
        assert_eq!(orphan_epoch(&orphan_name(&fork).unwrap()), Some(Epoch(0x1f)));
        assert_eq!(image_epoch(&image_name(Epoch(3))), Some(Epoch(3)));
        for bad in ["image.1", "image.00000000000000zz", "image.0000000000000001.x", "orphan.0000000000000001"] {
            assert_eq!(image_epoch(bad), None, "{bad}");
        }
    }
}
