//! A sign of life as the controller hears it, and what else becomes known of a node's agent.

use crate::proto::{self, Heartbeat};
use volume::{Incarnation, NodeId, NodeIdentity};

/// Told of one node, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The agent is connected and verified; its first heartbeat follows. Told again, with nothing lost, after a certificate was
    /// renewed.
    Connected,
    Heartbeat(Beat),
    /// The connection that was there is lost.
    Lost {
        why: String,
    },
    /// An attempt to connect was refused by the machine itself (ECONNREFUSED): its kernel lives, and only its agent is away.
    /// Told after every such attempt, every few seconds for as long as that is so.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// `None` while the node does not know it yet.
    pub incarnation: Option<Incarnation>,
    pub boot_id: String,
    /// Grows within one incarnation, across restarts of the agent too, and is above 0.
    pub sequence: u64,
    pub state: LifeState,
    /// Whether all backends of the node can be used there.
    pub sees_storage: bool,
    pub is_ready: bool,
    /// Why it is not ready; empty when all is well.
    pub problem: String,
}

/// Who a node is, and how it sees its own life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    pub identity: NodeIdentity,
    pub state: LifeState,
    /// Why it is not in use, if it is not.
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifeState {
    Running,
    /// It found itself fenced and takes away what it had.
    CleaningUp,
    /// It was fenced, took everything away, verified that nothing is left, and waits to be let in.
    Clean,
}

/// Whoever wants to know; called by the tasks of the connections, so it must not block and not call the [`crate::Agents`].
pub(crate) type Listener = dyn Fn(&NodeId, News) + Send + Sync;

impl From<NodeIdentity> for Life {
    fn from(identity: NodeIdentity) -> Self {
        Self { identity, state: LifeState::Running, problem: None }
    }
}

impl From<LifeState> for proto::LifeState {
    fn from(state: LifeState) -> Self {
        match state {
            LifeState::Running => Self::Running,
            LifeState::CleaningUp => Self::CleaningUp,
            LifeState::Clean => Self::Clean,
        }
    }
}

impl Beat {
    pub(crate) fn of(heartbeat: &Heartbeat) -> Self {
        let state = match heartbeat.state() {
            proto::LifeState::CleaningUp => LifeState::CleaningUp,
            proto::LifeState::Clean => LifeState::Clean,
            proto::LifeState::Running | proto::LifeState::Unspecified => LifeState::Running,
        };
        Self {
            incarnation: Incarnation::parse(&heartbeat.incarnation).ok(),
            boot_id: heartbeat.boot_id.clone(),
            sequence: heartbeat.sequence,
            state,
            sees_storage: heartbeat.backends.iter().all(|backend| backend.usable),
            is_ready: heartbeat.ready,
            problem: heartbeat.problem.clone(),
        }
    }
}
