//! What the supervisor is told and what it says.

use crate::{Cause, Config, EventReason, Refusal, Stage};
use serde::{Deserialize, Serialize};
use volume::{Incarnation, NodeId, VolumeId};

#[derive(Debug, Clone)]
pub enum Input {
    /// At least two in each `max_gap_ms`; the times in [`crate::Supervisor::next_due_ms`] are a good choice, too.
    Tick,
    /// The lease of leadership was won or renewed: it holds until then, counted from when the request was *sent*.
    LeaseHeld {
        until_ms: u64,
    },
    LeaseLost,
    Heartbeat(Heartbeat),
    /// The agent's connection; none proves anything, a lost one puts the node out of sight.
    Connection {
        node: NodeId,
        is_up: bool,
    },
    /// The storage was read. Sent with every look, after the changes that it showed.
    StorageSeen,
    /// The node's record in the storage, when first seen and when changed.
    Registered {
        node: NodeId,
        incarnation: Incarnation,
        is_fenced: bool,
    },
    /// The storage knows the node no more.
    Forgotten {
        node: NodeId,
    },
    Witness {
        node: NodeId,
        seen: Witness,
    },
    Orchestrator {
        node: NodeId,
        state: OrchestratorNode,
    },
    Answer {
        token: Token,
        answer: Answer,
    },
    Configure(Config),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// Grows within one incarnation, also across restarts of the agent (it starts from the boot clock, above 0), so an old
    /// message that arrives late is no sign of life.
    pub sequence: u64,
    pub state: AgentState,
    /// Whether the agent itself can reach the storage.
    pub sees_storage: bool,
}

/// How the node sees its own life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    Running,
    /// It found itself fenced and is taking away what it had.
    CleaningUp,
    /// It was fenced, took everything away, verified that nothing is left, and waits to be let in.
    Clean,
}

/// The second witness: whether the storage's side sees the node alive (its connection, its own mark in the storage).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    Silent,
    Active,
    /// Its machine answers that nobody listens there: the agent is being restarted or has ended, the network is well.
    AgentAway,
    CannotTell,
}

/// What the orchestrator says of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrchestratorNode {
    /// False when it has no such node (any more): one that was taken away for good is no node that the supervisor does not see.
    pub is_known: bool,
    /// False also when the orchestrator has forgotten the node.
    pub is_ready: bool,
    /// Cordoned or draining, or put into maintenance by an administrator.
    pub in_maintenance: bool,
    /// This driver's taint, with the incarnation that it was set for.
    pub taint: Option<Incarnation>,
}

/// Names one action; an answer to any but the newest of its node changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    pub(crate) node: usize,
    pub(crate) number: u64,
}

/// What the adapter does. Each may be repeated, overlap with an earlier try of itself, or come late: the
/// preconditions named here are checked by whom it is sent to, in the same step as the effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read the storage's record of the node, the volumes it holds, and the orchestrator's view. [`Answer::Observed`].
    Inspect,
    /// Fence the node in the storage if `incarnation` is still its record's. [`Answer::Fenced`].
    Fence { incarnation: Incarnation },
    /// Read from the storage, past any cache, what the fence left there. [`Answer::Observed`], the storage's part.
    ReadBack,
    /// Mark the node out of service in the orchestrator, with the incarnation as the mark's value.
    Taint { incarnation: Incarnation },
    /// Delete these workloads at once, each only if it is still the very one (UID).
    Evict { workloads: Vec<WorkloadId> },
    /// Read whether others hold these volumes now. [`Answer::Observed`], both parts.
    VerifyReattach { volumes: Vec<VolumeId> },
    /// Lift the storage's fence if `incarnation` is still its record's; the storage refuses while anything is left.
    Unfence { incarnation: Incarnation },
    /// Remove the mark if it is still of that incarnation.
    Untaint { incarnation: Incarnation },
}

impl Action {
    pub(crate) fn is_look(&self) -> bool {
        matches!(self, Self::Inspect | Self::VerifyReattach { .. })
    }
}

#[derive(Debug, Clone)]
pub enum Answer {
    Observed(View),
    Fenced(Vec<FenceResult>),
    Done,
    /// Nothing is known of what it did. The text says what was found and what to do.
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceResult {
    pub volume: VolumeId,
    /// `Err`: no proof, and why.
    pub proof: Result<(), String>,
}

/// One look at everything that a failover leaves traces in. All the supervisor decides, it decides on this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub storage: StorageView,
    pub orchestrator: Option<OrchestratorView>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageView {
    pub incarnation: Incarnation,
    pub is_fenced: bool,
    /// Whose records name the node as the holder, in any of its lives.
    pub volumes: Vec<VolumeView>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeView {
    pub id: VolumeId,
    /// The record has the proof that the node cannot write.
    pub is_proven: bool,
    /// Why it does not move by itself.
    pub stays: Option<Stays>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stays {
    /// By its StorageClass or by itself.
    OptedOut,
    /// Its backend cannot fence; in the backend's words.
    NoFence(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrchestratorView {
    /// Asked for at this look: what [`Input::Orchestrator`] told may be of before the supervisor was cut off.
    pub node: OrchestratorNode,
    /// Workloads on the node that use its volumes and move with them.
    pub workloads: Vec<WorkloadId>,
}

/// One instance of a workload: a pod's UID, an allocation's id. Never used again for another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkloadId(pub String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Suspect {
        node: NodeId,
        cause: Cause,
    },
    Clear {
        node: NodeId,
    },
    /// To be carried out after [`crate::Supervisor::confirm`] has agreed right before.
    Act {
        token: Token,
        node: NodeId,
        action: Action,
    },
    /// What stands in the way; said when it begins and again while it stands.
    Refuse {
        node: NodeId,
        why: Refusal,
    },
    Event {
        /// None: of the supervisor itself.
        node: Option<NodeId>,
        reason: EventReason,
        text: String,
    },
    Record(HistoryEntry),
}

/// A line of `hawser failover ls`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HistoryEntry {
    pub node: NodeId,
    /// Of the supervisor's own clock; the adapter adds the time of day.
    pub at_ms: u64,
    /// The stage that begins, and how long the one before took.
    pub stage: Stage,
    pub took_ms: u64,
    pub text: String,
}
