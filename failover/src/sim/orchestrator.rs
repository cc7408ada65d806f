//! The orchestrator: which instance of which workload is bound to which node, marks on nodes, readiness, the lease.

use super::setup::{Mobility, Setup};
use super::world::{Event, World};
use crate::{OrchestratorNode, OrchestratorView, WorkloadId};
use volume::Incarnation;

pub(super) const LEASE_MS: u64 = 2_000;
const NOT_READY_AFTER_MS: u64 = 4_000;
const TICK_MS: u64 = 400;

pub(super) struct Orchestrator {
    /// One workload a volume, and at most one instance of each, as a StatefulSet has.
    pods: Vec<Option<Pod>>,
    last_uid: u64,
    pub(super) statuses: Vec<Option<u64>>,
    pub(super) marks: Vec<Option<Mark>>,
    pub(super) maintenance: Vec<u32>,
    pub(super) maintenance_since: Vec<u64>,
    pub(super) lease: Option<(usize, u64)>,
}

#[derive(Debug, Clone)]
struct Pod {
    uid: u64,
    node: Option<usize>,
    /// A start is under way until then, or was lost.
    starting_until: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) incarnation: Incarnation,
    since: u64,
}

impl Orchestrator {
    pub(super) fn new(setup: &Setup) -> Self {
        Self {
            pods: vec![None; setup.volumes.len()],
            last_uid: 0,
            statuses: vec![None; setup.nodes],
            marks: vec![None; setup.nodes],
            maintenance: vec![0; setup.nodes],
            maintenance_since: vec![0; setup.nodes],
            lease: None,
        }
    }

    pub(super) fn volume_of(&self, uid: u64) -> Option<usize> {
        self.pods.iter().position(|pod| pod.as_ref().is_some_and(|pod| pod.uid == uid))
    }

    /// Which volume the instance uses and where it is to run.
    pub(super) fn bound(&self, uid: u64) -> Option<(usize, usize)> {
        let volume = self.volume_of(uid)?;
        Some((volume, self.pods[volume].as_ref()?.node?))
    }

    pub(super) fn node_of(&self, volume: usize) -> Option<(u64, usize)> {
        let pod = self.pods[volume].as_ref()?;
        Some((pod.uid, pod.node?))
    }

    pub(super) fn starting(&mut self, uid: u64, until: u64) {
        for pod in self.pods.iter_mut().flatten().filter(|pod| pod.uid == uid) {
            pod.starting_until = until;
        }
    }

    pub(super) fn to_start(&self, n: usize, now: u64) -> Vec<u64> {
        let here = self.pods.iter().flatten().filter(|pod| pod.node == Some(n) && pod.starting_until <= now);
        here.map(|pod| pod.uid).collect()
    }

    pub(super) fn delete(&mut self, uid: u64) {
        for pod in &mut self.pods {
            if pod.as_ref().is_some_and(|pod| pod.uid == uid) {
                *pod = None;
            }
        }
    }

    pub(super) fn is_ready(&self, n: usize, now: u64) -> bool {
        // At the start nodes get the time to say something.
        now - self.statuses[n].unwrap_or(0) < NOT_READY_AFTER_MS
    }

    pub(super) fn node(&self, n: usize, now: u64) -> OrchestratorNode {
        OrchestratorNode {
            is_known: true,
            is_ready: self.is_ready(n, now),
            in_maintenance: self.maintenance[n] > 0,
            taint: self.marks[n].map(|mark| mark.incarnation),
        }
    }

    pub(super) fn view(&self, n: usize, now: u64, volumes: &[Mobility]) -> OrchestratorView {
        let here = self.pods.iter().zip(volumes).filter(|(_, mobility)| **mobility == Mobility::Moves);
        let here = here.filter_map(|(pod, _)| pod.as_ref()).filter(|pod| pod.node == Some(n));
        OrchestratorView {
            node: self.node(n, now),
            workloads: here.map(|pod| WorkloadId(pod.uid.to_string())).collect(),
        }
    }

    pub(super) fn mark(&mut self, n: usize, incarnation: Incarnation, now: u64) {
        self.marks[n] = Some(Mark { incarnation, since: now });
    }

    pub(super) fn unmark(&mut self, n: usize, incarnation: Incarnation) -> bool {
        let is_that = self.marks[n].is_some_and(|mark| mark.incarnation == incarnation);
        if is_that {
            self.marks[n] = None;
        }
        is_that
    }
}

impl World {
    pub(super) fn orchestrator_tick(&mut self) {
        self.push(TICK_MS, Event::OrchestratorTick);
        self.evict_by_itself();
        self.schedule();
        for volume in 0..self.storage.volumes.len() {
            let Some(held) = &self.storage.volumes[volume].attachment else { continue };
            let Some(n) = self.nodes.iter().position(|node| node.id == held.holder.node) else { continue };
            let is_over = held.proof.is_some() && self.setup.never_detaches_dead;
            if !is_over && self.orchestrator.node_of(volume).is_none_or(|(_, node)| node != n) {
                // Late, and now and then once more when others hold it.
                if self.rng.percent(10) {
                    let after = self.rng.range(500, 5_000);
                    self.push(after, Event::Detach { volume, n });
                }
                let after = self.delay();
                self.push(after, Event::Detach { volume, n });
            }
        }
    }

    fn schedule(&mut self) {
        let now = self.now;
        for volume in 0..self.storage.volumes.len() {
            if self.orchestrator.pods[volume].as_ref().is_some_and(|pod| pod.node.is_some()) {
                continue;
            }
            let free = |n: &usize| {
                let may = match self.setup.volumes[volume] {
                    Mobility::Local(own) => own == *n,
                    Mobility::Moves | Mobility::OptedOut => true,
                };
                let node = self.orchestrator.node(*n, now);
                may && node.is_ready && !node.in_maintenance && node.taint.is_none()
            };
            let free: Vec<usize> = (0..self.nodes.len()).filter(free).collect();
            if free.is_empty() {
                continue;
            }
            let n = self.rng.pick(&free);
            self.orchestrator.last_uid += 1;
            let uid = self.orchestrator.last_uid;
            self.orchestrator.pods[volume] = Some(Pod { uid, node: Some(n), starting_until: 0 });
            self.note(|| format!("{uid}, which uses volume {volume}, is bound to node {n}"));
        }
    }

    /// What the orchestrator and its users do without the supervisor.
    fn evict_by_itself(&mut self) {
        let now = self.now;
        for volume in 0..self.storage.volumes.len() {
            let Some((uid, n)) = self.orchestrator.node_of(volume) else { continue };
            let is_marked = self.orchestrator.marks[n].is_some_and(|mark| now - mark.since > 1_000);
            let by_mark = self.setup.taint_evicts && is_marked;
            let by_user = self.setup.impatient_user && !self.orchestrator.is_ready(n, now) && self.rng.percent(10);
            if by_mark || by_user {
                self.note(|| format!("{uid} on node {n} is deleted by the orchestrator (by a user: {by_user})"));
                self.orchestrator.delete(uid);
            }
        }
    }

    pub(super) fn lease_asked(&mut self, s: usize, boot: u32, sent_ms: u64) {
        let is_free = self.orchestrator.lease.is_none_or(|(holder, until)| holder == s || until <= self.now);
        if is_free {
            if self.orchestrator.lease.is_none_or(|(holder, _)| holder != s) {
                self.stats.leaders += 1;
                self.note(|| format!("supervisor {s} gets the lease"));
            }
            self.orchestrator.lease = Some((s, self.now + LEASE_MS));
        }
        let until_ms = is_free.then_some(sent_ms + LEASE_MS);
        self.send(Event::LeaseAnswered { s, boot, until_ms });
    }
}
