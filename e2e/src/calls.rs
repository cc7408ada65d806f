//! Requests, made from the names of volumes: ids follow from names.

use crate::client::Call;
use crate::lab::Lab;
use csi_proto::csi;
use csi_proto::csi::volume_capability::access_mode::Mode;
use csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use std::collections::BTreeMap;
use volume::{BackendName, GroupSnapshotId, SnapshotId, VolumeId, VolumeName};

pub(crate) const MIB: i64 = 1 << 20;

/// How a test's volume is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Ext4,
    Xfs,
    Block,
    Directory,
}

/// One volume of a test, in the lab where its node mounts it.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) access: Access,
    pub(crate) size_bytes: i64,
    pub(crate) source: Option<Type>,
}

impl Access {
    pub(crate) fn capability(self) -> csi::VolumeCapability {
        let mount =
            |fs_type: &str| AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() });
        let (access_type, mode) = match self {
            Self::Ext4 => (mount("ext4"), Mode::SingleNodeWriter),
            Self::Xfs => (mount("xfs"), Mode::SingleNodeWriter),
            Self::Block => (AccessType::Block(BlockVolume {}), Mode::SingleNodeWriter),
            Self::Directory => (mount(""), Mode::MultiNodeMultiWriter),
        };
        csi::VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type: Some(access_type) }
    }
}

impl Subject {
    pub(crate) fn new(name: impl Into<String>, access: Access) -> Self {
        // The smallest xfs has 300 MiB.
        let size_bytes = if access == Access::Xfs { 320 * MIB } else { 32 * MIB };
        Self { name: name.into(), access, size_bytes, source: None }
    }

    pub(crate) fn restored_from(mut self, snapshot: &str) -> Self {
        self.source = Some(Type::Snapshot(SnapshotSource { snapshot_id: snapshot_id(snapshot) }));
        self
    }

    pub(crate) fn cloned_from(mut self, volume: &Self) -> Self {
        self.source = Some(Type::Volume(VolumeSource { volume_id: volume.id() }));
        self
    }

    pub(crate) fn id(&self) -> String {
        volume_id(&self.name)
    }

    pub(crate) fn staging(&self, lab: &Lab, node: &str) -> String {
        lab.path("staging").join(node).join(&self.name).to_string_lossy().into_owned()
    }

    pub(crate) fn target(&self, lab: &Lab, node: &str) -> String {
        lab.path("published").join(node).join(&self.name).join("target").to_string_lossy().into_owned()
    }

    pub(crate) fn create(&self) -> Call {
        Call::CreateVolume(csi::CreateVolumeRequest {
            name: self.name.clone(),
            capacity_range: Some(csi::CapacityRange { required_bytes: self.size_bytes, limit_bytes: 0 }),
            volume_capabilities: vec![self.access.capability()],
            volume_content_source: self.source.clone().map(|r#type| csi::VolumeContentSource { r#type: Some(r#type) }),
            ..csi::CreateVolumeRequest::default()
        })
    }

    pub(crate) fn delete(&self) -> Call {
        Call::DeleteVolume(csi::DeleteVolumeRequest { volume_id: self.id(), secrets: BTreeMap::new() })
    }

    pub(crate) fn attach(&self, node: &str) -> Call {
        Call::ControllerPublish(csi::ControllerPublishVolumeRequest {
            volume_id: self.id(),
            node_id: node.to_owned(),
            volume_capability: Some(self.access.capability()),
            ..csi::ControllerPublishVolumeRequest::default()
        })
    }

    pub(crate) fn detach(&self, node: &str) -> Call {
        Call::ControllerUnpublish(csi::ControllerUnpublishVolumeRequest {
            volume_id: self.id(),
            node_id: node.to_owned(),
            ..csi::ControllerUnpublishVolumeRequest::default()
        })
    }

    pub(crate) fn expand(&self, size_bytes: i64) -> Call {
        Call::ControllerExpand(csi::ControllerExpandVolumeRequest {
            volume_id: self.id(),
            capacity_range: Some(csi::CapacityRange { required_bytes: size_bytes, limit_bytes: 0 }),
            volume_capability: Some(self.access.capability()),
            ..csi::ControllerExpandVolumeRequest::default()
        })
    }

    pub(crate) fn modify(&self, pairs: &[(&str, &str)]) -> Call {
        Call::ControllerModify(csi::ControllerModifyVolumeRequest {
            volume_id: self.id(),
            mutable_parameters: pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
            secrets: BTreeMap::new(),
        })
    }

    pub(crate) fn snapshot(&self, name: &str) -> Call {
        Call::CreateSnapshot(csi::CreateSnapshotRequest {
            source_volume_id: self.id(),
            name: name.to_owned(),
            ..csi::CreateSnapshotRequest::default()
        })
    }

    /// Without a publish_context: the driver must do without, as some orchestrators drop it.
    pub(crate) fn stage(&self, lab: &Lab, node: &str) -> Call {
        Call::NodeStage(csi::NodeStageVolumeRequest {
            volume_id: self.id(),
            staging_target_path: self.staging(lab, node),
            volume_capability: Some(self.access.capability()),
            ..csi::NodeStageVolumeRequest::default()
        })
    }

    pub(crate) fn unstage(&self, lab: &Lab, node: &str) -> Call {
        Call::NodeUnstage(csi::NodeUnstageVolumeRequest {
            volume_id: self.id(),
            staging_target_path: self.staging(lab, node),
        })
    }

    pub(crate) fn publish(&self, lab: &Lab, node: &str) -> Call {
        Call::NodePublish(csi::NodePublishVolumeRequest {
            volume_id: self.id(),
            staging_target_path: self.staging(lab, node),
            target_path: self.target(lab, node),
            volume_capability: Some(self.access.capability()),
            ..csi::NodePublishVolumeRequest::default()
        })
    }

    /// As Swarm publishes: nothing is staged.
    pub(crate) fn publish_unstaged(&self, lab: &Lab, node: &str) -> Call {
        match self.publish(lab, node) {
            Call::NodePublish(request) => {
                Call::NodePublish(csi::NodePublishVolumeRequest { staging_target_path: String::new(), ..request })
            }
            other => other,
        }
    }

    pub(crate) fn unpublish(&self, lab: &Lab, node: &str) -> Call {
        Call::NodeUnpublish(csi::NodeUnpublishVolumeRequest {
            volume_id: self.id(),
            target_path: self.target(lab, node),
        })
    }

    pub(crate) fn node_expand(&self, lab: &Lab, node: &str) -> Call {
        Call::NodeExpand(csi::NodeExpandVolumeRequest {
            volume_id: self.id(),
            volume_path: self.target(lab, node),
            staging_target_path: self.staging(lab, node),
            volume_capability: Some(self.access.capability()),
            ..csi::NodeExpandVolumeRequest::default()
        })
    }
}

pub(crate) fn delete_snapshot(name: &str) -> Call {
    Call::DeleteSnapshot(csi::DeleteSnapshotRequest { snapshot_id: snapshot_id(name), secrets: BTreeMap::new() })
}

/// Of `volumes`, in whatever order.
pub(crate) fn create_group(name: &str, volumes: &[Subject]) -> Call {
    Call::CreateGroup(csi::CreateVolumeGroupSnapshotRequest {
        name: name.to_owned(),
        source_volume_ids: volumes.iter().map(Subject::id).collect(),
        ..csi::CreateVolumeGroupSnapshotRequest::default()
    })
}

pub(crate) fn delete_group(name: &str, volumes: &[Subject]) -> Call {
    Call::DeleteGroup(csi::DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: group_id(name),
        snapshot_ids: volumes.iter().map(|volume| member_id(name, &volume.name)).collect(),
        ..csi::DeleteVolumeGroupSnapshotRequest::default()
    })
}

pub(crate) fn volume_id(name: &str) -> String {
    of_name(name, |backend, name| VolumeId::of_name(backend, name).to_string())
}

pub(crate) fn snapshot_id(name: &str) -> String {
    of_name(name, |backend, name| SnapshotId::of_name(backend, name).to_string())
}

pub(crate) fn group_id(name: &str) -> String {
    of_name(name, |backend, name| GroupSnapshotId::of_name(backend, name).to_string())
}

pub(crate) fn member_id(group: &str, volume: &str) -> String {
    match (GroupSnapshotId::parse(&group_id(group)), VolumeId::parse(&volume_id(volume))) {
        (Ok(group), Ok(volume)) => SnapshotId::of_member(&group, &volume).to_string(),
        _ => format!("no member {volume:?} of {group:?}"),
    }
}

/// Names of tests are usable; anything else shows as an id that nobody has.
fn of_name(name: &str, id: impl Fn(&BackendName, &VolumeName) -> String) -> String {
    match (BackendName::parse("pool"), VolumeName::parse(name)) {
        (Ok(backend), Ok(name)) => id(&backend, &name),
        _ => format!("no id for {name:?}"),
    }
}
