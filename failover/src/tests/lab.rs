//! A supervisor with a small world around it that answers at once.

use crate::{
    Action, AgentState, Answer, Config, FenceResult, Heartbeat, Input, OrchestratorNode, OrchestratorView, Output,
    Refusal, StorageView, Supervisor, Token, View, VolumeView, Witness, WorkloadId,
};
use std::collections::BTreeSet;
use volume::{Incarnation, NodeId, VolumeId};

pub(super) struct Lab {
    pub(super) core: Supervisor,
    pub(super) now: u64,
    pub(super) nodes: Vec<FakeNode>,
    pub(super) outputs: Vec<Output>,
    /// What was done, as "fence 0".
    pub(super) done: Vec<String>,
    /// Actions that are not answered.
    pub(super) held: Vec<(Token, usize, Action)>,
    pub(super) holds: Option<fn(&Action) -> bool>,
    pub(super) fence: fn(&VolumeId) -> Result<(), String>,
    pub(super) leads: bool,
    pub(super) reads: bool,
}

pub(super) struct FakeNode {
    pub(super) id: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) is_silent: bool,
    pub(super) state: AgentState,
    pub(super) sequence: u64,
    pub(super) view: View,
}

const STEP_MS: u64 = 100;

impl Lab {
    pub(super) fn new(nodes: usize, config: Config) -> Self {
        config.check().unwrap();
        let mut lab = Self {
            core: Supervisor::new(config, 5_000),
            now: 5_000,
            nodes: (0..nodes).map(FakeNode::new).collect(),
            outputs: Vec::new(),
            done: Vec::new(),
            held: Vec::new(),
            holds: None,
            fence: |_| Ok(()),
            leads: true,
            reads: true,
        };
        lab.introduce();
        lab
    }

    /// Another process takes over; the world stays.
    pub(super) fn take_over(&mut self) {
        self.core = Supervisor::new(self.core.config.clone(), self.now);
        self.outputs.clear();
        self.held.clear();
        self.introduce();
    }

    fn introduce(&mut self) {
        for n in 0..self.nodes.len() {
            self.register(n);
            self.witness(n, Witness::Active);
            self.orchestrator(n, true, false);
        }
    }

    pub(super) fn register(&mut self, n: usize) {
        let (node, is_fenced) = (self.nodes[n].id.clone(), self.nodes[n].view.storage.is_fenced);
        let incarnation = self.nodes[n].view.storage.incarnation;
        self.input(Input::Registered { node, incarnation, is_fenced });
    }

    pub(super) fn witness(&mut self, n: usize, seen: Witness) {
        let node = self.nodes[n].id.clone();
        self.input(Input::Witness { node, seen });
    }

    pub(super) fn orchestrator(&mut self, n: usize, is_ready: bool, in_maintenance: bool) {
        let node = &mut self.nodes[n].orchestrator().node;
        (node.is_ready, node.in_maintenance) = (is_ready, in_maintenance);
        let state = node.clone();
        self.input(Input::Orchestrator { node: self.nodes[n].id.clone(), state });
    }

    /// The node falls silent, and the storage sees it.
    pub(super) fn kill(&mut self, n: usize) {
        self.nodes[n].is_silent = true;
        self.witness(n, Witness::Silent);
    }

    /// It comes back in a new life, which the storage records.
    pub(super) fn come_back(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.incarnation = Incarnation::new_random();
        (node.is_silent, node.state) = (false, AgentState::Running);
        (node.view.storage.incarnation, node.view.storage.is_fenced) = (node.incarnation, false);
        self.register(n);
        self.witness(n, Witness::Active);
    }

    pub(super) fn run(&mut self, for_ms: u64) {
        let until = self.now + for_ms;
        while self.now < until {
            self.now += STEP_MS;
            if self.leads {
                self.input(Input::LeaseHeld { until_ms: self.now + 2_000 });
            }
            if self.reads {
                self.input(Input::StorageSeen);
            }
            if self.now.is_multiple_of(400) {
                (0..self.nodes.len())
                    .filter(|n| !self.nodes[*n].is_silent)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|n| self.heartbeat(n));
            }
            self.input(Input::Tick);
        }
    }

    pub(super) fn heartbeat(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.sequence += 1;
        let heartbeat = Heartbeat {
            node: node.id.clone(),
            incarnation: node.incarnation,
            sequence: node.sequence,
            state: node.state,
            sees_storage: true,
        };
        self.input(Input::Heartbeat(heartbeat));
    }

    pub(super) fn input(&mut self, input: Input) {
        let mut outputs = self.core.step(self.now, input);
        while !outputs.is_empty() {
            let mut next = Vec::new();
            for output in outputs {
                self.outputs.push(output.clone());
                if let Output::Act { token, node, action } = output {
                    let n = self.nodes.iter().position(|known| known.id == node).unwrap();
                    if self.holds.is_some_and(|holds| holds(&action)) {
                        self.held.push((token, n, action));
                    } else if self.core.confirm(self.now, token) {
                        let answer = self.carry_out(n, &action);
                        next.extend(self.core.step(self.now, Input::Answer { token, answer }));
                    }
                }
            }
            outputs = next;
        }
    }

    pub(super) fn carry_out(&mut self, n: usize, action: &Action) -> Answer {
        let fence = self.fence;
        let view = &mut self.nodes[n].view;
        let name = match action {
            Action::Inspect | Action::VerifyReattach { .. } => return Answer::Observed(view.clone()),
            Action::ReadBack => "read back",
            Action::Fence { .. } => "fence",
            Action::Taint { .. } => "taint",
            Action::Evict { .. } => "evict",
            Action::Unfence { .. } => "unfence",
            Action::Untaint { .. } => "untaint",
        };
        self.done.push(format!("{name} {n}"));
        let orchestrator = view.orchestrator.as_mut().unwrap();
        match action {
            Action::ReadBack => return Answer::Observed(View { orchestrator: None, ..view.clone() }),
            Action::Fence { .. } => {
                view.storage.is_fenced = true;
                let results = view.storage.volumes.iter_mut().map(|volume| {
                    let proof = fence(&volume.id);
                    volume.is_proven = proof.is_ok();
                    FenceResult { volume: volume.id.clone(), proof }
                });
                return Answer::Fenced(results.collect());
            }
            Action::Taint { incarnation } => orchestrator.node.taint = Some(*incarnation),
            Action::Evict { .. } => {
                orchestrator.workloads.clear();
                view.storage.volumes.clear();
            }
            Action::Unfence { .. } => view.storage.is_fenced = false,
            Action::Untaint { .. } => orchestrator.node.taint = None,
            Action::Inspect | Action::VerifyReattach { .. } => {}
        }
        Answer::Done
    }

    pub(super) fn refusals(&self) -> BTreeSet<String> {
        let refused = self.outputs.iter().filter_map(|output| match output {
            Output::Refuse { node, why } => Some(format!("{node}: {why}")),
            _ => None,
        });
        refused.collect()
    }

    pub(super) fn is_refused(&self, n: usize, is: fn(&Refusal) -> bool) -> bool {
        let status = self.core.status();
        status.iter().any(|status| status.node == self.nodes[n].id && status.refusal.as_ref().is_some_and(is))
    }
}

impl FakeNode {
    fn new(n: usize) -> Self {
        let incarnation = Incarnation::new_random();
        let volume = VolumeView { id: volume_id(n), is_proven: false, stays: None };
        let storage = StorageView { incarnation, is_fenced: false, volumes: vec![volume] };
        let node = OrchestratorNode { is_known: true, is_ready: true, in_maintenance: false, taint: None };
        let orchestrator = OrchestratorView { node, workloads: vec![WorkloadId(format!("uid-{n}"))] };
        let view = View { storage, orchestrator: Some(orchestrator) };
        let id = NodeId::parse(&format!("n{n}")).unwrap();
        Self { id, incarnation, is_silent: false, state: AgentState::Running, sequence: 0, view }
    }

    pub(super) fn orchestrator(&mut self) -> &mut OrchestratorView {
        self.view.orchestrator.as_mut().unwrap()
    }
}

pub(super) fn volume_id(n: usize) -> VolumeId {
    VolumeId::parse(&format!("pool.v{n:032x}")).unwrap()
}
