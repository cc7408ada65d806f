//! What one seed plays: the cluster, the policies, and which faults happen when.

use super::rng::Rng;
use crate::Config;

#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) nodes: usize,
    pub(super) supervisors: usize,
    pub(super) volumes: Vec<Mobility>,
    pub(super) config: Config,
    pub(super) delay_ms: u64,
    pub(super) tail_ms: u64,
    pub(super) drop_percent: u64,
    pub(super) duplicate_percent: u64,
    pub(super) storage_error_percent: u64,
    /// A step of a fence that takes longer than anybody waits for it.
    pub(super) fence_hangs_percent: u64,
    /// A fence that says it is done although a record was not written.
    pub(super) fence_lies_percent: u64,
    /// Whether the storage's side can see the nodes at all.
    pub(super) witness_tells: bool,
    /// The fence stands after the node has registered its new life, until it is lifted.
    pub(super) fence_outlives_registration: bool,
    /// The orchestrator itself deletes what runs on a marked node.
    pub(super) taint_evicts: bool,
    /// The orchestrator never says that a dead node has let go (Swarm).
    pub(super) never_detaches_dead: bool,
    /// Somebody deletes workloads of nodes that are not ready by force.
    pub(super) impatient_user: bool,
    pub(super) faults: Vec<Fault>,
    /// At which of all steps a supervisor is killed or stopped, before it is carried out or after.
    pub(super) ambushes: Vec<Ambush>,
    pub(super) heal_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mobility {
    Moves,
    OptedOut,
    /// On a storage of this node alone, which cannot fence.
    Local(usize),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) what: What,
    pub(super) at_ms: u64,
    pub(super) for_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    NodeDown(usize),
    NodePaused(usize),
    /// Neither supervisors nor the orchestrator reach it.
    ControlCut(usize),
    NodeStorageCut(usize),
    AgentDead(usize),
    KubeletDead(usize),
    /// Heartbeats of one node do not reach one supervisor; the other way works.
    LinkCut(usize, usize),
    Maintenance(usize),
    SupervisorDown(usize),
    SupervisorPaused(usize),
    /// Paused with its clock, as a suspended machine is: it cannot know.
    SupervisorSuspended(usize),
    /// Its clock goes forward by minutes.
    SupervisorClockJump(usize),
    /// No node is heard by it.
    SupervisorCutOff(usize),
    SupervisorStorageCut(usize),
    SupervisorOrchestratorCut(usize),
    /// The lease lapses although its holder renews it.
    LeaseLost,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ambush {
    /// Which step, of those that are more than a look.
    pub(super) step: u64,
    pub(super) how: How,
    /// Before the action is carried out, or between that and its answer.
    pub(super) is_before: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Kill,
    Pause,
    Suspend,
}

const FIRST_FAULT_MS: u64 = 4_000;
const LAST_FAULT_MS: u64 = 16_000;

impl Setup {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let nodes = rng.range(3, 5) as usize;
        let supervisors = rng.range(2, 3) as usize;
        let volumes = (0..rng.range(2, 4)).map(|_| match rng.below(10) {
            0 => Mobility::OptedOut,
            1 => Mobility::Local(rng.below(nodes)),
            _ => Mobility::Moves,
        });
        let volumes = volumes.collect();
        let witness_tells = rng.percent(75);
        let after = |rng: &mut Rng| rng.percent(60).then(|| rng.range(3_000, 6_000));
        let config = Config {
            isolated_ms: after(rng),
            unwitnessed_ms: after(rng),
            given_up_ms: rng.percent(70).then_some(2_000),
            max_at_once: rng.range(1, 2) as usize,
            refusal_repeat_ms: 5_000,
            reattach_warn_ms: 10_000,
            idle_poll_ms: rng.pick(&[500, 5_000, 15_000]),
            flap_window_ms: 30_000,
            ..Config::default()
        };
        let faults = faults(rng, nodes, supervisors);
        let ambushes = match rng.percent(50) && !faults.is_empty() {
            true => (0..rng.range(1, 4)).map(|_| ambush(rng)).collect(),
            false => Vec::new(),
        };
        let has_trouble = rng.percent(40) && !faults.is_empty();
        Self {
            nodes,
            supervisors,
            volumes,
            config,
            delay_ms: rng.pick(&[5, 20, 60, 150]),
            tail_ms: rng.pick(&[50, 200, 500]),
            drop_percent: rng.pick(&[0, 0, 1, 3]),
            duplicate_percent: rng.pick(&[0, 2, 10]),
            storage_error_percent: if has_trouble { rng.pick(&[2, 10]) } else { 0 },
            fence_hangs_percent: if has_trouble { 4 } else { 0 },
            fence_lies_percent: if has_trouble { 25 } else { 0 },
            witness_tells,
            fence_outlives_registration: rng.percent(50),
            taint_evicts: rng.percent(50),
            never_detaches_dead: rng.percent(30),
            impatient_user: rng.percent(30),
            heal_ms: faults.iter().map(|fault| fault.at_ms + fault.for_ms).max().unwrap_or(12_000) + 1,
            faults,
            ambushes,
        }
    }
}

fn faults(rng: &mut Rng, nodes: usize, supervisors: usize) -> Vec<Fault> {
    // One in ten is left alone: there, and where only supervisors suffer, nobody may be fenced.
    let (count, of_nodes) = match rng.below(10) {
        0 => (0, 0),
        1 | 2 => (rng.range(1, 4), 0),
        _ => (rng.range(1, 7), 75),
    };
    let mut faults = Vec::new();
    for _ in 0..count {
        let (n, s) = (rng.below(nodes), rng.below(supervisors));
        let what = if rng.percent(of_nodes) {
            match rng.below(16) {
                0..=2 => What::NodeDown(n),
                3..=5 => What::NodePaused(n),
                6 | 7 => What::ControlCut(n),
                8 => What::NodeStorageCut(n),
                9 | 10 => What::AgentDead(n),
                11 | 12 => What::KubeletDead(n),
                13 => What::LinkCut(n, s),
                _ => What::Maintenance(n),
            }
        } else {
            match rng.below(11) {
                10 => What::SupervisorClockJump(s),
                0 | 1 => What::SupervisorDown(s),
                2 => What::SupervisorPaused(s),
                3 => What::SupervisorSuspended(s),
                4 | 5 => What::SupervisorCutOff(s),
                6 => What::SupervisorStorageCut(s),
                7 => What::SupervisorOrchestratorCut(s),
                _ => What::LeaseLost,
            }
        };
        let at_ms = rng.range(FIRST_FAULT_MS, LAST_FAULT_MS);
        let for_ms = rng.pick(&[300, 1_500, 4_000, 6_000, 9_000, 14_000]);
        faults.push(Fault { what, at_ms, for_ms });
        if let (What::Maintenance(n), true) = (what, rng.percent(60)) {
            // What maintenance is for: the node goes away meanwhile.
            let (at_ms, for_ms) = (at_ms + 3_000, for_ms.saturating_sub(4_000).max(500));
            faults.push(Fault { what: What::NodeDown(n), at_ms, for_ms });
        }
        if let (What::NodeDown(n), true) = (what, rng.percent(30)) {
            // Rebooting twice.
            faults.push(Fault { what, at_ms: at_ms + for_ms + rng.range(200, 4_000), for_ms: 2_000 });
            debug_assert!(n < nodes);
        }
    }
    faults
}

fn ambush(rng: &mut Rng) -> Ambush {
    Ambush { step: rng.range(0, 9), how: rng.pick(&[How::Kill, How::Pause, How::Suspend]), is_before: rng.percent(50) }
}
