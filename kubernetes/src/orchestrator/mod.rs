//! The supervisor's adapter to Kubernetes. It asks the API server for nothing periodically but the lease: three watches keep
//! an index of nodes and pods, and everything else is written when a node is failed over.

mod attachments;
mod cluster;
mod events;
mod history;
mod lease;
mod maintenance;
mod objects;
mod taints;
mod watch;

#[cfg(test)]
mod tests;

pub use history::{Line, NodeStanding, Report, Standing, read as read_history};
pub use maintenance::{Drained, cordon, drain, uncordon};

use crate::names::Names;
use cluster::Cluster;
use events::{MAX_OBJECTS, Notice, Recorder};
use failover::{Clock, EventReason, HistoryEntry, Mailbox, NodeStatus, NodeView, Orchestrator, WorkloadId};
use history::Keeper;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};
use lease::Election;
use objects::{Node, Pod, resource};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, watch as stop};
use tokio::task::{JoinHandle, JoinSet};
use volume::{Incarnation, NodeId};

pub struct KubernetesOrchestrator {
    client: Client,
    names: Names,
    /// The pod's name: whom the lease names.
    replica: String,
    clock: Clock,
    known: Arc<Known>,
    events: Recorder,
    history: Keeper,
    writers: Mutex<JoinSet<()>>,
}

/// What several tasks know.
#[derive(Default)]
struct Known {
    cluster: Mutex<Cluster>,
    /// By node: whom its failover concerns, for events after the pods are gone.
    concerned: Mutex<HashMap<NodeId, Vec<ObjectReference>>>,
}

/// Deletions at the same time.
const AT_ONCE: usize = 16;

impl KubernetesOrchestrator {
    /// Asks nothing yet; `clock` is the runner's.
    pub fn new(client: Client, names: Names, replica: String, clock: Clock) -> Self {
        let (events, write_events) = Recorder::new(client.clone(), replica.clone());
        let (history, write_history) = Keeper::new(client.clone(), &names, replica.clone(), Arc::clone(&clock));
        let mut writers = JoinSet::new();
        writers.spawn(write_events);
        writers.spawn(write_history);
        let known = Arc::default();
        Self { client, names, replica, clock, known, events, history, writers: Mutex::new(writers) }
    }

    /// Follows the cluster, and stands for leadership until it is asked to stop. The task ends when the lease is released; it is
    /// to be waited for, so that another replica can lead at once.
    pub fn start(&self, mailbox: &Mailbox, stopping: stop::Receiver<bool>) -> JoinHandle<()> {
        let mut tasks = JoinSet::new();
        watch::start(&mut tasks, &self.client, &self.known, mailbox.clone());
        let clock = Arc::clone(&self.clock);
        let election = Election::new(self.client.clone(), &self.names, self.replica.clone(), clock, mailbox.clone());
        tokio::spawn(async move {
            let _watches = tasks;
            election.run(stopping).await;
        })
    }

    fn nodes(&self) -> Api<Node> {
        Api::all_with(self.client.clone(), &resource("Node", "nodes"))
    }

    /// Keeps whom events of this node are to reach; what it was stays when nothing is there any more.
    fn note_concerned(&self, node: &NodeId) {
        let references: Vec<ObjectReference> = {
            let cluster = self.known.cluster();
            let pods = cluster.pods_on(node).filter(|pod| cluster.claims_of(pod).next().is_some());
            let both = pods.flat_map(|pod| {
                let claims = cluster.claims_of(pod).map(|claim| {
                    reference("PersistentVolumeClaim", Some(&claim.namespace), &claim.name, claim.uid.as_deref())
                });
                std::iter::once(reference("Pod", Some(&pod.namespace), &pod.name, Some(&pod.uid))).chain(claims)
            });
            both.take(MAX_OBJECTS).collect()
        };
        if !references.is_empty() {
            self.known.concerned().insert(node.clone(), references);
        }
    }
}

impl Orchestrator for KubernetesOrchestrator {
    async fn look(&self, node: &NodeId) -> Result<NodeView, String> {
        self.note_concerned(node);
        let workloads = self.known.cluster().workloads(node)?;
        // The index is as old as its watch, which may not have come back yet where the lease has.
        let found = self.nodes().get_opt(node.as_str()).await.map_err(|error| words(&error))?;
        let node = found.as_ref().map_or_else(cluster::forgotten, cluster::state);
        Ok(NodeView { node, workloads })
    }

    async fn taint(&self, node: &NodeId, incarnation: Incarnation) -> Result<(), String> {
        let plan = |taints: &[objects::Taint]| taints::with_mark(taints, incarnation);
        taints::change(&self.nodes(), node.as_str(), plan).await
    }

    async fn evict(&self, node: &NodeId, workloads: &[WorkloadId]) -> Result<(), String> {
        self.note_concerned(node);
        let unmarked = self.known.cluster().volumes_without_node(node, workloads);
        // First: as long as the workloads are there, what failed is done again.
        if !unmarked.is_empty() {
            attachments::delete_of(&self.client, node.as_str(), &unmarked).await?;
        }
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut deletions = JoinSet::new();
        for WorkloadId(uid) in workloads {
            let Some(pod) = self.known.cluster().pod(uid).cloned() else { continue };
            let api: Api<Pod> = Api::namespaced_with(self.client.clone(), &pod.namespace, &resource("Pod", "pods"));
            let places = Arc::clone(&places);
            deletions.spawn(async move {
                let _place = places.acquire_owned().await;
                let found = delete(&api, &pod.name, &pod.uid).await;
                (pod, found)
            });
        }
        let mut failed = None;
        while let Some(deleted) = deletions.join_next().await {
            match deleted {
                Ok((pod, Ok(()))) => self.known.cluster().deleted_pod(&pod.uid),
                Ok((pod, Err(why))) => failed = Some(format!("pod {}/{}: {why}", pod.namespace, pod.name)),
                Err(error) => failed = Some(error.to_string()),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn untaint(&self, node: &NodeId, incarnation: Incarnation) -> Result<(), String> {
        let plan = |taints: &[objects::Taint]| Ok(taints::without_mark(taints, incarnation));
        taints::change(&self.nodes(), node.as_str(), plan).await
    }

    fn event(&self, node: Option<&NodeId>, reason: EventReason, text: &str) {
        let is_warning = !matches!(reason, EventReason::FailoverCompleted | EventReason::NodeReturned);
        let notice = |about, note| Notice { about, reason: format!("{reason:?}"), is_warning, note };
        let Some(node) = node else {
            let about = reference("Pod", Some(&self.names.namespace), &self.replica, None);
            self.events.say(notice(about, text.to_owned()));
            return;
        };
        let uid = self.known.cluster().uid_of_node(node.as_str()).cloned();
        self.events.say(notice(reference("Node", None, node.as_str(), uid.as_deref()), text.to_owned()));
        if concerns_workloads(reason) {
            if matches!(reason, EventReason::FailoverStarted | EventReason::FailoverRefused) {
                self.note_concerned(node);
            }
            let concerned = self.known.concerned().get(node).cloned().unwrap_or_default();
            for about in concerned {
                self.events.say(notice(about, format!("node {node}: {text}")));
            }
        }
        if reason == EventReason::NodeReturned {
            self.known.concerned().remove(node);
        }
    }

    fn record(&self, entry: &HistoryEntry) {
        self.history.line(entry);
    }

    fn status(&self, nodes: &[NodeStatus]) {
        self.history.standing(nodes);
    }
}

impl Drop for KubernetesOrchestrator {
    fn drop(&mut self) {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Known {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn concerned(&self) -> MutexGuard<'_, HashMap<NodeId, Vec<ObjectReference>>> {
        self.concerned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// At once, and only if it is the very object: a pod of the same name may run elsewhere by now. Gone is fine.
async fn delete<K: Clone + DeserializeOwned + Debug>(api: &Api<K>, name: &str, uid: &str) -> Result<(), String> {
    let only = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let params = DeleteParams::default().grace_period(0).preconditions(only);
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        // Conflict: another one has the name.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(words(&error)),
    }
}

fn concerns_workloads(reason: EventReason) -> bool {
    match reason {
        EventReason::FailoverStarted
        | EventReason::FailoverRefused
        | EventReason::NodeFenced
        | EventReason::WorkloadsDeleted
        | EventReason::FailoverCompleted
        | EventReason::VolumesNotReattached => true,
        EventReason::FailoverResumed
        | EventReason::NodeReturned
        | EventReason::ActionFailed
        | EventReason::NodeFlapping
        | EventReason::NodeLostStorage
        | EventReason::SupervisorThawed => false,
    }
}

fn reference(kind: &str, namespace: Option<&str>, name: &str, uid: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        uid: uid.map(str::to_owned),
        ..ObjectReference::default()
    }
}

/// What the API server said, or why it could not be asked.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API server refuses: {} ({})", status.message, status.code),
        other => {
            let mut text = format!("the API server cannot be asked: {other}");
            let mut cause = std::error::Error::source(other);
            while let Some(error) = cause {
                let more = error.to_string();
                if !text.contains(&more) {
                    text.push_str(": ");
                    text.push_str(&more);
                }
                cause = error.source();
            }
            text
        }
    }
}
