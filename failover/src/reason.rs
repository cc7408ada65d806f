//! Why a node is fenced, why it is not, and what is said about it.

use serde::Serialize;
use std::fmt;

/// Why a node counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Neither the supervisor nor the storage sees it.
    Dead,
    /// The supervisor does not hear it; the storage sees it alive.
    Isolated,
    /// The supervisor does not hear it; the storage cannot tell.
    Unwitnessed,
    /// The orchestrator has given it up: workloads are to run elsewhere, whatever still lives there.
    GivenUp,
}

/// Why a lost node is not fenced, or a fenced one's workloads are not moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    Maintenance,
    /// The supervisor sees too few nodes: it may itself be cut off.
    SeesTooFew {
        seen: usize,
        of: usize,
    },
    StorageOutOfSight,
    /// It watches for less than the time that makes a suspicion.
    NewHere,
    TooManyAtOnce {
        under_way: usize,
    },
    /// The heartbeat alone is missing.
    StorageSeesItAlive,
    AgentAway,
    StorageCannotTell,
    /// No volume of the node moves by itself; why not.
    NothingMoves(String),
    /// The fence was tried and some volume has no proof; what the storage says.
    NoProof(String),
}

/// The reason of an orchestrator's event, in its style.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EventReason {
    FailoverStarted,
    FailoverResumed,
    NodeFenced,
    WorkloadsDeleted,
    FailoverCompleted,
    VolumesNotReattached,
    NodeReturned,
    FailoverRefused,
    ActionFailed,
    NodeFlapping,
    NodeLostStorage,
    SupervisorThawed,
}

/// Of what a refusal speaks.
pub(crate) enum Concerns {
    /// It goes away by itself.
    Moment,
    Node,
    Supervisor,
}

impl Refusal {
    pub(crate) fn concerns(&self) -> Concerns {
        match self {
            Self::NewHere | Self::TooManyAtOnce { .. } => Concerns::Moment,
            Self::SeesTooFew { .. } | Self::StorageOutOfSight => Concerns::Supervisor,
            Self::Maintenance
            | Self::StorageSeesItAlive
            | Self::AgentAway
            | Self::StorageCannotTell
            | Self::NothingMoves(_)
            | Self::NoProof(_) => Concerns::Node,
        }
    }

    /// Whether it is the same reason, whatever its numbers.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dead => "neither its agent nor the storage shows a sign of life",
            Self::Isolated => "its agent is not heard, though the storage sees it alive",
            Self::Unwitnessed => "its agent is not heard, and the storage cannot tell whether it lives",
            Self::GivenUp => "the orchestrator has given it up",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maintenance => f.write_str("it is in maintenance; end that, or fence it by hand: hawser fence NODE"),
            Self::SeesTooFew { seen, of } => {
                write!(f, "the supervisor sees {seen} of {of} nodes and may itself be cut off; check its network")
            }
            Self::StorageOutOfSight => f.write_str("the supervisor cannot read the storage; check it and the network"),
            Self::NewHere => f.write_str("the supervisor has not watched long enough to judge"),
            Self::TooManyAtOnce { under_way } => write!(f, "{under_way} failovers are under way; it waits for one to end"),
            Self::StorageSeesItAlive => f.write_str(
                "its agent is silent, but the storage sees it alive; restart its agent, set isolated_ms, or fence it by hand: hawser fence NODE",
            ),
            Self::AgentAway => f.write_str(
                "its machine answers, but its agent does not run; look at its driver, or fence it by hand: hawser fence NODE",
            ),
            Self::StorageCannotTell => f.write_str(
                "its agent is silent and the storage cannot tell whether it lives; set unwitnessed_ms, or fence it by hand: hawser fence NODE",
            ),
            Self::NothingMoves(why) => write!(f, "no volume of it moves by itself: {why}"),
            Self::NoProof(why) => write!(
                f,
                "without proof nothing moves: {why}; if the machine is off: hawser fence NODE --powered-off"
            ),
        }
    }
}
