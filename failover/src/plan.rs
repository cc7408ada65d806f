//! The order of a failover as one pure function of what is seen. It remembers nothing, so a supervisor that takes over in the middle
//! goes on where the traces end: fence and read back, mark, delete, verify; later clean-up, unfence, unmark.

use crate::{
    Action, AgentState, Cause, OrchestratorNode, OrchestratorView, Refusal, Stage, Stays, StorageView, VolumeView,
};
use volume::VolumeId;

/// What is known beside the look itself.
#[derive(Debug)]
pub(crate) struct Situation {
    /// `Err`: lost, but it may not be fenced now.
    pub(crate) cause: Option<Result<Cause, Refusal>>,
    /// The agent of the life that the storage records is heard: its state, and whether steadily for long enough.
    pub(crate) heard: Option<(AgentState, bool)>,
    /// What the last fence said of volumes that it could not fence.
    pub(crate) no_proof: Option<String>,
    /// The storage has just confirmed that nothing of an earlier life is left.
    pub(crate) is_verified_clean: bool,
}

impl Situation {
    /// What the orchestrator says at this look overrules what it told before, in favour of the node: a supervisor that was cut
    /// off from it may get the lease sooner than the news. Whether there was anything to overrule.
    pub(crate) fn heed(&mut self, node: &OrchestratorNode) -> bool {
        match self.cause {
            Some(Ok(_)) if node.in_maintenance => self.cause = Some(Err(Refusal::Maintenance)),
            Some(Ok(Cause::GivenUp)) if node.is_ready => self.cause = None,
            _ => return false,
        }
        true
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    Act(Stage, Action),
    Wait(Stage),
    Refuse(Refusal),
    Close,
}

pub(crate) fn plan(storage: &StorageView, orchestrator: &OrchestratorView, situation: &Situation) -> Next {
    let incarnation = storage.incarnation;
    if storage.is_fenced {
        return match situation.heard {
            // A fence that was cut short is finished first: no storage lets a node in that still holds something.
            Some((AgentState::Clean, true)) if is_fence_complete(storage) => {
                Next::Act(Stage::Unfencing, Action::Unfence { incarnation })
            }
            Some((AgentState::Clean, true)) => plan_fence(storage, situation),
            Some((AgentState::Clean, false)) => Next::Wait(Stage::Returning),
            _ => plan_moves(storage, orchestrator, situation),
        };
    }
    match &situation.cause {
        None => plan_return(storage, orchestrator, situation),
        Some(Err(refusal)) => Next::Refuse(refusal.clone()),
        Some(Ok(_)) if orchestrator.workloads.is_empty() && moving(storage).next().is_none() => {
            // A mark that an earlier failover left stays until the node is back. Of one that is gone there is nothing to say.
            match orchestrator.node.taint {
                None if !orchestrator.node.is_known && storage.volumes.is_empty() => Next::Wait(Stage::AwaitingReturn),
                Some(_) => Next::Wait(Stage::AwaitingReturn),
                None => Next::Refuse(Refusal::NothingMoves(why_nothing_moves(&storage.volumes))),
            }
        }
        // When every volume has its proof, the fenced life is over and the agent has begun another one, on a node that
        // the orchestrator has given up: a second fence would only make it begin a third.
        Some(Ok(_)) => plan_moves(storage, orchestrator, situation),
    }
}

fn plan_moves(storage: &StorageView, orchestrator: &OrchestratorView, situation: &Situation) -> Next {
    let incarnation = storage.incarnation;
    if moving(storage).any(|volume| !volume.is_proven) {
        return plan_fence(storage, situation);
    }
    if orchestrator.node.is_known && orchestrator.node.taint != Some(incarnation) {
        return Next::Act(Stage::Tainting, Action::Taint { incarnation });
    }
    if !orchestrator.workloads.is_empty() {
        return Next::Act(Stage::Evicting, Action::Evict { workloads: orchestrator.workloads.clone() });
    }
    match moving(storage).next() {
        Some(_) => Next::Wait(Stage::Reattaching),
        None => Next::Wait(Stage::AwaitingReturn),
    }
}

fn plan_fence(storage: &StorageView, situation: &Situation) -> Next {
    match &situation.no_proof {
        Some(why) => Next::Refuse(Refusal::NoProof(why.clone())),
        None => Next::Act(Stage::Fencing, Action::Fence { incarnation: storage.incarnation }),
    }
}

fn plan_return(storage: &StorageView, orchestrator: &OrchestratorView, situation: &Situation) -> Next {
    let incarnation = storage.incarnation;
    match (orchestrator.node.taint, situation.heard) {
        (None, _) => Next::Close,
        (Some(taint), Some((AgentState::Running | AgentState::Clean, true))) if situation.is_verified_clean => {
            Next::Act(Stage::Untainting, Action::Untaint { incarnation: taint })
        }
        (Some(_), Some((AgentState::Running | AgentState::Clean, true))) => {
            Next::Act(Stage::Unfencing, Action::Unfence { incarnation })
        }
        (Some(_), _) => Next::Wait(Stage::Returning),
    }
}

/// A fence is of the node: it cuts off volumes that do not move by themselves, too, where their storage can fence.
fn is_fence_complete(storage: &StorageView) -> bool {
    storage.volumes.iter().all(|volume| volume.is_proven || matches!(volume.stays, Some(Stays::NoFence(_))))
}

fn moving(storage: &StorageView) -> impl Iterator<Item = &VolumeView> {
    storage.volumes.iter().filter(|volume| volume.stays.is_none())
}

fn why_nothing_moves(volumes: &[VolumeView]) -> String {
    let say = |volume: &VolumeView| match &volume.stays {
        Some(Stays::OptedOut) => Some(format!("{} has opted out", volume.id)),
        Some(Stays::NoFence(why)) => Some(format!("{}: {why}", volume.id)),
        None => None,
    };
    let mut said: Vec<String> = volumes.iter().filter_map(say).collect();
    let more = said.len().saturating_sub(3);
    said.truncate(3);
    match (said.is_empty(), more) {
        (true, _) => "it holds none".to_owned(),
        (false, 0) => said.join("; "),
        (false, more) => format!("{}; and {more} more", said.join("; ")),
    }
}

/// The volumes that are fenced and not yet held by somebody else.
pub(crate) fn waiting(storage: &StorageView) -> Vec<VolumeId> {
    moving(storage).filter(|volume| volume.is_proven).map(|volume| volume.id.clone()).collect()
}
