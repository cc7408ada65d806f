//! `hawser node cordon`, `uncordon` and `drain`.

use super::objects::{self, MAINTENANCE, Node, PersistentVolume, Pod, resource};
use super::words;
use kube::api::{EvictParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// What a drain has done.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Drained {
    /// `namespace/name` of the pods that were asked to leave.
    pub evicted: Vec<String>,
    /// Left behind: those of DaemonSets would come again at once.
    pub left: Vec<String>,
}

const DRIVER: &str = "csi.hawser.dev";
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Nothing new is placed on the node, and it is not failed over.
pub async fn cordon(client: &Client, node: &str) -> Result<(), String> {
    let patch = json!({"metadata": {"annotations": {MAINTENANCE: "true"}}, "spec": {"unschedulable": true}});
    change(client, node, patch).await
}

pub async fn uncordon(client: &Client, node: &str) -> Result<(), String> {
    let patch = json!({"metadata": {"annotations": {MAINTENANCE: null}}, "spec": {"unschedulable": null}});
    change(client, node, patch).await
}

/// Cordons, then has the pods that use this driver's volumes evicted, and waits until they are gone. A
/// PodDisruptionBudget is respected: an eviction that it refuses is tried again until the limit.
pub async fn drain(client: &Client, node: &str, limit: Duration) -> Result<Drained, String> {
    cordon(client, node).await?;
    let began = Instant::now();
    let mut drained = Drained::default();
    let mut refused = String::new();
    loop {
        let pods = pods_with_our_volumes(client, node).await?;
        let (daemons, pods): (Vec<Pod>, Vec<Pod>) = pods.into_iter().partition(is_of_daemon_set);
        drained.left = daemons.iter().map(full_name).collect();
        if pods.is_empty() {
            return Ok(drained);
        }
        if began.elapsed() >= limit {
            let names: Vec<String> = pods.iter().map(full_name).collect();
            let why = if refused.is_empty() { String::new() } else { format!(" ({refused})") };
            return Err(format!(
                "node {node} is cordoned, but after {} s these pods are still there: {}{why}",
                limit.as_secs(),
                names.join(", ")
            ));
        }
        for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), namespace);
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            match api.evict(name, &EvictParams::default()).await {
                Ok(_) => drained.evicted.push(full_name(pod)),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(kube::Error::Api(status)) if status.code == 429 => refused = status.message,
                Err(error) => return Err(format!("{}: {}", full_name(pod), words(&error))),
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn change(client: &Client, node: &str, patch: serde_json::Value) -> Result<(), String> {
    let api: Api<Node> = Api::all_with(client.clone(), &resource("Node", "nodes"));
    let patched = api.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.map(drop).map_err(|error| words(&error))
}

async fn pods_with_our_volumes(client: &Client, node: &str) -> Result<Vec<Pod>, String> {
    let volumes: Api<PersistentVolume> =
        Api::all_with(client.clone(), &resource("PersistentVolume", "persistentvolumes"));
    let volumes = volumes.list(&ListParams::default()).await.map_err(|error| words(&error))?;
    let ours = volumes.items.iter().filter(|volume| volume.spec.csi.as_ref().is_some_and(|csi| csi.driver == DRIVER));
    let claims: HashSet<(String, String)> = ours
        .filter_map(|volume| volume.spec.claim_ref.as_ref())
        .map(|claim| (claim.namespace.clone(), claim.name.clone()))
        .collect();
    let pods: Api<Pod> = Api::all_with(client.clone(), &resource("Pod", "pods"));
    let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = pods.list(&here).await.map_err(|error| words(&error))?;
    let uses_ours = |pod: &Pod| {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        objects::claims(pod).into_iter().any(|claim| claims.contains(&(namespace.clone(), claim)))
    };
    Ok(pods.items.into_iter().filter(|pod| !objects::is_finished(pod) && uses_ours(pod)).collect())
}

fn is_of_daemon_set(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| owner.kind == "DaemonSet")
}

fn full_name(pod: &Pod) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}
