//! Of the cluster's objects what the supervisor reads, and no more: a watch of all pods decodes each one.

use kube::api::{ApiResource, Object};
use kube::core::GroupVersionKind;
use serde::{Deserialize, Serialize};
use volume::Incarnation;

pub(super) type Node = Object<NodeSpec, NodeStatus>;
pub(super) type Pod = Object<PodSpec, PodStatus>;
pub(super) type PersistentVolume = Object<PersistentVolumeSpec, NoStatus>;
pub(super) type VolumeAttachment = Object<VolumeAttachmentSpec, NoStatus>;

/// Set by `hawser node cordon`: the node is never fenced.
pub(super) const MAINTENANCE: &str = "hawser.dev/maintenance";
/// What makes Kubernetes detach the volumes of a node without asking its kubelet.
pub(super) const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeSpec {
    pub(super) taints: Vec<Taint>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Taint {
    pub(super) key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
    pub(super) effect: String,
    /// Others' taints are written back as they are.
    #[serde(flatten)]
    pub(super) rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct NodeStatus {
    pub(super) conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub(super) node_name: Option<String>,
    pub(super) volumes: Vec<PodVolume>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodVolume {
    pub(super) name: String,
    pub(super) persistent_volume_claim: Option<ClaimSource>,
    /// A claim of the pod's own, named after both.
    pub(super) ephemeral: Option<Present>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ClaimSource {
    pub(super) claim_name: String,
}

/// Whatever is in it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Present {}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct PodStatus {
    pub(super) phase: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PersistentVolumeSpec {
    pub(super) csi: Option<CsiSource>,
    pub(super) claim_ref: Option<ClaimReference>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CsiSource {
    pub(super) driver: String,
    pub(super) volume_handle: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ClaimReference {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeAttachmentSpec {
    pub(super) node_name: String,
    pub(super) source: VolumeAttachmentSource,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeAttachmentSource {
    pub(super) persistent_volume_name: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct NoStatus {}

impl Taint {
    /// Of whose life it is, when it is one of ours: an administrator's has another value.
    pub(super) fn incarnation(&self) -> Option<Incarnation> {
        let value = self.value.as_deref().filter(|_| self.key == OUT_OF_SERVICE)?;
        Incarnation::parse(value).ok()
    }
}

/// The names of a pod's claims; in its own namespace.
pub(super) fn claims(pod: &Pod) -> Vec<String> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let claim = |volume: &PodVolume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{pod_name}-{}", volume.name)),
        (None, None) => None,
    };
    pod.spec.volumes.iter().filter_map(claim).collect()
}

pub(super) fn is_finished(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Succeeded" | "Failed"))
}

pub(super) fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
}
