//! What is known of the cluster: nodes, and the pods that use this driver's volumes, by node. Fed by watches, so a failover
//! asks the API server for no list.

use super::objects::{MAINTENANCE, Node, PersistentVolume, Pod, claims, is_finished};
use failover::{OrchestratorNode, Workload, WorkloadId};
use std::collections::{BTreeSet, HashMap, HashSet};
use volume::{NodeId, VolumeId};

/// As in `CSIDriver` and PersistentVolumes.
const DRIVER: &str = "csi.hawser.dev";

#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// The UID by name.
    nodes: HashMap<String, String>,
    /// By UID; only those with claims.
    pods: HashMap<String, KnownPod>,
    on_node: HashMap<String, BTreeSet<String>>,
    /// Deleted by us; what a watch still tells of them is of before.
    deleted: HashSet<String>,
    /// By the PersistentVolume's name.
    volumes: HashMap<String, Claim>,
    /// By the claim's namespace and name.
    by_claim: HashMap<(String, String), Claim>,
    has_nodes: bool,
    has_pods: bool,
    has_volumes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownPod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    node: String,
    claims: Vec<String>,
    /// Deleted at once already: only finalizers hold it.
    is_deleted: bool,
}

/// A claim that is bound to a volume of this driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Option<String>,
    volume: VolumeId,
}

impl Cluster {
    /// On the node, with volumes of this driver.
    pub(super) fn workloads(&self, node: &NodeId) -> Result<Vec<Workload>, String> {
        if !(self.has_nodes && self.has_pods && self.has_volumes) {
            return Err("the cluster's nodes, pods and volumes have not all been listed yet".to_owned());
        }
        let workload = |pod: &KnownPod| {
            let volumes: Vec<VolumeId> = self.claims_of(pod).map(|claim| claim.volume.clone()).collect();
            (!volumes.is_empty()).then(|| Workload { id: WorkloadId(pod.uid.clone()), volumes })
        };
        Ok(self.pods_on(node).filter(|pod| !pod.is_deleted).filter_map(workload).collect())
    }

    pub(super) fn uid_of_node(&self, name: &str) -> Option<&String> {
        self.nodes.get(name)
    }

    pub(super) fn pod(&self, uid: &str) -> Option<&KnownPod> {
        self.pods.get(uid)
    }

    /// With claims; whether these are of this driver is another question.
    pub(super) fn pods_on(&self, node: &NodeId) -> impl Iterator<Item = &KnownPod> {
        let uids = self.on_node.get(node.as_str());
        uids.into_iter().flatten().filter_map(|uid| self.pods.get(uid))
    }

    pub(super) fn claims_of<'a>(&'a self, pod: &'a KnownPod) -> impl Iterator<Item = &'a Claim> {
        let key = |claim: &String| (pod.namespace.clone(), claim.clone());
        pod.claims.iter().filter_map(move |claim| self.by_claim.get(&key(claim)))
    }

    /// The PersistentVolumes of these pods, when their node has no object (any more).
    pub(super) fn volumes_without_node(&self, node: &NodeId, pods: &[WorkloadId]) -> HashSet<String> {
        if self.nodes.contains_key(node.as_str()) {
            return HashSet::new();
        }
        let pods = pods.iter().filter_map(|WorkloadId(uid)| self.pods.get(uid));
        let claims: Vec<&Claim> = pods.flat_map(|pod| self.claims_of(pod)).collect();
        self.volumes.iter().filter(|(_, claim)| claims.contains(claim)).map(|(name, _)| name.clone()).collect()
    }

    /// What is to be told.
    pub(super) fn apply_node(&mut self, node: &Node) -> Option<(NodeId, OrchestratorNode)> {
        let name = node.metadata.name.clone().unwrap_or_default();
        let id = NodeId::parse(&name).ok();
        self.nodes.insert(name, node.metadata.uid.clone().unwrap_or_default());
        id.map(|id| (id, state(node)))
    }

    pub(super) fn delete_node(&mut self, name: &str) -> Option<(NodeId, OrchestratorNode)> {
        self.nodes.remove(name)?;
        Some((NodeId::parse(name).ok()?, forgotten()))
    }

    /// The whole list; what is to be told.
    pub(super) fn list_nodes(&mut self, nodes: &[Node]) -> Vec<(NodeId, OrchestratorNode)> {
        let names: HashSet<&str> = nodes.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
        let gone: Vec<String> = self.nodes.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        let mut changed: Vec<_> = gone.iter().filter_map(|name| self.delete_node(name)).collect();
        changed.extend(nodes.iter().filter_map(|node| self.apply_node(node)));
        self.has_nodes = true;
        changed
    }

    pub(super) fn apply_pod(&mut self, pod: &Pod) {
        let Some(known) = known_pod(pod) else {
            if let Some(uid) = &pod.metadata.uid {
                self.delete_pod(uid);
            }
            return;
        };
        if self.deleted.contains(&known.uid) {
            return;
        }
        // A pod stays on the node that it was bound to.
        self.on_node.entry(known.node.clone()).or_default().insert(known.uid.clone());
        self.pods.insert(known.uid.clone(), known);
    }

    pub(super) fn delete_pod(&mut self, uid: &str) {
        self.deleted.remove(uid);
        self.remove_pod(uid);
    }

    /// We have deleted it.
    pub(super) fn deleted_pod(&mut self, uid: &str) {
        if self.pods.contains_key(uid) {
            self.deleted.insert(uid.to_owned());
            self.remove_pod(uid);
        }
    }

    pub(super) fn list_pods(&mut self, pods: &[Pod]) {
        self.pods.clear();
        self.on_node.clear();
        let listed: HashSet<&str> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        self.deleted.retain(|uid| listed.contains(uid.as_str()));
        pods.iter().for_each(|pod| self.apply_pod(pod));
        self.has_pods = true;
    }

    pub(super) fn apply_volume(&mut self, volume: &PersistentVolume) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let claim = claim(volume);
        if self.volumes.get(&name) == claim.as_ref() {
            return;
        }
        self.delete_volume(&name);
        if let Some(claim) = claim {
            self.by_claim.insert((claim.namespace.clone(), claim.name.clone()), claim.clone());
            self.volumes.insert(name, claim);
        }
    }

    pub(super) fn delete_volume(&mut self, name: &str) {
        if let Some(gone) = self.volumes.remove(name) {
            let key = (gone.namespace.clone(), gone.name.clone());
            // A claim of that name may be bound to another volume by now.
            if self.by_claim.get(&key) == Some(&gone) {
                self.by_claim.remove(&key);
            }
        }
    }

    pub(super) fn list_volumes(&mut self, volumes: &[PersistentVolume]) {
        self.volumes.clear();
        self.by_claim.clear();
        volumes.iter().for_each(|volume| self.apply_volume(volume));
        self.has_volumes = true;
    }

    fn remove_pod(&mut self, uid: &str) {
        if let Some(pod) = self.pods.remove(uid)
            && let Some(here) = self.on_node.get_mut(&pod.node)
        {
            here.remove(uid);
            if here.is_empty() {
                self.on_node.remove(&pod.node);
            }
        }
    }
}

pub(super) fn state(node: &Node) -> OrchestratorNode {
    let conditions = node.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let annotations = node.metadata.annotations.as_ref();
    OrchestratorNode {
        is_known: true,
        is_ready: conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True"),
        in_maintenance: annotations.is_some_and(|annotations| annotations.contains_key(MAINTENANCE)),
        taint: node.spec.taints.iter().find_map(|taint| taint.incarnation()),
    }
}

/// `kubectl delete node`: whatever ran there is to run elsewhere.
pub(super) fn forgotten() -> OrchestratorNode {
    OrchestratorNode { is_known: false, is_ready: false, in_maintenance: false, taint: None }
}

/// `None` for one that uses nothing of ours: it has no claims, no node yet, or has ended.
fn known_pod(pod: &Pod) -> Option<KnownPod> {
    let claims = claims(pod);
    let node = pod.spec.node_name.clone().filter(|name| !name.is_empty())?;
    if claims.is_empty() || is_finished(pod) {
        return None;
    }
    let meta = &pod.metadata;
    Some(KnownPod {
        namespace: meta.namespace.clone()?,
        name: meta.name.clone()?,
        uid: meta.uid.clone()?,
        node,
        claims,
        is_deleted: meta.deletion_timestamp.is_some() && meta.deletion_grace_period_seconds == Some(0),
    })
}

fn claim(volume: &PersistentVolume) -> Option<Claim> {
    let csi = volume.spec.csi.as_ref().filter(|csi| csi.driver == DRIVER)?;
    let claim = volume.spec.claim_ref.as_ref()?;
    Some(Claim {
        namespace: claim.namespace.clone(),
        name: claim.name.clone(),
        uid: claim.uid.clone(),
        volume: VolumeId::parse(&csi.volume_handle).ok()?,
    })
}
