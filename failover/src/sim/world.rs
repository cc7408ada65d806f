//! The world: one queue of events, one generator, one clock that only the queue moves.

use super::check::Stats;
use super::machine::Machine;
use super::orchestrator::Orchestrator;
use super::rng::Rng;
use super::setup::{Setup, What};
use super::shell::{FenceRun, Shell, Snapshot};
use super::storage::Storage;
use crate::flaw::Flaw;
use crate::{Action, Answer, Heartbeat, OrchestratorNode, Token};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use volume::{AttachPlan, Epoch};

pub(super) struct World {
    pub(super) now: u64,
    pub(super) setup: Setup,
    pub(super) control: Option<Control>,
    pub(super) rng: Rng,
    pub(super) storage: Storage,
    pub(super) nodes: Vec<Machine>,
    pub(super) orchestrator: Orchestrator,
    pub(super) shells: Vec<Shell>,
    /// Of all supervisors so far.
    pub(super) steps: u64,
    pub(super) stats: Stats,
    pub(super) violation: Option<String>,
    pub(super) is_settled: bool,
    pub(super) settled_since: Option<u64>,
    /// Of all that happened: two runs of a seed must agree.
    pub(super) hash: u64,
    pub(super) trace: Option<Vec<String>>,
    queue: BinaryHeap<Scheduled>,
    order: u64,
}

/// A mistake put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    Supervisor(Flaw),
    /// Actions are carried out without a last look.
    WithoutConfirm,
    /// The storage grants a volume to whoever asks.
    GrantWithoutProof,
    /// The storage writes the proof and cuts nobody off.
    FenceWithoutEffect,
}

#[derive(Debug, Clone)]
pub(super) enum Event {
    NodeTick {
        n: usize,
        boot: u32,
    },
    Connect {
        n: usize,
        boot: u32,
        uid: u64,
        epoch: Epoch,
    },
    Verify {
        n: usize,
        boot: u32,
        device: u64,
    },
    Write {
        n: usize,
        device: u64,
    },
    Ack {
        n: usize,
        device: u64,
        id: u32,
    },
    Stop {
        n: usize,
        device: u64,
    },
    CleanUp {
        n: usize,
        boot: u32,
    },

    AttachPlan {
        uid: u64,
    },
    AttachSwap {
        uid: u64,
        read_at: u64,
        plan: Box<AttachPlan>,
    },
    Detach {
        volume: usize,
        n: usize,
    },
    DetachEnd {
        volume: usize,
        marked_at: u64,
    },
    OrchestratorTick,

    SupervisorTick {
        s: usize,
        boot: u32,
    },
    Heard {
        s: usize,
        boot: u32,
        heartbeat: Heartbeat,
    },
    Saw {
        s: usize,
        boot: u32,
        snapshot: Box<Snapshot>,
    },
    Told {
        s: usize,
        boot: u32,
        nodes: Vec<OrchestratorNode>,
    },
    /// The request for the lease arrives; it was sent at that time of the sender's clock.
    LeaseAsked {
        s: usize,
        boot: u32,
        sent_ms: u64,
    },
    LeaseAnswered {
        s: usize,
        boot: u32,
        until_ms: Option<u64>,
    },
    Execute {
        s: usize,
        boot: u32,
        token: Token,
        n: usize,
        action: Action,
    },
    Effect {
        s: usize,
        boot: u32,
        token: Token,
        n: usize,
        action: Action,
    },
    Fence(Box<FenceRun>),
    Answered {
        s: usize,
        boot: u32,
        token: Token,
        answer: Answer,
    },

    Begin(What),
    End(What),
    Settle,
}

/// Who must run for an event to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Actor {
    Node(usize),
    Supervisor(usize),
}

struct Scheduled {
    at: u64,
    /// What happens in the same millisecond happens in any order.
    tie: u32,
    order: u64,
    event: Event,
}

impl World {
    pub(super) fn new(seed: u64, control: Option<Control>, is_traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let setup = Setup::draw(&mut rng);
        let mut world = Self {
            now: 0,
            control,
            storage: Storage::new(&setup),
            nodes: (0..setup.nodes).map(|n| Machine::new(n, &setup, &mut rng)).collect(),
            orchestrator: Orchestrator::new(&setup),
            shells: (0..setup.supervisors).map(|_| Shell::new(&setup, &mut rng)).collect(),
            steps: 0,
            stats: Stats::default(),
            violation: None,
            is_settled: false,
            settled_since: None,
            hash: seed,
            trace: is_traced.then(Vec::new),
            queue: BinaryHeap::new(),
            order: 0,
            setup,
            rng,
        };
        if world.trace.is_some() {
            let line = format!("{:?}", world.setup);
            world.note(|| line);
        }
        for n in 0..world.nodes.len() {
            world.push(n as u64, Event::NodeTick { n, boot: 0 });
        }
        for s in 0..world.shells.len() {
            let after = world.rng.range(0, 300);
            world.push(after, Event::SupervisorTick { s, boot: 0 });
        }
        world.push(5, Event::OrchestratorTick);
        for fault in world.setup.faults.clone() {
            world.push(fault.at_ms, Event::Begin(fault.what));
            world.push(fault.at_ms + fault.for_ms, Event::End(fault.what));
        }
        world.push(world.setup.heal_ms, Event::Settle);
        world
    }

    pub(super) fn run(&mut self) {
        while self.violation.is_none() && !self.is_settled {
            let Some(next) = self.queue.pop() else { break };
            self.now = next.at;
            self.happen(next.event);
            self.check_writers();
        }
    }

    pub(super) fn push(&mut self, after: u64, event: Event) {
        self.order += 1;
        let tie = self.rng.next() as u32;
        self.queue.push(Scheduled { at: self.now + after, tie, order: self.order, event });
    }

    /// How long a message is under way.
    pub(super) fn delay(&mut self) -> u64 {
        let most = if self.rng.percent(4) { self.setup.tail_ms } else { self.setup.delay_ms };
        self.rng.range(1, most)
    }

    /// Of the storage; it heals with everything else.
    pub(super) fn trouble(&mut self, percent: u64) -> bool {
        self.now < self.setup.heal_ms && self.rng.percent(percent)
    }

    /// Sends a message: late, lost or twice.
    pub(super) fn send(&mut self, event: Event) {
        if self.rng.percent(self.setup.duplicate_percent) {
            let after = self.delay() + self.rng.range(0, 1_000);
            self.push(after, event.clone());
        }
        if !self.rng.percent(self.setup.drop_percent) {
            let after = self.delay();
            self.push(after, event);
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some(actor) = event.actor()
            && self.defer(actor, &event)
        {
            return;
        }
        self.hash = (self.hash ^ self.now ^ event.number()).wrapping_mul(0x0000_0100_0000_01b3);
        match event {
            Event::NodeTick { n, boot } => self.node_tick(n, boot),
            Event::Connect { n, boot, uid, epoch } => self.connect(n, boot, uid, epoch),
            Event::Verify { n, boot, device } => self.verify(n, boot, device),
            Event::Write { n, device } => self.write(n, device),
            Event::Ack { n, device, id } => self.ack(n, device, id),
            Event::Stop { n, device } => self.stop(n, device),
            Event::CleanUp { n, boot } => self.clean_up(n, boot),
            Event::AttachPlan { uid } => self.attach_plan(uid),
            Event::AttachSwap { uid, read_at, plan } => self.attach_swap(uid, read_at, *plan),
            Event::Detach { volume, n } => self.detach(volume, n),
            Event::DetachEnd { volume, marked_at } => self.detach_end(volume, marked_at),
            Event::OrchestratorTick => self.orchestrator_tick(),
            Event::SupervisorTick { s, boot } => self.supervisor_tick(s, boot),
            Event::Heard { s, boot, heartbeat } => self.heard(s, boot, heartbeat),
            Event::Saw { s, boot, snapshot } => self.saw(s, boot, &snapshot),
            Event::Told { s, boot, nodes } => self.told(s, boot, nodes),
            Event::LeaseAsked { s, boot, sent_ms } => self.lease_asked(s, boot, sent_ms),
            Event::LeaseAnswered { s, boot, until_ms } => self.lease_answered(s, boot, until_ms),
            Event::Execute { s, boot, token, n, action } => self.execute(s, boot, token, n, action),
            Event::Effect { s, boot, token, n, action } => self.effect(s, boot, token, n, action),
            Event::Fence(run) => self.fence_step(run),
            Event::Answered { s, boot, token, answer } => self.answered(s, boot, token, answer),
            Event::Begin(what) => self.begin(what),
            Event::End(what) => self.end(what),
            Event::Settle => self.settle(),
        }
    }

    /// Keeps what a stopped actor would do until it goes on.
    fn defer(&mut self, actor: Actor, event: &Event) -> bool {
        let (paused, deferred) = match actor {
            Actor::Node(n) => (self.nodes[n].paused, &mut self.nodes[n].deferred),
            Actor::Supervisor(s) => (self.shells[s].paused, &mut self.shells[s].deferred),
        };
        if paused > 0 {
            deferred.push(event.clone());
        }
        paused > 0
    }

    /// In the order in which it would have happened.
    pub(super) fn resume(&mut self, deferred: Vec<Event>) {
        for (after, event) in deferred.into_iter().enumerate() {
            self.push(after as u64, event);
        }
    }

    pub(super) fn fail(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let what = what();
            self.note(|| format!("VIOLATION: {what}"));
            self.violation = Some(format!("at {} ms: {what}", self.now));
        }
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>7} {}", self.now, line()));
        }
    }
}

impl Event {
    fn actor(&self) -> Option<Actor> {
        match self {
            Self::NodeTick { n, .. }
            | Self::Connect { n, .. }
            | Self::Verify { n, .. }
            | Self::Write { n, .. }
            | Self::Ack { n, .. }
            | Self::Stop { n, .. }
            | Self::CleanUp { n, .. } => Some(Actor::Node(*n)),
            Self::SupervisorTick { s, .. }
            | Self::Heard { s, .. }
            | Self::Saw { s, .. }
            | Self::Told { s, .. }
            | Self::LeaseAnswered { s, .. }
            | Self::Execute { s, .. }
            | Self::Answered { s, .. } => Some(Actor::Supervisor(*s)),
            Self::Fence(run) => Some(Actor::Supervisor(run.s)),
            _ => None,
        }
    }

    fn number(&self) -> u64 {
        match self {
            Self::Write { device, .. } | Self::Verify { device, .. } => 1_000 + device,
            Self::Ack { id, .. } => 1 << 32 | u64::from(*id),
            Self::AttachPlan { uid } | Self::AttachSwap { uid, .. } => 2 << 32 | uid,
            Self::Execute { token, .. } | Self::Effect { token, .. } => 3 << 32 | token.number,
            Self::Answered { token, .. } => 4 << 32 | token.number,
            Self::Heard { heartbeat, s, .. } => 5 << 32 | heartbeat.sequence << 3 | *s as u64,
            _ => 7,
        }
    }
}

impl Ord for Scheduled {
    /// The heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.tie, other.order).cmp(&(self.at, self.tie, self.order))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}
