//! What an orchestrator is to the runner.

use crate::{EventReason, HistoryEntry, NodeStatus, OrchestratorNode, WorkloadId};
use std::future::Future;
use volume::{Incarnation, NodeId, VolumeId};

/// One orchestrator's adapter. What it learns by itself (how nodes are, the lease) it tells as [`crate::Told`]; this is
/// what it is asked to do. A failure is said in words: what was found and what to do.
pub trait Orchestrator: Send + Sync + 'static {
    /// How the orchestrator sees the node now: the node itself is asked for, whatever was told of it before.
    fn look(&self, node: &NodeId) -> impl Future<Output = Result<NodeView, String>> + Send;

    /// Marks the node out of service, with the incarnation as the mark's value. A node that the orchestrator has not is fine.
    fn taint(&self, node: &NodeId, incarnation: Incarnation) -> impl Future<Output = Result<(), String>> + Send;

    /// Deletes these workloads at once, each only if it is still the very one. Those that are gone are fine.
    fn evict(&self, node: &NodeId, workloads: &[WorkloadId]) -> impl Future<Output = Result<(), String>> + Send;

    /// Removes the mark if it is of that incarnation; fine when it is another or none.
    fn untaint(&self, node: &NodeId, incarnation: Incarnation) -> impl Future<Output = Result<(), String>> + Send;

    /// Tells the orchestrator's users. Never waits.
    fn event(&self, node: Option<&NodeId>, reason: EventReason, text: &str);

    /// Keeps a line of the history. Never waits.
    fn record(&self, entry: &HistoryEntry);

    /// Shows how things stand now. Called when that changes, by the leader alone. Never waits.
    fn status(&self, nodes: &[NodeStatus]);
}

/// A node as the orchestrator has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    pub node: OrchestratorNode,
    /// On the node, with volumes of this driver.
    pub workloads: Vec<Workload>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub id: WorkloadId,
    /// Of this driver, at least one.
    pub volumes: Vec<VolumeId>,
}
