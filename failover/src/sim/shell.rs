//! What surrounds each core: it looks at the storage and the orchestrator, renews the lease, carries actions out.

use super::rng::Rng;
use super::setup::{Ambush, How, Setup, What};
use super::world::{Control, Event, World};
use crate::{
    Action, Answer, FenceResult, Heartbeat, Input, OrchestratorNode, Output, Supervisor, Token, View, Witness,
};
use volume::Incarnation;

pub(super) struct Shell {
    pub(super) core: Option<Supervisor>,
    pub(super) boot: u32,
    pub(super) down: u32,
    pub(super) paused: u32,
    /// How many of these stop the clock, too; since when, and how long it stood before.
    pub(super) suspended: u32,
    pub(super) suspended_since: Option<u64>,
    stood_ms: u64,
    pub(super) was_suspended_ms: Option<u64>,
    pub(super) clock_offset_ms: u64,
    clock_permille: u64,
    pub(super) cut_off: u32,
    pub(super) storage_cut: u32,
    pub(super) orchestrator_cut: u32,
    pub(super) deferred: Vec<Event>,
    ticks: u64,
    last_saw_ms: u64,
    last_told_ms: u64,
    pushed: Vec<Pushed>,
}

#[derive(Debug, Clone, Default)]
struct Pushed {
    record: Option<(Incarnation, bool)>,
    witness: Option<Witness>,
    orchestrator: Option<OrchestratorNode>,
}

/// One look at the storage.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    records: Vec<Option<(Incarnation, bool)>>,
    witness: Vec<Witness>,
}

/// A fence under way, as its process remembers it; see `fence`.
#[derive(Debug, Clone)]
pub(super) struct FenceRun {
    pub(super) s: usize,
    pub(super) boot: u32,
    pub(super) token: Token,
    pub(super) n: usize,
    pub(super) incarnation: Incarnation,
    pub(super) confirmed_ms: u64,
    pub(super) at: super::fence::FenceAt,
    pub(super) left: Vec<usize>,
    pub(super) results: Vec<FenceResult>,
    pub(super) rounds: u32,
}

const TICK_MS: u64 = 250;

impl Shell {
    pub(super) fn new(setup: &Setup, rng: &mut Rng) -> Self {
        Self {
            core: None,
            boot: 0,
            down: 0,
            paused: 0,
            suspended: 0,
            suspended_since: None,
            stood_ms: 0,
            was_suspended_ms: None,
            clock_offset_ms: rng.range(0, 1_000_000),
            clock_permille: rng.range(980, 1_020),
            cut_off: 0,
            storage_cut: 0,
            orchestrator_cut: 0,
            deferred: Vec::new(),
            ticks: 0,
            last_saw_ms: 0,
            last_told_ms: 0,
            pushed: vec![Pushed::default(); setup.nodes],
        }
    }

    /// This supervisor's own clock.
    pub(super) fn clock_ms(&self, now: u64) -> u64 {
        self.clock_offset_ms + (now - self.stood_ms) * self.clock_permille / 1_000
    }

    pub(super) fn end_suspension(&mut self, now: u64) {
        if let Some(since) = self.suspended_since.take() {
            self.stood_ms += now - since;
            self.was_suspended_ms = Some(now);
        }
    }

    pub(super) fn crash(&mut self, now: u64) {
        self.end_suspension(now);
        self.core = None;
        self.boot += 1;
        self.deferred.clear();
        self.pushed.iter_mut().for_each(|pushed| *pushed = Pushed::default());
    }
}

impl World {
    fn is_of_life(&self, s: usize, boot: u32) -> bool {
        self.shells[s].down == 0 && self.shells[s].boot == boot
    }

    fn input(&mut self, s: usize, input: Input) {
        let now_ms = self.shells[s].clock_ms(self.now);
        let Some(core) = &mut self.shells[s].core else { return };
        let outputs = core.step(now_ms, input);
        for output in outputs {
            self.output(s, output);
        }
    }

    fn output(&mut self, s: usize, output: Output) {
        match &output {
            Output::Suspect { cause, .. } if self.setup.faults.is_empty() => {
                self.fail(|| format!("supervisor {s} suspects a node ({cause}) though there are no faults"));
            }
            Output::Suspect { cause, .. } => self.stats.saw(cause),
            Output::Refuse { why, .. } => self.stats.saw(why),
            Output::Event { reason, .. } => self.stats.saw(reason),
            Output::Record(entry) => self.stats.saw(&entry.stage),
            Output::Act { action, .. } => self.stats.saw(action),
            Output::Clear { .. } => {}
        }
        match output {
            Output::Act { token, node, action } => {
                let Some(n) = self.nodes.iter().position(|known| known.id == node) else { return };
                self.note(|| format!("supervisor {s}: {action:?} for node {n}"));
                let boot = self.shells[s].boot;
                let after = self.rng.range(0, 40);
                let is_step = !action.is_look();
                self.stats.actions += 1;
                self.steps += u64::from(is_step);
                self.push(after, Event::Execute { s, boot, token, n, action });
                if is_step {
                    self.ambush(s, true);
                }
            }
            Output::Refuse { node, why } => {
                self.stats.refusals += 1;
                self.note(|| format!("supervisor {s}: {node} is not failed over: {why}"));
            }
            other => self.note(|| format!("supervisor {s}: {other:?}")),
        }
    }

    pub(super) fn supervisor_tick(&mut self, s: usize, boot: u32) {
        if !self.is_of_life(s, boot) {
            return;
        }
        self.push(TICK_MS, Event::SupervisorTick { s, boot });
        let now_ms = self.shells[s].clock_ms(self.now);
        if self.shells[s].core.is_none() {
            let mut core = Supervisor::new(self.setup.config.clone(), now_ms);
            if let Some(Control::Supervisor(flaw)) = self.control {
                core.flaw = Some(flaw);
            }
            self.shells[s].core = Some(core);
        }
        self.input(s, Input::Tick);
        let leaders = self.shells.iter().filter_map(|shell| shell.core.as_ref()).filter(|core| core.is_leader());
        self.stats.two_leaders += u64::from(leaders.count() > 1);
        self.shells[s].ticks += 1;
        let shell = &self.shells[s];
        let (reads, asks) = (shell.storage_cut == 0, shell.orchestrator_cut == 0);
        if shell.ticks.is_multiple_of(2) {
            if asks && !self.rng.percent(self.setup.drop_percent) {
                let after = self.delay();
                self.push(after, Event::LeaseAsked { s, boot, sent_ms: now_ms });
            }
            if asks {
                let nodes = (0..self.nodes.len()).map(|n| self.orchestrator.node(n, self.now)).collect();
                let after = self.delay();
                let at = (self.now + after).max(self.shells[s].last_told_ms + 1);
                self.shells[s].last_told_ms = at;
                self.push(at - self.now, Event::Told { s, boot, nodes });
            }
        } else if reads && !self.trouble(self.setup.storage_error_percent) {
            let snapshot = self.snapshot();
            let after = self.delay();
            let at = (self.now + after).max(self.shells[s].last_saw_ms + 1);
            self.shells[s].last_saw_ms = at;
            self.push(at - self.now, Event::Saw { s, boot, snapshot: Box::new(snapshot) });
        }
    }

    fn snapshot(&self) -> Snapshot {
        let record = |n: usize| self.storage.incarnation(n).map(|incarnation| (incarnation, self.storage.is_fenced(n)));
        let witness = |n: usize| match self.setup.witness_tells {
            true => self.storage.witness(n, self.now),
            false => Witness::CannotTell,
        };
        let nodes = || 0..self.nodes.len();
        Snapshot { records: nodes().map(record).collect(), witness: nodes().map(witness).collect() }
    }

    pub(super) fn heard(&mut self, s: usize, boot: u32, heartbeat: Heartbeat) {
        if self.is_of_life(s, boot) {
            self.input(s, Input::Heartbeat(heartbeat));
        }
    }

    pub(super) fn saw(&mut self, s: usize, boot: u32, snapshot: &Snapshot) {
        if !self.is_of_life(s, boot) {
            return;
        }
        for n in 0..self.nodes.len() {
            let node = self.nodes[n].id.clone();
            let pushed = &mut self.shells[s].pushed[n];
            let record = snapshot.records[n].filter(|record| pushed.record != Some(*record));
            let witness = Some(snapshot.witness[n]).filter(|seen| pushed.witness != Some(*seen));
            pushed.record = record.or(pushed.record);
            pushed.witness = witness.or(pushed.witness);
            if let Some((incarnation, is_fenced)) = record {
                self.input(s, Input::Registered { node: node.clone(), incarnation, is_fenced });
            }
            if let Some(seen) = witness {
                self.input(s, Input::Witness { node, seen });
            }
        }
        self.input(s, Input::StorageSeen);
    }

    pub(super) fn told(&mut self, s: usize, boot: u32, nodes: Vec<OrchestratorNode>) {
        if !self.is_of_life(s, boot) {
            return;
        }
        for (n, state) in nodes.into_iter().enumerate() {
            if self.shells[s].pushed[n].orchestrator.as_ref() != Some(&state) {
                self.shells[s].pushed[n].orchestrator = Some(state.clone());
                let node = self.nodes[n].id.clone();
                self.input(s, Input::Orchestrator { node, state });
            }
        }
    }

    pub(super) fn lease_answered(&mut self, s: usize, boot: u32, until_ms: Option<u64>) {
        if self.is_of_life(s, boot) {
            let input = until_ms.map_or(Input::LeaseLost, |until_ms| Input::LeaseHeld { until_ms });
            self.input(s, input);
        }
    }

    /// The last look before the effect; from here on the message is on its way, whatever happens to the sender.
    pub(super) fn execute(&mut self, s: usize, boot: u32, token: Token, n: usize, action: Action) {
        if !self.is_of_life(s, boot) {
            return;
        }
        let now_ms = self.shells[s].clock_ms(self.now);
        let may = self.control == Some(Control::WithoutConfirm)
            || self.shells[s].core.as_mut().is_some_and(|core| core.confirm(now_ms, token));
        if !may {
            self.stats.unconfirmed += 1;
            self.note(|| format!("supervisor {s}: not carried out any more"));
            self.reply(s, boot, token, Answer::Failed("overtaken by events".to_owned()));
            return;
        }
        self.check_order(s, n, &action);
        if !action.is_look() {
            self.ambush(s, false);
        }
        if let Action::Fence { incarnation } = action {
            let at = super::fence::FenceAt::Mark;
            let (left, results, rounds) = (Vec::new(), Vec::new(), 0);
            let confirmed_ms = self.now;
            let run = FenceRun { s, boot, token, n, incarnation, confirmed_ms, at, left, results, rounds };
            let after = self.delay();
            self.push(after, Event::Fence(Box::new(run)));
        } else {
            self.send(Event::Effect { s, boot, token, n, action });
        }
    }

    pub(super) fn reply(&mut self, s: usize, boot: u32, token: Token, answer: Answer) {
        self.send(Event::Answered { s, boot, token, answer });
    }

    pub(super) fn answered(&mut self, s: usize, boot: u32, token: Token, answer: Answer) {
        if self.is_of_life(s, boot) {
            self.input(s, Input::Answer { token, answer });
        }
    }

    /// What arrives at the storage and the orchestrator; fences have a life of their own.
    pub(super) fn effect(&mut self, s: usize, boot: u32, token: Token, n: usize, action: Action) {
        let shell = &self.shells[s];
        let (reads, asks) = (shell.storage_cut == 0, shell.orchestrator_cut == 0);
        let error = self.trouble(self.setup.storage_error_percent);
        let failed = |what: &str| Answer::Failed(what.to_owned());
        let answer = match action {
            Action::Inspect | Action::VerifyReattach { .. } | Action::ReadBack | Action::Unfence { .. }
                if !reads || error =>
            {
                failed("the storage cannot be reached")
            }
            Action::Inspect | Action::VerifyReattach { .. } if !asks => failed("the orchestrator cannot be reached"),
            Action::Inspect | Action::VerifyReattach { .. } => self.view(n, true),
            Action::ReadBack => self.view(n, false),
            Action::Unfence { incarnation } => self.unfence(n, incarnation),
            _ if !asks => failed("the orchestrator cannot be reached"),
            Action::Taint { incarnation } => {
                self.orchestrator.mark(n, incarnation, self.now);
                self.note(|| format!("node {n} is marked"));
                Answer::Done
            }
            Action::Evict { workloads } => {
                for workload in workloads {
                    let uid = workload.0.parse().expect("a uid of this world");
                    self.note(|| format!("{uid} is deleted"));
                    self.orchestrator.delete(uid);
                    self.stats.evictions += 1;
                }
                Answer::Done
            }
            Action::Untaint { incarnation } => {
                if self.orchestrator.unmark(n, incarnation) {
                    self.note(|| format!("the mark of node {n} is removed"));
                    self.stats.returns += 1;
                    self.check_untaint(s, n, incarnation);
                }
                Answer::Done
            }
            Action::Fence { .. } => failed("fences come another way"),
        };
        self.reply(s, boot, token, answer);
    }

    fn view(&self, n: usize, whole: bool) -> Answer {
        match self.storage.view(n) {
            Some(storage) => {
                let orchestrator = whole.then(|| self.orchestrator.view(n, self.now, &self.setup.volumes));
                Answer::Observed(View { storage, orchestrator })
            }
            None => Answer::Failed("the storage does not know the node".to_owned()),
        }
    }

    /// Kills or stops a supervisor between two steps.
    fn ambush(&mut self, s: usize, is_before: bool) {
        let step = self.steps - 1;
        let hits = |ambush: &&Ambush| ambush.step == step && ambush.is_before == is_before;
        let Some(how) = self.setup.ambushes.iter().find(hits).map(|ambush| ambush.how) else { return };
        let for_ms = self.rng.pick(&[400, 1_500, 4_000, 9_000, 15_000, 20_000]);
        let what = match how {
            How::Kill => What::SupervisorDown(s),
            How::Pause => What::SupervisorPaused(s),
            How::Suspend => What::SupervisorSuspended(s),
        };
        self.push(0, Event::Begin(what));
        self.push(for_ms, Event::End(what));
    }
}
