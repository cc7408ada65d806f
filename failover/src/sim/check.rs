//! What must hold at all times, and in the end.

use super::setup::{Mobility, What};
use super::world::{Control, Event, World};
use crate::{Action, AgentState};
use std::collections::BTreeMap;
use std::fmt::Debug;
use volume::Incarnation;

/// A sign of a fault may be acted on for this long after the fault.
const CAUSE_HOLDS_MS: u64 = 4_000;
/// What a process knew before it was suspended it takes for new for this long after.
const IGNORANCE_HOLDS_MS: u64 = 10_000;
/// Between a look and what follows from it the world may move on by so much.
pub(super) const RACE_MS: u64 = 3_000;
/// Healed, the cluster must be whole again within this.
const SETTLES_WITHIN_MS: u64 = 120_000;
const SETTLED_FOR_MS: u64 = 2_000;

/// What the seeds have gone through: a simulation in which nothing happens shows nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Stats {
    pub(super) acks: u64,
    pub(super) starts: u64,
    pub(super) fences: u64,
    pub(super) proofs: u64,
    pub(super) evictions: u64,
    pub(super) returns: u64,
    pub(super) refusals: u64,
    pub(super) refused_attaches: u64,
    pub(super) unconfirmed: u64,
    pub(super) leaders: u64,
    /// Ticks at which more than one believed to lead.
    pub(super) two_leaders: u64,
    pub(super) actions: u64,
    pub(super) simulated_ms: u64,
    /// How often each cause, refusal, event, stage and action came up.
    pub(super) said: BTreeMap<String, u64>,
}

impl World {
    /// Invariant 1: at most one device can write to a volume's image.
    pub(super) fn check_writers(&mut self) {
        let devices = &self.storage.devices;
        let writes = |at: usize| {
            let device = &devices[at];
            let is_current = self.storage.volumes[device.volume].image == device.image;
            device.live_since.is_some() && !device.is_limited && is_current
        };
        for one in 1..devices.len() {
            for other in 0..one {
                if devices[one].volume == devices[other].volume && writes(one) && writes(other) {
                    let (one, other) = (devices[one].clone(), devices[other].clone());
                    self.fail(|| format!("two writers on volume {}: {other:?} and {one:?}", one.volume));
                    return;
                }
            }
        }
    }

    /// Invariant 2: what is acknowledged is in the image that the next holder gets.
    pub(super) fn check_ack(&mut self, n: usize, volume: usize, id: u32) {
        let image = self.storage.volumes[volume].image;
        if self.storage.images[image].binary_search(&id).is_err() {
            self.fail(|| format!("write {id} to volume {volume} was acknowledged on node {n} and is not in its image"));
        }
    }

    pub(super) fn check_image(&mut self, volume: usize) {
        let stored = &self.storage.volumes[volume];
        let image = &self.storage.images[stored.image];
        if let Some(&id) = stored.acked.iter().find(|id| image.binary_search(id).is_err()) {
            self.fail(|| format!("write {id} was acknowledged and is not in the image of volume {volume}"));
        }
    }

    /// Nobody is fenced who gave no reason.
    pub(super) fn check_cause(&mut self, s: usize, n: usize) {
        let now = self.now;
        let node = &self.nodes[n];
        let has_cause = node.causes > 0 || node.cause_ended_ms.is_some_and(|ended| now - ended < CAUSE_HOLDS_MS);
        if !has_cause && !self.cannot_know(s) {
            self.fail(|| format!("supervisor {s} fences node {n}, which is well"));
        }
        let since = self.orchestrator.maintenance_since[n];
        if self.orchestrator.maintenance[n] > 0 && now - since > RACE_MS && !self.cannot_know(s) {
            self.fail(|| format!("supervisor {s} fences node {n}, which is in maintenance"));
        }
    }

    /// Fenced first, then marked, then its workloads deleted.
    pub(super) fn check_order(&mut self, s: usize, n: usize, action: &Action) {
        if self.control == Some(Control::FenceWithoutEffect) {
            // It is to show by what comes of it.
            return;
        }
        let of_action = |uid: u64| match action {
            Action::Taint { .. } => true,
            Action::Evict { workloads } => workloads.iter().any(|workload| workload.0 == uid.to_string()),
            _ => false,
        };
        let writes = self.storage.devices.iter().find(|device| {
            let moves = self.setup.volumes[device.volume] == Mobility::Moves;
            let is_current = self.storage.volumes[device.volume].image == device.image;
            let is_old = device.live_since.is_some_and(|since| self.now - since > RACE_MS);
            device.n == n && moves && is_current && is_old && !device.is_limited && of_action(device.uid)
        });
        if let Some(device) = writes.cloned()
            && !self.cannot_know(s)
        {
            self.fail(|| format!("supervisor {s}: {action:?} for node {n}, which still writes: {device:?}"));
        }
    }

    /// Unfenced first, then let in.
    pub(super) fn check_untaint(&mut self, s: usize, n: usize, incarnation: Incarnation) {
        let stands = self.storage.nodes[n].fenced_lives.get(&incarnation);
        if stands.is_some_and(|since| self.now - since > RACE_MS) && !self.cannot_know(s) {
            self.fail(|| format!("supervisor {s} lets node {n} in, whose fence stands"));
        }
    }

    /// A process that was suspended with its clock acts on what it knew; that is safe, and it may be wrong.
    fn cannot_know(&self, s: usize) -> bool {
        self.shells[s].was_suspended_ms.is_some_and(|ended| self.now - ended < IGNORANCE_HOLDS_MS)
    }

    /// Invariant 5, after everything has healed: whole again within a bounded time, and nothing left behind.
    pub(super) fn settle(&mut self) {
        let wrong = self.what_is_wrong();
        let since = match (&wrong, self.settled_since) {
            (None, Some(since)) => since,
            (None, None) => self.now,
            (Some(_), _) => u64::MAX,
        };
        self.settled_since = (since < u64::MAX).then_some(since);
        if since < u64::MAX && self.now - since >= SETTLED_FOR_MS {
            for volume in 0..self.storage.volumes.len() {
                self.check_image(volume);
            }
            self.is_settled = true;
            self.stats.simulated_ms = self.now;
        } else if self.now > self.setup.heal_ms + SETTLES_WITHIN_MS {
            self.fail(|| format!("not whole again: {}", wrong.unwrap_or_default()));
        } else {
            self.push(500, Event::Settle);
        }
    }

    fn what_is_wrong(&self) -> Option<String> {
        for (n, node) in self.nodes.iter().enumerate() {
            if node.life != AgentState::Running || self.storage.is_fenced(n) {
                return Some(format!("node {n} is fenced or not running: {:?}", node.life));
            }
            if self.orchestrator.marks[n].is_some() {
                return Some(format!("node {n} is still marked"));
            }
        }
        for volume in 0..self.storage.volumes.len() {
            let Some((uid, n)) = self.orchestrator.node_of(volume) else {
                return Some(format!("nothing uses volume {volume}"));
            };
            let mut devices = self.storage.devices.iter().filter(|device| device.volume == volume);
            let (first, second) = (devices.next(), devices.next());
            let runs = first.is_some_and(|d| d.uid == uid && d.n == n && d.live_since.is_some() && !d.is_limited);
            if !runs || second.is_some() {
                return Some(format!("{uid} on node {n} does not run, or not alone: {first:?} {second:?}"));
            }
        }
        let leader = self.shells.iter().filter_map(|shell| shell.core.as_ref()).find(|core| core.is_leader());
        match leader.map(|core| core.status()) {
            None => Some("nobody leads".to_owned()),
            Some(status) if !status.is_empty() => Some(format!("the leader is not done: {status:?}")),
            Some(_) => None,
        }
    }

    /// Whether a node suffered anything in this seed.
    pub(super) fn is_only_of_supervisors(&self) -> bool {
        self.setup.faults.iter().all(|fault| {
            matches!(
                fault.what,
                What::SupervisorDown(_)
                    | What::SupervisorPaused(_)
                    | What::SupervisorSuspended(_)
                    | What::SupervisorClockJump(_)
                    | What::SupervisorCutOff(_)
                    | What::SupervisorStorageCut(_)
                    | What::SupervisorOrchestratorCut(_)
                    | What::LeaseLost
            )
        })
    }
}

impl Stats {
    /// By the name of its variant.
    pub(super) fn saw(&mut self, what: &impl Debug) {
        let text = format!("{what:?}");
        let name = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        *self.said.entry(name.to_owned()).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.acks += other.acks;
        self.starts += other.starts;
        self.fences += other.fences;
        self.proofs += other.proofs;
        self.evictions += other.evictions;
        self.returns += other.returns;
        self.refusals += other.refusals;
        self.refused_attaches += other.refused_attaches;
        self.unconfirmed += other.unconfirmed;
        self.leaders += other.leaders;
        self.two_leaders += other.two_leaders;
        self.actions += other.actions;
        self.simulated_ms += other.simulated_ms;
        for (name, times) in &other.said {
            *self.said.entry(name.clone()).or_default() += times;
        }
    }
}
