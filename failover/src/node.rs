//! What is remembered of one node.

use crate::case::Case;
use crate::{AgentState, Cause, Config, OrchestratorNode, Refusal, Witness};
use volume::{Incarnation, NodeId};

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) record: Option<Record>,
    pub(crate) orchestrator: OrchestratorNode,
    pub(crate) not_ready_since_ms: Option<u64>,
    pub(crate) witness: Witness,
    /// Since when the storage's record of it is seen: before, nothing was to be heard.
    pub(crate) known_since_ms: u64,
    pub(crate) heard: Option<Heard>,
    pub(crate) is_connected: bool,
    pub(crate) sees_storage: bool,
    pub(crate) class: Class,
    pub(crate) suspicion: Option<Cause>,
    /// Which life was heard last when it was suspected.
    pub(crate) suspected_life: Option<Incarnation>,
    /// The supervisor saw most of the nodes then; else the suspicion says nothing of the node.
    pub(crate) is_suspected_in_sight: bool,
    /// And when it was said last.
    pub(crate) refusal: Option<(Refusal, u64)>,
    pub(crate) flaps: Count,
    pub(crate) failovers: Count,
    pub(crate) case: Option<Case>,
    /// No case is opened for mere traces before this.
    pub(crate) reopen_ms: u64,
}

/// The storage's record of the node as last shown. A hint: no action rests on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) incarnation: Incarnation,
    pub(crate) is_fenced: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    pub(crate) at_ms: u64,
    /// Since when it is heard without a gap.
    pub(crate) steady_since_ms: u64,
    pub(crate) incarnation: Incarnation,
    pub(crate) sequence: u64,
    pub(crate) state: AgentState,
}

/// How a node counts for the question whether the supervisor itself is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// In maintenance, fenced, or unknown to the storage.
    Excluded,
    Heard,
    /// Not heard, and the storage sees no life either.
    Dead,
    Missing,
}

/// How often something happened lately.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    times: u32,
    last_ms: u64,
}

impl Node {
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            id,
            record: None,
            // Until it is asked the orchestrator has neither given it up nor put it into maintenance.
            orchestrator: OrchestratorNode { is_known: true, is_ready: true, in_maintenance: false, taint: None },
            not_ready_since_ms: None,
            witness: Witness::CannotTell,
            known_since_ms: 0,
            heard: None,
            is_connected: true,
            sees_storage: true,
            class: Class::Excluded,
            suspicion: None,
            suspected_life: None,
            is_suspected_in_sight: false,
            refusal: None,
            flaps: Count::default(),
            failovers: Count::default(),
            case: None,
            reopen_ms: 0,
        }
    }

    /// Of a failover, as far as the messages show.
    pub(crate) fn has_traces(&self) -> bool {
        self.record.is_some_and(|record| record.is_fenced || self.orchestrator.taint.is_some())
    }

    pub(crate) fn silence_ms(&self, watch_since_ms: u64, now_ms: u64) -> u64 {
        let last = self.heard.map_or(0, |heard| heard.at_ms).max(watch_since_ms);
        now_ms.saturating_sub(last)
    }

    pub(crate) fn classify(&self, config: &Config, watch_since_ms: u64, now_ms: u64) -> Class {
        if self.orchestrator.in_maintenance || self.record.is_none_or(|record| record.is_fenced) {
            return Class::Excluded;
        }
        let is_heard = self
            .heard
            .is_some_and(|heard| heard.at_ms >= watch_since_ms && now_ms.saturating_sub(heard.at_ms) < config.late_ms);
        match self.witness {
            _ if is_heard && self.is_connected => Class::Heard,
            _ if !self.orchestrator.is_known => Class::Excluded,
            Witness::Silent => Class::Dead,
            Witness::Active | Witness::AgentAway | Witness::CannotTell => Class::Missing,
        }
    }

    /// Wrong suspicions of late make the next one slower, up to fourfold.
    pub(crate) fn patience_ms(&self, config: &Config, now_ms: u64) -> u64 {
        config.suspect_ms * u64::from(1 + self.flaps.lately(config.flap_window_ms, now_ms).min(3))
    }

    pub(crate) fn return_stable_ms(&self, config: &Config, now_ms: u64) -> u64 {
        let again = self.failovers.lately(config.flap_window_ms, now_ms).saturating_sub(1).min(4);
        config.return_stable_ms << again
    }

    /// Why it counts as lost, or when that may be so (the next time worth looking).
    pub(crate) fn cause(
        &self,
        config: &Config,
        watch_since_ms: u64,
        known_since_ms: u64,
        now_ms: u64,
    ) -> Result<Cause, u64> {
        let silence = self.silence_ms(watch_since_ms.max(known_since_ms), now_ms);
        let patience = self.patience_ms(config, now_ms);
        let given_up_ms = self.not_ready_since_ms.map(|since| now_ms.saturating_sub(since.max(watch_since_ms)));
        let given_up = |after: u64| given_up_ms.is_some_and(|lasted| lasted >= after);
        if silence >= patience {
            // Two that judge by different signs agree.
            if self.witness == Witness::Silent {
                return Ok(Cause::Dead);
            }
            if given_up(0) {
                return Ok(Cause::GivenUp);
            }
        } else if config.given_up_ms.is_some_and(given_up) {
            return Ok(Cause::GivenUp);
        }
        let (alone, cause) = match self.witness {
            Witness::Active => (config.isolated_ms, Cause::Isolated),
            // A driver that is updated, or crashes, takes no workload along.
            Witness::AgentAway => (None, Cause::Isolated),
            Witness::CannotTell => (config.unwitnessed_ms, Cause::Unwitnessed),
            Witness::Silent => (None, Cause::Dead),
        };
        match alone {
            Some(alone) if silence >= alone.max(patience) => Ok(cause),
            alone => {
                let waits = [Some(config.late_ms), Some(patience), alone.map(|alone| alone.max(patience))];
                let by_silence = waits.into_iter().flatten().filter(|wait| *wait > silence).min();
                let by_silence = by_silence.map(|wait| now_ms + wait - silence);
                let by_orchestrator = match (config.given_up_ms, given_up_ms) {
                    (Some(after), Some(lasted)) if after > lasted => Some(now_ms + after - lasted),
                    _ => None,
                };
                // Nothing left to wait for but messages, which look again themselves.
                Err(by_silence.into_iter().chain(by_orchestrator).min().unwrap_or(u64::MAX))
            }
        }
    }

    /// Since when the agent of this very life is heard without a gap up to now.
    pub(crate) fn steady_since_ms(
        &self,
        incarnation: Incarnation,
        config: &Config,
        watch_since_ms: u64,
        now_ms: u64,
    ) -> Option<(u64, AgentState)> {
        let heard = self.heard.filter(|heard| heard.incarnation == incarnation)?;
        let is_there = heard.at_ms >= watch_since_ms && now_ms.saturating_sub(heard.at_ms) < config.late_ms;
        is_there.then_some((heard.steady_since_ms.max(watch_since_ms), heard.state))
    }
}

impl Count {
    pub(crate) fn add(&mut self, window_ms: u64, now_ms: u64) {
        *self = Self { times: self.lately(window_ms, now_ms) + 1, last_ms: now_ms };
    }

    pub(crate) fn lately(&self, window_ms: u64, now_ms: u64) -> u32 {
        if now_ms.saturating_sub(self.last_ms) < window_ms { self.times } else { 0 }
    }
}
