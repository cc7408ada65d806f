//! The state machine's shell: time, leadership, and what each input changes.

use crate::node::{Class, Heard, Node, Record};
use crate::timers::Timers;
use crate::{
    Answer, Config, EventReason, Heartbeat, HistoryEntry, Input, OrchestratorNode, Output, Stage, Token, Witness,
};
use std::collections::HashMap;
use volume::{Incarnation, NodeId};

/// Feed it with [`Self::step`]; before an action is carried out, ask [`Self::confirm`]. Times are of one clock that never goes
/// back (CLOCK_BOOTTIME, which also counts the time that a machine was suspended).
#[derive(Debug)]
pub struct Supervisor {
    pub(crate) config: Config,
    pub(crate) now_ms: u64,
    /// Since when this process sees what happens without a gap.
    pub(crate) watch_since_ms: u64,
    pub(crate) leader: Option<Leader>,
    pub(crate) storage_seen_ms: Option<u64>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) index: HashMap<NodeId, usize>,
    pub(crate) timers: Timers,
    pub(crate) seen: Seen,
    /// Since when it sees most of the nodes.
    pub(crate) sight_since_ms: Option<u64>,
    pub(crate) said_blind_ms: Option<u64>,
    pub(crate) under_way: usize,
    pub(crate) last_token: u64,
    pub(crate) out: Vec<Output>,
    #[cfg(test)]
    pub(crate) flaw: Option<crate::flaw::Flaw>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Leader {
    pub(crate) until_ms: u64,
}

/// How many nodes there are of each class.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) heard: usize,
    pub(crate) dead: usize,
    pub(crate) missing: usize,
}

impl Supervisor {
    /// The configuration has passed [`Config::check`]; that of [`Input::Configure`], too.
    pub fn new(config: Config, now_ms: u64) -> Self {
        Self {
            config,
            now_ms,
            watch_since_ms: now_ms,
            leader: None,
            storage_seen_ms: None,
            nodes: Vec::new(),
            index: HashMap::new(),
            timers: Timers::default(),
            seen: Seen::default(),
            sight_since_ms: None,
            said_blind_ms: None,
            under_way: 0,
            last_token: 0,
            out: Vec::new(),
            #[cfg(test)]
            flaw: None,
        }
    }

    /// Takes in one thing that happened, and all that time has made due.
    pub fn step(&mut self, now_ms: u64, input: Input) -> Vec<Output> {
        self.advance(now_ms);
        match input {
            Input::Tick => {}
            Input::LeaseHeld { until_ms } => self.lease_held(until_ms),
            Input::LeaseLost => self.lead_no_more(),
            Input::Heartbeat(heartbeat) => self.heartbeat(heartbeat),
            Input::Connection { node, is_up } => self.connection(&node, is_up),
            Input::StorageSeen => self.storage_seen_ms = Some(self.now_ms),
            Input::Registered { node, incarnation, is_fenced } => self.registered(node, incarnation, is_fenced),
            Input::Forgotten { node } => self.forgotten(&node),
            Input::Witness { node, seen } => self.witness(&node, seen),
            Input::Orchestrator { node, state } => self.orchestrator(node, state),
            Input::Answer { token, answer } => self.answer(token, answer),
            Input::Configure(config) => {
                self.config = config;
                self.look_at_all();
            }
        }
        while let Some(node) = self.timers.pop(self.now_ms) {
            self.look(node);
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Input::Tick`] is useful at the latest; it is anyway, see there.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.timers.next_ms()
    }

    /// Whether an action is still to be carried out. Between a decision and its effect this process may have slept,
    /// lost the lease, or heard from the node.
    pub fn confirm(&mut self, now_ms: u64, token: Token) -> bool {
        self.advance(now_ms);
        let is_newest = self.nodes.get(token.node).and_then(|node| node.case.as_ref()).is_some_and(|case| {
            case.pending.as_ref().is_some_and(|pending| pending.token == token && pending.deadline_ms > self.now_ms)
        });
        self.leader.is_some() && is_newest && self.still_wanted(token.node)
    }

    pub fn is_leader(&self) -> bool {
        self.leader.is_some()
    }

    fn advance(&mut self, now_ms: u64) {
        let gap_ms = now_ms.saturating_sub(self.now_ms);
        self.now_ms = self.now_ms.max(now_ms);
        if gap_ms > self.config.max_gap_ms {
            self.thaw(gap_ms);
        } else if self.leader.is_some_and(|leader| leader.until_ms <= self.now_ms) {
            self.lead_no_more();
        }
    }

    /// What was known is old, and others may have acted: watch anew, lead only after the lease was renewed anew.
    fn thaw(&mut self, gap_ms: u64) {
        self.watch_since_ms = self.now_ms;
        self.storage_seen_ms = None;
        if self.leader.is_some() {
            let text = format!("the supervisor did not run for {gap_ms} ms; it watches anew before it acts");
            self.out.push(Output::Event { node: None, reason: EventReason::SupervisorThawed, text });
        }
        self.lead_no_more();
        self.look_at_all();
    }

    fn lease_held(&mut self, until_ms: u64) {
        if until_ms <= self.now_ms {
            return;
        }
        match &mut self.leader {
            Some(leader) => leader.until_ms = leader.until_ms.max(until_ms),
            None => {
                self.leader = Some(Leader { until_ms });
                self.look_at_all();
            }
        }
    }

    /// Forgets what it was doing: whoever leads next finds the traces.
    fn lead_no_more(&mut self) {
        if self.leader.take().is_some() {
            for node in 0..self.nodes.len() {
                self.drop_case(node);
            }
        }
    }

    fn heartbeat(&mut self, heartbeat: Heartbeat) {
        let Some(&at) = self.index.get(&heartbeat.node) else { return };
        let (now_ms, late_ms) = (self.now_ms, self.config.late_ms);
        let Some(node) = self.nodes.get_mut(at) else { return };
        // Only the life that the storage records counts, so nothing late of an earlier one does.
        if node.record.is_none_or(|record| record.incarnation != heartbeat.incarnation) {
            return;
        }
        let earlier = node.heard.filter(|heard| heard.incarnation == heartbeat.incarnation);
        if earlier.is_some_and(|heard| heard.sequence >= heartbeat.sequence) {
            return;
        }
        let is_steady = earlier.filter(|heard| now_ms.saturating_sub(heard.at_ms) < late_ms);
        node.heard = Some(Heard {
            at_ms: now_ms,
            steady_since_ms: is_steady.map_or(now_ms, |heard| heard.steady_since_ms),
            incarnation: heartbeat.incarnation,
            sequence: heartbeat.sequence,
            state: heartbeat.state,
        });
        node.is_connected = true;
        if node.sees_storage != heartbeat.sees_storage {
            node.sees_storage = heartbeat.sees_storage;
            if !heartbeat.sees_storage {
                let text = "its agent cannot reach the storage".to_owned();
                self.event(at, EventReason::NodeLostStorage, text);
            }
        }
        let has_turned = is_steady.is_none_or(|heard| heard.state != heartbeat.state);
        if has_turned {
            self.poke(at);
        }
        let Some(node) = self.nodes.get(at) else { return };
        // The common case ends here, without touching a timer.
        if has_turned && node.case.is_some()
            || node.class != Class::Heard && node.classify(&self.config, self.watch_since_ms, now_ms) != node.class
            || node.suspicion.is_some()
        {
            self.look(at);
        }
    }

    fn connection(&mut self, node: &NodeId, is_up: bool) {
        if let Some(&at) = self.index.get(node)
            && let Some(node) = self.nodes.get_mut(at)
            && !is_up
        {
            // Counts as connected again with the next heartbeat.
            node.is_connected = false;
            self.look(at);
        }
    }

    fn registered(&mut self, id: NodeId, incarnation: Incarnation, is_fenced: bool) {
        let at = self.entry(id);
        let Some(node) = self.nodes.get_mut(at) else { return };
        if node.record.is_none_or(|record| record.incarnation != incarnation) {
            // A life that has just been registered lives, or is at least not silent for long. Its agent is still to be heard.
            let sequence = 0;
            let state = crate::AgentState::Running;
            let at_ms = self.now_ms;
            let unheard = Heard { at_ms, steady_since_ms: at_ms, incarnation, sequence, state };
            match node.record {
                Some(_) => node.heard = Some(unheard),
                None => node.known_since_ms = at_ms,
            }
        }
        node.record = Some(Record { incarnation, is_fenced });
        self.poke(at);
        self.look(at);
    }

    fn forgotten(&mut self, node: &NodeId) {
        if let Some(&at) = self.index.get(node)
            && let Some(node) = self.nodes.get_mut(at)
        {
            (node.record, node.heard, node.refusal) = (None, None, None);
            self.drop_case(at);
            self.look(at);
        }
    }

    fn witness(&mut self, node: &NodeId, seen: Witness) {
        if let Some(&at) = self.index.get(node)
            && let Some(node) = self.nodes.get_mut(at)
            && node.witness != seen
        {
            node.witness = seen;
            self.look(at);
        }
    }

    fn orchestrator(&mut self, id: NodeId, state: OrchestratorNode) {
        let at = self.entry(id);
        let now_ms = self.now_ms;
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.not_ready_since_ms = if state.is_ready { None } else { Some(node.not_ready_since_ms.unwrap_or(now_ms)) };
        node.orchestrator = state;
        self.poke(at);
        self.look(at);
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        let is_newest = self
            .nodes
            .get(token.node)
            .and_then(|node| node.case.as_ref())
            .is_some_and(|case| case.pending.as_ref().is_some_and(|pending| pending.token == token));
        if is_newest && self.leader.is_some() {
            self.answered(token.node, answer);
            self.look(token.node);
        }
    }

    fn entry(&mut self, id: NodeId) -> usize {
        if let Some(&at) = self.index.get(&id) {
            return at;
        }
        let at = self.nodes.len();
        self.index.insert(id.clone(), at);
        self.nodes.push(Node::new(id));
        self.timers.add_node();
        at
    }

    fn look_at_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.look(node);
        }
    }

    pub(crate) fn event(&mut self, at: usize, reason: EventReason, text: String) {
        if let (Some(node), true) = (self.nodes.get(at), self.leader.is_some()) {
            self.out.push(Output::Event { node: Some(node.id.clone()), reason, text });
        }
    }

    pub(crate) fn record(&mut self, at: usize, stage: Stage, took_ms: u64, text: String) {
        if let Some(node) = self.nodes.get(at) {
            let entry = HistoryEntry { node: node.id.clone(), at_ms: self.now_ms, stage, took_ms, text };
            self.out.push(Output::Record(entry));
        }
    }
}
