//! One failover: look, decide by `plan`, do one thing, look again.

use crate::node::Node;
use crate::plan::{Next, Situation, plan, waiting};
use crate::{
    Action, Answer, Cause, EventReason, FenceResult, Output, Refusal, Stage, StorageView, Supervisor, Token, View,
};
use volume::{Incarnation, VolumeId};

/// A failover that failed so often in a row keeps no other from its place.
const STUCK_AFTER: u32 = 5;

#[derive(Debug)]
pub(crate) struct Case {
    cause: Option<Cause>,
    opened_ms: u64,
    pub(crate) stage: Stage,
    pub(crate) stage_since_ms: u64,
    pub(crate) pending: Option<Pending>,
    /// When to look again while nothing is pending.
    next_ms: u64,
    /// In a row, of looks or of what follows from them.
    failures: u32,
    is_look_failing: bool,
    /// What was done last, how often in a row, and when it may be done again.
    last: Option<(Action, u32, u64)>,
    /// Volumes that the last fence could not fence.
    refused: Vec<FenceResult>,
    no_proof: Option<String>,
    verified_clean: Option<Incarnation>,
    waits_for: Vec<VolumeId>,
    /// Every fenced volume has moved, or nobody asked for it for long.
    is_moved: bool,
    /// The orchestrator, asked, did not stand by what it told of the node before.
    is_behind: bool,
    /// Among [`Supervisor::under_way`].
    pub(crate) is_counted: bool,
    #[cfg(test)]
    is_fence_answered: bool,
}

#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) token: Token,
    pub(crate) deadline_ms: u64,
    action: Action,
    /// Goes against a node that is not fenced.
    needs_cause: bool,
}

impl Case {
    fn is_under_way(&self) -> bool {
        self.stage.is_under_way() && !self.is_moved && !self.is_behind && self.failures < STUCK_AFTER
    }
}

impl Supervisor {
    /// `cause` is absent where traces of an earlier failover were found.
    pub(crate) fn open_case(&mut self, at: usize, cause: Option<Cause>) {
        let now_ms = self.now_ms;
        let Some(node) = self.nodes.get_mut(at) else { return };
        if cause.is_none() && now_ms < node.reopen_ms {
            return;
        }
        node.case = Some(Case {
            cause,
            opened_ms: now_ms,
            stage: Stage::Inspecting,
            stage_since_ms: now_ms,
            pending: None,
            next_ms: now_ms,
            failures: 0,
            is_look_failing: false,
            last: None,
            refused: Vec::new(),
            no_proof: None,
            verified_clean: None,
            waits_for: Vec::new(),
            is_moved: false,
            is_behind: false,
            is_counted: false,
            #[cfg(test)]
            is_fence_answered: false,
        });
        match cause {
            Some(cause) => {
                self.unrefuse(at);
                self.record(at, Stage::Inspecting, 0, cause.to_string());
            }
            None => {
                let text = "traces of a failover were found, which is gone on with";
                self.event(at, EventReason::FailoverResumed, text.to_owned());
                self.record(at, Stage::Inspecting, 0, text.to_owned());
            }
        }
        self.recount(at);
    }

    pub(crate) fn drop_case(&mut self, at: usize) {
        if let Some(case) = self.nodes.get_mut(at).and_then(|node| node.case.take())
            && case.is_counted
        {
            self.under_way -= 1;
        }
    }

    pub(crate) fn advance_case(&mut self, at: usize) {
        let now_ms = self.now_ms;
        let Some(case) = self.case(at) else { return };
        if let Some(pending) = case.pending.take_if(|pending| pending.deadline_ms <= now_ms) {
            case.is_look_failing = pending.action.is_look();
            self.failed(at, "no answer in time");
        }
        let Some(case) = self.case(at) else { return };
        if case.pending.is_none() && case.next_ms <= now_ms {
            let volumes = std::mem::take(&mut case.waits_for);
            let look = if volumes.is_empty() { Action::Inspect } else { Action::VerifyReattach { volumes } };
            self.act(at, look, false);
        }
        self.recount(at);
    }

    pub(crate) fn case_due_ms(&self, at: usize) -> u64 {
        let Some(node) = self.nodes.get(at) else { return u64::MAX };
        match &node.case {
            Some(case) => case.pending.as_ref().map_or(case.next_ms, |pending| pending.deadline_ms),
            None if node.has_traces() => node.reopen_ms,
            None => u64::MAX,
        }
    }

    /// Something changed for the node: look at once rather than at the next poll.
    pub(crate) fn poke(&mut self, at: usize) {
        let now_ms = self.now_ms;
        if let Some(case) = self.case(at) {
            case.next_ms = now_ms;
        }
    }

    /// For [`Supervisor::confirm`]: whether the reason of the pending action still stands.
    pub(crate) fn still_wanted(&self, at: usize) -> bool {
        let Some(node) = self.nodes.get(at) else { return false };
        let Some(pending) = node.case.as_ref().and_then(|case| case.pending.as_ref()) else { return false };
        let cause = self.cause(node);
        !pending.needs_cause || cause.is_ok_and(|cause| self.judge(node, cause).is_ok())
    }

    pub(crate) fn answered(&mut self, at: usize, answer: Answer) {
        let now_ms = self.now_ms;
        let Some(case) = self.case(at) else { return };
        let Some(pending) = case.pending.take() else { return };
        match (pending.action, answer) {
            (action, Answer::Failed(text)) => {
                case.is_look_failing = action.is_look();
                self.failed(at, &text);
            }
            (Action::Inspect | Action::VerifyReattach { .. }, Answer::Observed(view)) => {
                if std::mem::take(&mut case.is_look_failing) {
                    case.failures = 0;
                }
                self.decide(at, &view);
            }
            (Action::ReadBack, Answer::Observed(view)) => self.read_back(at, &view.storage),
            (Action::Fence { .. }, Answer::Fenced(results)) => {
                case.refused = results.into_iter().filter(|result| result.proof.is_err()).collect();
                #[cfg(test)]
                {
                    case.is_fence_answered = case.refused.is_empty();
                }
                self.enter(at, Stage::ReadingBack, "");
                self.act(at, Action::ReadBack, false);
            }
            (Action::Unfence { incarnation }, Answer::Done) => {
                case.verified_clean = Some(incarnation);
                (case.next_ms, case.failures) = (now_ms, 0);
            }
            (action, Answer::Done) => {
                (case.next_ms, case.failures) = (now_ms, 0);
                self.done(at, &action);
            }
            (action, answer) => self.failed(at, &format!("{answer:?} is no answer to {action:?}")),
        }
        self.recount(at);
    }

    /// What a fence says of itself is not relied on: this is what it left in the storage.
    fn read_back(&mut self, at: usize, storage: &StorageView) {
        let now_ms = self.now_ms;
        let moves = |id: &VolumeId| storage.volumes.iter().any(|volume| volume.id == *id && volume.stays.is_none());
        let left = storage.volumes.iter().filter(|volume| volume.stays.is_none() && !volume.is_proven).count();
        let Some(case) = self.case(at) else { return };
        case.no_proof = why_no_proof(case.refused.drain(..).filter(|result| moves(&result.volume)));
        if !storage.is_fenced || left > 0 {
            if case.no_proof.is_none() {
                self.failed(at, &format!("the fence was answered, but {left} volumes have no proof"));
                return;
            }
        } else {
            (case.no_proof, case.failures) = (None, 0);
            let proven = storage.volumes.iter().filter(|volume| volume.is_proven).count();
            self.event(at, EventReason::NodeFenced, format!("fenced and read back: {proven} volumes have their proof"));
        }
        if let Some(case) = self.case(at) {
            case.next_ms = now_ms;
        }
    }

    fn done(&mut self, at: usize, action: &Action) {
        match action {
            Action::Evict { workloads } => {
                let text = format!("{} workloads of the fenced node were deleted", workloads.len());
                self.event(at, EventReason::WorkloadsDeleted, text);
            }
            Action::Untaint { .. } => {
                self.event(at, EventReason::NodeReturned, "the node came back clean and is let in again".to_owned());
            }
            _ => {}
        }
    }

    fn decide(&mut self, at: usize, view: &View) {
        let Some(orchestrator) = &view.orchestrator else {
            self.failed(at, "the look is without the orchestrator's part");
            return;
        };
        #[cfg(test)]
        let storage = &self.pretend(at, &view.storage);
        #[cfg(not(test))]
        let storage = &view.storage;
        let Some(mut situation) = self.nodes.get(at).and_then(|node| self.situation(node, storage)) else { return };
        let is_behind = situation.heed(&orchestrator.node);
        let next = plan(storage, orchestrator, &situation);
        #[cfg(test)]
        let next = match (self.flaw, orchestrator.node.taint, situation.heard) {
            (Some(crate::flaw::Flaw::UntaintEarly), Some(incarnation), Some(_)) => {
                Next::Act(Stage::Untainting, Action::Untaint { incarnation })
            }
            _ => next,
        };
        if let Some(case) = self.case(at) {
            case.waits_for.clear();
            case.is_behind = is_behind;
        }
        let leaves_traces = storage.is_fenced || orchestrator.node.taint.is_some();
        match next {
            // Its end would be the beginning of the next one, for as long as the news of the node do not arrive.
            Next::Close if is_behind => self.wait_for_news(at),
            Next::Refuse(why) if is_behind && !leaves_traces => {
                self.refuse(at, why);
                self.wait_for_news(at);
            }
            Next::Act(stage, action) => {
                self.enter(at, stage, "");
                self.act_paced(at, action, !storage.is_fenced);
            }
            Next::Wait(stage) => self.wait(at, stage, storage),
            Next::Refuse(why) => self.stand_refused(at, why, leaves_traces),
            Next::Close => self.close(at),
        }
    }

    fn situation(&self, node: &Node, storage: &StorageView) -> Option<Situation> {
        let case = node.case.as_ref()?;
        let cause = self.cause(node).ok();
        let stable_ms = node.return_stable_ms(&self.config, self.now_ms);
        let steady = node.steady_since_ms(storage.incarnation, &self.config, self.watch_since_ms, self.now_ms);
        Some(Situation {
            cause: cause.map(|cause| self.judge(node, cause)),
            heard: steady.map(|(since, state)| (state, self.now_ms.saturating_sub(since) >= stable_ms)),
            no_proof: case.no_proof.clone(),
            is_verified_clean: case.verified_clean == Some(storage.incarnation),
        })
    }

    fn wait_for_news(&mut self, at: usize) {
        let next_ms = self.now_ms + self.config.poll_ms;
        if let Some(case) = self.case(at) {
            (case.next_ms, case.failures) = (next_ms, 0);
        }
    }

    fn wait(&mut self, at: usize, stage: Stage, storage: &StorageView) {
        let (now_ms, warn_ms) = (self.now_ms, self.config.reattach_warn_ms);
        let (poll_ms, idle_poll_ms) = (self.config.poll_ms, self.config.idle_poll_ms);
        self.enter(at, stage, "");
        self.unrefuse(at);
        let Some(case) = self.case(at) else { return };
        case.failures = 0;
        let waits_for = if stage == Stage::Reattaching { waiting(storage) } else { Vec::new() };
        let is_overdue = stage == Stage::Reattaching && now_ms.saturating_sub(case.stage_since_ms) >= warn_ms;
        let is_moved = stage == Stage::AwaitingReturn || is_overdue;
        let has_just_moved = is_moved && !case.is_moved;
        let took_ms = now_ms.saturating_sub(case.opened_ms);
        case.is_moved |= is_moved;
        let text = match (has_just_moved, is_overdue) {
            (true, true) => format!("{} volumes were not attached again; nobody asked for them", waits_for.len()),
            (true, false) => format!("every volume is with its new holder, or free, {took_ms} ms after it began"),
            (false, _) => String::new(),
        };
        case.waits_for = waits_for;
        // What ends the waiting is told by messages.
        let is_idle = is_moved && stage != Stage::Returning;
        case.next_ms = now_ms + if is_idle { idle_poll_ms } else { poll_ms };
        if has_just_moved {
            let reason = if is_overdue { EventReason::VolumesNotReattached } else { EventReason::FailoverCompleted };
            self.event(at, reason, text);
        }
    }

    fn stand_refused(&mut self, at: usize, why: Refusal, leaves_traces: bool) {
        let (now_ms, poll_ms, retry_ms) = (self.now_ms, self.config.poll_ms, self.config.retry_ms);
        self.refuse(at, why.clone());
        let wait_ms = match &why {
            Refusal::NothingMoves(_) => self.config.refusal_repeat_ms,
            Refusal::NoProof(_) => {
                let Some(case) = self.case(at) else { return };
                case.failures += 1;
                backoff_ms(retry_ms, case.failures)
            }
            // Nothing has been done; it begins again when it may.
            _ if !leaves_traces => {
                self.drop_case(at);
                return;
            }
            _ => poll_ms,
        };
        self.enter(at, Stage::Refused, "");
        if let Some(case) = self.case(at) {
            case.next_ms = now_ms + wait_ms;
            case.no_proof = None;
        }
    }

    fn close(&mut self, at: usize) {
        self.enter(at, Stage::Closed, "");
        self.unrefuse(at);
        self.drop_case(at);
        let reopen_ms = self.now_ms + 2 * self.config.poll_ms;
        if let Some(node) = self.nodes.get_mut(at) {
            // What made it known may be older than the look that closed it.
            node.reopen_ms = reopen_ms;
        }
    }

    /// The same action again only after a while: what shows its effect may be behind.
    fn act_paced(&mut self, at: usize, action: Action, needs_cause: bool) {
        let (now_ms, retry_ms) = (self.now_ms, self.config.retry_ms);
        let Some(case) = self.case(at) else { return };
        let times = match &case.last {
            Some((last, _, not_before_ms)) if *last == action && now_ms < *not_before_ms => {
                case.next_ms = *not_before_ms;
                return;
            }
            Some((last, times, _)) if *last == action => times + 1,
            _ => 1,
        };
        case.last = Some((action.clone(), times, now_ms + backoff_ms(retry_ms, times)));
        let cause = case.cause;
        if matches!(action, Action::Fence { .. }) && needs_cause && times == 1 {
            self.begins(at, cause);
        }
        let is_against_node = matches!(action, Action::Fence { .. } | Action::Taint { .. } | Action::Evict { .. });
        self.act(at, action, needs_cause && is_against_node);
    }

    /// The node is about to be fenced for the first time in this failover.
    fn begins(&mut self, at: usize, cause: Option<Cause>) {
        if let Some(node) = self.nodes.get_mut(at) {
            node.failovers.add(self.config.flap_window_ms, self.now_ms);
        }
        let why = cause.map_or("it was lost again".to_owned(), |cause| cause.to_string());
        self.event(at, EventReason::FailoverStarted, format!("the node counts as lost: {why}"));
    }

    fn act(&mut self, at: usize, action: Action, needs_cause: bool) {
        self.last_token += 1;
        let token = Token { node: at, number: self.last_token };
        let timeout_ms = match action {
            Action::Fence { .. } => self.config.fence_timeout_ms,
            _ => self.config.action_timeout_ms,
        };
        let deadline_ms = self.now_ms + timeout_ms;
        let Some(node) = self.nodes.get_mut(at) else { return };
        let Some(case) = node.case.as_mut() else { return };
        case.pending = Some(Pending { token, deadline_ms, action: action.clone(), needs_cause });
        self.out.push(Output::Act { token, node: node.id.clone(), action });
    }

    fn failed(&mut self, at: usize, text: &str) {
        let (now_ms, retry_ms) = (self.now_ms, self.config.retry_ms);
        let Some(case) = self.case(at) else { return };
        case.pending = None;
        case.failures += 1;
        case.next_ms = now_ms + backoff_ms(retry_ms, case.failures);
        let (stage, failures) = (case.stage, case.failures);
        if failures == 1 || failures.is_multiple_of(10) {
            let text = format!("{stage:?} failed ({failures} in a row), it is tried again: {text}");
            self.event(at, EventReason::ActionFailed, text);
        }
    }

    fn enter(&mut self, at: usize, stage: Stage, text: &str) {
        let now_ms = self.now_ms;
        let Some(case) = self.case(at) else { return };
        if case.stage == stage {
            return;
        }
        let took_ms = now_ms.saturating_sub(case.stage_since_ms);
        (case.stage, case.stage_since_ms) = (stage, now_ms);
        self.record(at, stage, took_ms, text.to_owned());
    }

    fn recount(&mut self, at: usize) {
        let Some(case) = self.nodes.get_mut(at).and_then(|node| node.case.as_mut()) else { return };
        let is_under_way = case.is_under_way();
        match (std::mem::replace(&mut case.is_counted, is_under_way), is_under_way) {
            (false, true) => self.under_way += 1,
            (true, false) => self.under_way -= 1,
            _ => {}
        }
    }

    fn case(&mut self, at: usize) -> Option<&mut Case> {
        self.nodes.get_mut(at).and_then(|node| node.case.as_mut())
    }

    /// What a supervisor with a mistake takes the storage for.
    #[cfg(test)]
    fn pretend(&self, at: usize, storage: &StorageView) -> StorageView {
        use crate::flaw::Flaw;
        let node = &self.nodes[at];
        let is_lost = self.cause(node).is_ok();
        let believes = match self.flaw {
            Some(Flaw::SkipReadback) => node.case.as_ref().is_some_and(|case| case.is_fence_answered),
            Some(Flaw::SkipFence) => is_lost,
            _ => false,
        };
        let mut pretended = storage.clone();
        if believes {
            pretended.is_fenced = true;
            pretended.volumes.iter_mut().for_each(|volume| volume.is_proven = true);
        }
        pretended
    }
}

fn why_no_proof(refused: impl Iterator<Item = FenceResult>) -> Option<String> {
    let mut refused = refused.filter_map(|result| result.proof.err().map(|why| format!("{}: {why}", result.volume)));
    let first = refused.next()?;
    match refused.count() {
        0 => Some(first),
        more => Some(format!("{first}; and {more} more")),
    }
}

fn backoff_ms((first, longest): (u64, u64), times: u32) -> u64 {
    (first << times.saturating_sub(1).min(16)).min(longest)
}
