//! Watches pods and Nodes, and tells [`Agents`] whom to follow.

use crate::client::explain;
use crate::discovery::{Discovery, Picture, SeenNode, SeenPod};
use crate::mirror::Mirror;
use crate::names::{ADDRESS_ANNOTATION, Names};
use crate::trouble::Trouble;
use agent::{AgentAddress, Agents};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ApiResource, Object, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde::{Deserialize, Serialize};
use std::pin::pin;
use std::sync::Weak;
use tokio_stream::StreamExt;
use volume::Result;

/// Where the agent listens unless the pod says otherwise, by a port named so.
const DEFAULT_PORT: u16 = 9809;
const PORT_NAME: &str = "agent";

/// Of a pod what is read here. To decode all that a pod may have would be half a megabyte of the binary.
type AgentPod = Object<AgentPodSpec, AgentPodStatus>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AgentPodSpec {
    node_name: Option<String>,
    containers: Vec<Container>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Container {
    ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: String,
    container_port: u16,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AgentPodStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
}

/// Until the agents are dropped. While the API server is away, those last known are followed.
pub async fn follow_pods(client: Client, names: Names, agents: Weak<Agents>) {
    let selector = names.agent_selector();
    let pods: Api<AgentPod> = Api::namespaced_with(client.clone(), &names.namespace, &ApiResource::erase::<Pod>(&()));
    // Of a Node only its name and annotations: its status is large and changes all the time.
    let nodes: Api<PartialObjectMeta<Node>> = Api::all(client);
    let mut pod_events = pin!(watcher(pods, watcher::Config::default().labels(&selector)).default_backoff());
    let mut node_events = pin!(watcher(nodes.clone(), watcher::Config::default()).default_backoff());
    let (mut seen_pods, mut seen_nodes) = (Mirror::default(), Mirror::default());
    let mut discovery = Discovery::default();
    let (mut pod_trouble, mut node_trouble) = (Trouble::new("pods"), Trouble::new("Nodes"));
    loop {
        let is_changed = tokio::select! {
            Some(event) = pod_events.next() => {
                pod_trouble.heard(event).is_some_and(|event| seen_pods.take(event, seen_pod))
            }
            Some(event) = node_events.next() => {
                node_trouble.heard(event).is_some_and(|event| seen_nodes.take(event, seen_node))
            }
            else => return,
        };
        let (Some(pods), Some(known)) = (seen_pods.listed(), seen_nodes.listed()) else { continue };
        if !is_changed {
            continue;
        }
        let Picture { follow, awaited, notes } = discovery.look(pods, known, &selector);
        let Some(agents) = agents.upgrade() else { return };
        agents.follow(&follow);
        agents.expect(awaited);
        for note in notes {
            if let Err(error) = note_address(&nodes, &note).await {
                let missing = "a controller that starts while the node's pod is away will not know of it";
                tracing::warn!(error = error.chain(), "{missing}");
                // The others would fail alike, and are tried again with the next change.
                break;
            }
        }
    }
}

/// For controllers that start while the pod is away.
async fn note_address(nodes: &Api<PartialObjectMeta<Node>>, note: &AgentAddress) -> Result<()> {
    let patch = serde_json::json!({"metadata": {"annotations": {ADDRESS_ANNOTATION: note.address}}});
    let patched = nodes.patch(note.node.as_str(), &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.map(drop).map_err(|error| explain(&format!("note the agent's address at the Node {}", note.node), error))
}

fn seen_pod(pod: &AgentPod) -> SeenPod {
    let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
    let port = ports.filter(|port| port.name == PORT_NAME).map(|port| port.container_port).next();
    let ip = pod.status.as_ref().map(|status| status.pod_ip.as_str()).filter(|ip| !ip.is_empty());
    let is_running = pod.status.as_ref().is_some_and(|status| status.phase == "Running");
    SeenPod {
        node: pod.spec.node_name.clone(),
        address: ip.map(|ip| join(ip, port.unwrap_or(DEFAULT_PORT))),
        is_current: is_running && pod.metadata.deletion_timestamp.is_none(),
        created: pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
    }
}

fn join(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn seen_node(node: &PartialObjectMeta<Node>) -> SeenNode {
    node.annotations().get(ADDRESS_ANNOTATION).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_pod_has_its_agent() {
        let pod = |value: serde_json::Value| seen_pod(&serde_json::from_value(value).unwrap());
        let fresh = pod(serde_json::json!({"metadata": {"name": "a"}, "spec": {"containers": []}}));
        assert_eq!(fresh, SeenPod::default());
        let running = pod(serde_json::json!({
            "metadata": {"name": "a", "creationTimestamp": "1970-01-01T00:00:07Z"},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [
                {"name": "metrics", "containerPort": 1}, {"name": "agent", "containerPort": 2}]}]},
            "status": {"phase": "Running", "podIP": "fd00::1"},
        }));
        assert_eq!((running.address.as_deref(), running.is_current), (Some("[fd00::1]:2"), true));
        assert_eq!((running.node.as_deref(), running.created), (Some("n1"), 7));
        let going = pod(serde_json::json!({
            "metadata": {"name": "a", "deletionTimestamp": "1970-01-01T00:00:07Z"},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        }));
        assert_eq!((going.address.as_deref(), going.is_current), (Some("10.0.0.1:9809"), false));
    }
}
