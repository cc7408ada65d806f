//! The attachment contract under random histories: whatever is attached, detached, fenced, restarted or repeated,
//! in whatever order and with whatever stale knowledge, at most one node can write.
//!
//! The model below plays storage (records changed by compare-and-swap) and nodes (which write as long as they were
//! granted an epoch and nobody cut them off). Its negative control plans without looking at the proof.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use std::collections::BTreeMap;
use volume::{
    AttachPlan, Attachment, DetachPlan, Epoch, FenceMethod, FenceProof, Holder, Incarnation, NodeId, NodeIdentity,
    NodeRecord, NodeState, Result, Segments, plan_attach, plan_detach,
};

const NODES: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// Reads the records now; the swap comes later, or never.
    PlanAttach(usize),
    /// Carries out the oldest plan that was made.
    Swap,
    Detach(Option<usize>),
    Fence(usize),
    /// The node comes back clean in a new life.
    Reincarnate(usize),
}

type Planner = fn(Option<&Attachment>, Epoch, &NodeRecord) -> Result<AttachPlan>;

struct World {
    generation: u64,
    epoch: Epoch,
    held: Option<Attachment>,
    nodes: Vec<NodeRecord>,
    /// Who can write: granted, and neither let go nor cut off.
    writers: BTreeMap<String, Epoch>,
    pending: Vec<(usize, u64, AttachPlan)>,
    highest: Epoch,
}

impl World {
    fn new() -> Self {
        let nodes = (0..NODES).map(|n| live(n, Incarnation::new_random())).collect();
        Self {
            generation: 0,
            epoch: Epoch(0),
            held: None,
            nodes,
            writers: BTreeMap::new(),
            pending: Vec::new(),
            highest: Epoch(0),
        }
    }

    /// Fails with a description as soon as two nodes can write or an epoch falls.
    fn step(&mut self, step: &Step, planner: Planner) -> Result<(), String> {
        match step {
            Step::PlanAttach(n) => {
                if let Ok(plan) = planner(self.held.as_ref(), self.epoch, &self.nodes[*n]) {
                    self.pending.push((*n, self.generation, plan));
                }
            }
            Step::Swap => self.swap(),
            Step::Detach(node) => {
                let id = node.map(|n| self.nodes[n].identity.id.clone());
                match plan_detach(self.held.as_ref(), id.as_ref()) {
                    DetachPlan::Nothing => {}
                    DetachPlan::ReleaseFenced => self.write(None),
                    DetachPlan::ReleaseIfQuiet => {
                        // The storage sees the holder let go: here it does so when asked.
                        if let Some(held) = self.held.take() {
                            self.writers.remove(held.holder.node.as_str());
                        }
                        self.write(None);
                    }
                }
            }
            Step::Fence(n) => self.fence(*n),
            Step::Reincarnate(n) => {
                self.writers.remove(self.nodes[*n].identity.id.as_str());
                self.nodes[*n] = live(*n, Incarnation::new_random());
            }
        }
        if self.writers.len() > 1 {
            return Err(format!("two writers: {:?}", self.writers));
        }
        if self.epoch < self.highest {
            return Err(format!("epoch fell from {} to {}", self.highest, self.epoch));
        }
        self.highest = self.epoch;
        Ok(())
    }

    fn swap(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let (n, read_at, plan) = self.pending.remove(0);
        if let AttachPlan::Grant(attachment) = plan
            && read_at == self.generation
        {
            // The node compares the grant with its own life before it connects.
            let own = &self.nodes[n];
            if !own.is_fenced() && own.identity.incarnation == attachment.holder.incarnation {
                self.writers.insert(own.identity.id.to_string(), attachment.epoch);
            }
            self.epoch = attachment.epoch;
            self.write(Some(attachment));
        }
    }

    fn fence(&mut self, n: usize) {
        let node = self.nodes[n].identity.id.clone();
        self.nodes[n].state = NodeState::Fenced { actor: "test".into(), at_ms: 0, powered_off: false };
        if let Some(held) = &self.held
            && held.holder.node == node
            && held.proof.is_none()
        {
            self.writers.remove(node.as_str());
            let proof = FenceProof {
                method: FenceMethod::LimitAndFork,
                actor: "test".into(),
                at_ms: 0,
                fenced_image: None,
                evidence: Vec::new(),
            };
            let fenced = Attachment { proof: Some(proof), ..held.clone() };
            self.write(Some(fenced));
        }
    }

    fn write(&mut self, held: Option<Attachment>) {
        self.generation += 1;
        self.held = held;
    }
}

fn live(n: usize, incarnation: Incarnation) -> NodeRecord {
    NodeRecord {
        identity: NodeIdentity {
            id: NodeId::parse(&format!("node-{n}")).unwrap(),
            incarnation,
            boot_id: "boot".into(),
        },
        state: NodeState::Live,
        topology: Segments::default(),
        registered_at_ms: 0,
    }
}

fn ours(held: Option<&Attachment>, epoch: Epoch, node: &NodeRecord) -> Result<AttachPlan> {
    plan_attach(held, epoch, node, false, 0)
}

/// What a driver without the contract does: whoever asks gets the volume.
fn careless(_: Option<&Attachment>, epoch: Epoch, node: &NodeRecord) -> Result<AttachPlan> {
    let holder = Holder { node: node.identity.id.clone(), incarnation: node.identity.incarnation };
    Ok(AttachPlan::Grant(Attachment { holder, epoch: epoch.next(), read_only: false, granted_at_ms: 0, proof: None }))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..NODES;
    let step = prop_oneof![
        4 => node.clone().prop_map(Step::PlanAttach),
        4 => Just(Step::Swap),
        2 => prop::option::of(node.clone()).prop_map(Step::Detach),
        2 => node.clone().prop_map(Step::Fence),
        1 => node.prop_map(Step::Reincarnate),
    ];
    prop::collection::vec(step, 1..80)
}

fn run(history: &[Step], planner: Planner) -> Result<(), String> {
    let mut world = World::new();
    history.iter().try_for_each(|step| world.step(step, planner))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_writer_whatever_happens(history in steps()) {
        prop_assert_eq!(run(&history, ours), Ok(()));
    }
}

#[test]
fn the_model_catches_a_planner_that_ignores_the_holder() {
    use proptest::test_runner::{Config, TestRunner};
    let config = Config { failure_persistence: None, ..Config::default() };
    let found = TestRunner::new(config).run(&steps(), |history| {
        prop_assert_eq!(run(&history, careless), Ok(()));
        Ok(())
    });
    assert!(found.is_err(), "two writers went unnoticed");
}

#[test]
fn a_held_volume_names_its_holder_and_an_empty_node_never_detaches_it() {
    let (a, b) = (live(0, Incarnation::new_random()), live(1, Incarnation::new_random()));
    let AttachPlan::Grant(held) = ours(None, Epoch(4), &a).unwrap() else { panic!("a free volume was not granted") };
    assert_eq!(held.epoch, Epoch(5));
    assert_eq!(ours(Some(&held), held.epoch, &a).unwrap(), AttachPlan::AlreadyHeld(Epoch(5)));
    let refused = ours(Some(&held), held.epoch, &b).unwrap_err();
    assert!(refused.to_string().contains("node-0"), "{refused}");
    assert_eq!(plan_detach(Some(&held), None), DetachPlan::Nothing);
    assert_eq!(plan_detach(Some(&held), Some(&b.identity.id)), DetachPlan::Nothing);
    assert_eq!(plan_detach(Some(&held), Some(&a.identity.id)), DetachPlan::ReleaseIfQuiet);
}
