//! Runs the core: brings it what happens, carries out what it says, and shows how things stand.
//!
//! One task owns all this. It never waits for the storage or the orchestrator: looks and actions run beside it, each with a
//! deadline, and answers come back with their token. The core is behind a lock only so that an action can ask
//! [`Supervisor::confirm`] on its own thread, right before its effect.

mod carry_out;
mod look;
mod orchestrator;
mod storage;
mod told;
mod witness;

#[cfg(test)]
mod tests;

pub use orchestrator::{NodeView, Orchestrator, Workload};
pub use storage::Storage;
pub use told::{Mailbox, Told};

use crate::{Answer, Config, Input, NodeStatus, OrchestratorNode, Output, Supervisor, Token, Witness};
use look::{Look, Record};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use volume::NodeId;
use witness::Witnesses;

/// Milliseconds of a clock that never goes back and counts the time that the machine was suspended (CLOCK_BOOTTIME).
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Told of everything the core says; for metrics and the log. Must not block.
pub type Listener = Box<dyn Fn(&Output) + Send>;

pub struct Runner<O> {
    shared: Arc<Shared<O>>,
    max_gap_ms: u64,
    mailbox: mpsc::Receiver<Told>,
    answers: mpsc::UnboundedReceiver<(Token, Answer)>,
    listener: Listener,
    board: watch::Sender<Board>,
    witnesses: Witnesses,
    pushed: HashMap<NodeId, Pushed>,
    shown_ms: u64,
    is_changed: bool,
}

/// What actions that are under way hold.
struct Shared<O> {
    core: Mutex<Supervisor>,
    clock: Clock,
    storage: Arc<Storage>,
    orchestrator: Arc<O>,
    answers: mpsc::UnboundedSender<(Token, Answer)>,
    action_limit: Duration,
    fence_limit: Duration,
}

/// How things stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Board {
    pub is_leader: bool,
    pub nodes: Vec<NodeStatus>,
}

/// What the core knows of a node, so that only changes are told.
#[derive(Debug, Default)]
struct Pushed {
    record: Option<Record>,
    witness: Option<Witness>,
    orchestrator: Option<OrchestratorNode>,
}

/// What an action is answered that the core does not want any more.
const OVERTAKEN: &str = "overtaken by events";
/// Timers that are due within this are done together.
const GRAIN_MS: u64 = 20;
const SHOW_EVERY_MS: u64 = 250;
/// While something stands, how long it has stood is shown again.
const SHOW_AGAIN_MS: u64 = 5_000;
const MESSAGES_AT_ONCE: usize = 256;

impl<O: Orchestrator> Runner<O> {
    /// `config` has passed [`Config::check`]. Whoever has something to tell gets the mailbox.
    pub fn new(
        config: Config,
        clock: Clock,
        storage: Storage,
        orchestrator: Arc<O>,
        listener: Listener,
    ) -> (Self, Mailbox) {
        let (mailbox, told) = told::mailbox();
        let (answers, answered) = mpsc::unbounded_channel();
        let max_gap_ms = config.max_gap_ms;
        let shared = Shared {
            action_limit: Duration::from_millis(config.action_timeout_ms),
            fence_limit: Duration::from_millis(config.fence_timeout_ms),
            core: Mutex::new(Supervisor::new(config, clock())),
            clock,
            storage: Arc::new(storage),
            orchestrator,
            answers,
        };
        let runner = Self {
            shared: Arc::new(shared),
            max_gap_ms,
            mailbox: told,
            answers: answered,
            listener,
            board: watch::Sender::default(),
            witnesses: Witnesses::default(),
            pushed: HashMap::new(),
            shown_ms: 0,
            is_changed: true,
        };
        (runner, mailbox)
    }

    pub fn board(&self) -> watch::Receiver<Board> {
        self.board.subscribe()
    }

    /// Until it is dropped, or nobody has its mailbox any more. Actions that are under way then end by themselves; whoever leads
    /// next finds what they did.
    pub async fn run(mut self) {
        let (looks, mut looked) = mpsc::channel(1);
        let looking = tokio::spawn(look::look_again(Arc::clone(&self.shared.storage), looks));
        let _looking = AbortOnDrop(looking.abort_handle());
        let mut messages = Vec::with_capacity(MESSAGES_AT_ONCE);
        loop {
            let pause = self.pause();
            tokio::select! {
                count = self.mailbox.recv_many(&mut messages, MESSAGES_AT_ONCE) => {
                    if count == 0 {
                        return;
                    }
                    messages.drain(..).for_each(|told| self.told(told));
                }
                Some((token, answer)) = self.answers.recv() => self.input(Input::Answer { token, answer }),
                Some(look) = looked.recv() => self.looked(&look),
                () = tokio::time::sleep(pause) => self.input(Input::Tick),
            }
            self.show();
        }
    }

    /// Well below half of the gap that would count as having been frozen.
    fn pause(&self) -> Duration {
        let now_ms = (self.shared.clock)();
        let longest = (self.max_gap_ms / 4).max(1);
        let due_ms = self.shared.core().next_due_ms().map_or(longest, |due| due.saturating_sub(now_ms));
        Duration::from_millis(due_ms.clamp(GRAIN_MS.min(longest), longest))
    }

    fn told(&mut self, told: Told) {
        let now_ms = (self.shared.clock)();
        match told {
            Told::Heartbeat(heartbeat) => self.input(Input::Heartbeat(heartbeat)),
            Told::Connection { node, is_up } => self.input(Input::Connection { node, is_up }),
            Told::Refused { node } => {
                self.witnesses.refused(node.clone(), now_ms);
                self.witness(&node);
            }
            Told::Node { node, state } => {
                let pushed = self.pushed(&node);
                if pushed.orchestrator.as_ref() != Some(&state) {
                    pushed.orchestrator = Some(state.clone());
                    self.input(Input::Orchestrator { node, state });
                }
            }
            Told::Lease(Some(until_ms)) => self.input(Input::LeaseHeld { until_ms }),
            Told::Lease(None) => self.input(Input::LeaseLost),
        }
    }

    fn looked(&mut self, look: &Look) {
        let now_ms = (self.shared.clock)();
        self.shared.storage.remember(look);
        let mut has_all = false;
        let mut lacks_one = false;
        for backend in &look.backends {
            match backend.seen.as_ref().map(|seen| seen.signs.as_ref()) {
                Ok(Some(signs)) => self.witnesses.read(&backend.name, signs, now_ms),
                Ok(None) | Err(_) => self.witnesses.unread(&backend.name, now_ms),
            }
            match &backend.seen {
                Ok(_) => has_all = true,
                Err(error) if self.shared.storage.is_shared(&backend.name) => {
                    tracing::debug!(backend = %backend.name, error = error.chain(), "the storage cannot be looked at");
                    lacks_one = true;
                }
                // Of one node alone, and nothing of it moves.
                Err(_) => has_all = true,
            }
        }
        let records = self.shared.storage.records();
        self.push_records(&records);
        for node in records.keys() {
            self.witness(node);
        }
        if has_all && !lacks_one {
            self.input(Input::StorageSeen);
        }
    }

    fn push_records(&mut self, records: &BTreeMap<NodeId, Record>) {
        let is_gone = |(node, pushed): (&NodeId, &Pushed)| {
            (pushed.record.is_some() && !records.contains_key(node)).then(|| node.clone())
        };
        let gone: Vec<NodeId> = self.pushed.iter().filter_map(is_gone).collect();
        for node in gone {
            self.pushed(&node).record = None;
            self.input(Input::Forgotten { node });
        }
        for (node, record) in records {
            let pushed = self.pushed(node);
            if pushed.record.as_ref() != Some(record) {
                pushed.record = Some(record.clone());
                let Record { incarnation, is_fenced, .. } = *record;
                self.input(Input::Registered { node: node.clone(), incarnation, is_fenced });
            }
        }
    }

    fn witness(&mut self, node: &NodeId) {
        let now_ms = (self.shared.clock)();
        // Where only the node itself could tell, silence may be taken for what it is: nothing moves on it.
        let seen = match self.witnesses.of(node, now_ms) {
            Witness::CannotTell if self.shared.storage.is_on_its_own(node) => Witness::Silent,
            seen => seen,
        };
        let pushed = self.pushed(node);
        if pushed.witness != Some(seen) {
            pushed.witness = Some(seen);
            self.input(Input::Witness { node: node.clone(), seen });
        }
    }

    fn pushed(&mut self, node: &NodeId) -> &mut Pushed {
        self.pushed.entry(node.clone()).or_default()
    }

    fn input(&mut self, input: Input) {
        let now_ms = (self.shared.clock)();
        let outputs = self.shared.core().step(now_ms, input);
        for output in outputs {
            self.is_changed = true;
            (self.listener)(&output);
            match output {
                Output::Act { token, node, action } => carry_out::begin(&self.shared, token, node, action),
                Output::Event { node, reason, text } => {
                    self.shared.orchestrator.event(node.as_ref(), reason, &text);
                }
                Output::Record(entry) => self.shared.orchestrator.record(&entry),
                Output::Suspect { .. } | Output::Clear { .. } | Output::Refuse { .. } => {}
            }
        }
    }

    fn show(&mut self) {
        let now_ms = (self.shared.clock)();
        let since_ms = now_ms.saturating_sub(self.shown_ms);
        let has_leader_changed = self.shared.core().is_leader() != self.board.borrow().is_leader;
        let is_due = self.is_changed && since_ms >= SHOW_EVERY_MS
            || since_ms >= SHOW_AGAIN_MS && !self.board.borrow().nodes.is_empty();
        if !is_due && !has_leader_changed {
            return;
        }
        (self.shown_ms, self.is_changed) = (now_ms, false);
        let board = {
            let core = self.shared.core();
            Board { is_leader: core.is_leader(), nodes: core.status() }
        };
        if board.is_leader {
            self.shared.orchestrator.status(&board.nodes);
        }
        self.board.send_replace(board);
    }
}

impl<O> Shared<O> {
    fn core(&self) -> MutexGuard<'_, Supervisor> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirm(&self, token: Token) -> bool {
        self.core().confirm((self.clock)(), token)
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
