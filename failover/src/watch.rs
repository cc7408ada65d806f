//! Looking at one node: does it count as seen, is it suspected, may it be fenced, and when to look again.

use crate::node::{Class, Node};
use crate::reason::Concerns;
use crate::supervisor::Seen;
use crate::{Cause, EventReason, Output, Refusal, Supervisor, Witness};

/// While a suspicion stands that cannot be acted on.
const RECHECK_MS: u64 = 250;

impl Supervisor {
    /// Everything that follows for a node from what is known now. Costs the same however many nodes there are.
    pub(crate) fn look(&mut self, at: usize) {
        self.reclassify(at);
        let cause = match self.nodes.get(at) {
            Some(node) if node.record.is_some() => self.cause(node),
            _ => Err(u64::MAX),
        };
        self.suspect(at, cause.ok());
        let mut next_ms = match cause {
            // It may go away with a heartbeat; until then only the guards change.
            Ok(_) => self.now_ms + RECHECK_MS,
            Err(next_ms) => next_ms,
        };
        if self.leader.is_some() {
            if self.nodes.get(at).is_some_and(|node| node.case.is_none()) {
                self.open_if_needed(at, cause.ok());
            }
            self.advance_case(at);
            next_ms = next_ms.min(self.case_due_ms(at));
            if self.nodes.get(at).is_some_and(|node| node.refusal.is_some()) {
                next_ms = next_ms.min(self.now_ms + RECHECK_MS);
            }
        }
        if next_ms < u64::MAX {
            self.timers.arm(at, next_ms.max(self.now_ms + 1));
        }
    }

    pub(crate) fn cause(&self, node: &Node) -> Result<Cause, u64> {
        #[cfg(test)]
        if self.flaw == Some(crate::flaw::Flaw::FenceAtOnce) {
            return node.cause(&self.config, 0, 0, self.now_ms);
        }
        node.cause(&self.config, self.watch_since_ms, node.known_since_ms, self.now_ms)
    }

    /// The cause, if the node may be fenced for it now.
    pub(crate) fn judge(&self, node: &Node, cause: Cause) -> Result<Cause, Refusal> {
        #[cfg(test)]
        let is_at_once = self.flaw == Some(crate::flaw::Flaw::FenceAtOnce);
        #[cfg(not(test))]
        let is_at_once = false;
        if node.orchestrator.in_maintenance {
            return Err(Refusal::Maintenance);
        }
        if self.now_ms.saturating_sub(self.watch_since_ms) < self.config.suspect_ms && !is_at_once {
            return Err(Refusal::NewHere);
        }
        if self.storage_seen_ms.is_none_or(|seen| self.now_ms - seen > self.config.storage_stale_ms) {
            return Err(Refusal::StorageOutOfSight);
        }
        // When sight comes back it does so for one node after the other, and the last is not dead.
        if self.sight_since_ms.is_none_or(|since| self.now_ms - since < self.config.suspect_ms) && !is_at_once {
            return Err(self.sees_too_few());
        }
        // Its own failover is counted already when it has begun.
        let others = self.under_way - usize::from(node.case.as_ref().is_some_and(|case| case.is_counted));
        if others >= self.config.max_at_once {
            return Err(Refusal::TooManyAtOnce { under_way: others });
        }
        Ok(cause)
    }

    /// A suspicion that lasts although the node may not be fenced for it.
    fn unmet(&self, node: &Node) -> Option<Refusal> {
        if node.record.is_none() || node.orchestrator.in_maintenance {
            return None;
        }
        if node.silence_ms(self.watch_since_ms.max(node.known_since_ms), self.now_ms)
            < node.patience_ms(&self.config, self.now_ms)
        {
            return None;
        }
        match node.witness {
            _ if self.sight_since_ms.is_none() => Some(self.sees_too_few()),
            Witness::Active => Some(Refusal::StorageSeesItAlive),
            Witness::AgentAway => Some(Refusal::AgentAway),
            Witness::CannotTell => Some(Refusal::StorageCannotTell),
            Witness::Silent => None,
        }
    }

    fn open_if_needed(&mut self, at: usize, cause: Option<Cause>) {
        let Some(node) = self.nodes.get(at) else { return };
        #[cfg(test)]
        if self.flaw == Some(crate::flaw::Flaw::ForgetFailovers) && node.has_traces() {
            return;
        }
        if node.has_traces() {
            self.open_case(at, None);
            return;
        }
        match cause.map(|cause| self.judge(node, cause)) {
            Some(Ok(cause)) => self.open_case(at, Some(cause)),
            Some(Err(why)) => self.refuse(at, why),
            None => match self.unmet(node) {
                Some(why) => self.refuse(at, why),
                None => self.unrefuse(at),
            },
        }
    }

    pub(crate) fn refuse(&mut self, at: usize, why: Refusal) {
        let (now_ms, repeat_ms) = (self.now_ms, self.config.refusal_repeat_ms);
        let Some(node) = self.nodes.get_mut(at) else { return };
        let is_said = node
            .refusal
            .as_ref()
            .is_some_and(|(said, since)| said.is_like(&why) && now_ms.saturating_sub(*since) < repeat_ms);
        if is_said {
            return;
        }
        node.refusal = Some((why.clone(), now_ms));
        let id = node.id.clone();
        match why.concerns() {
            Concerns::Moment => {}
            Concerns::Node => self.event(at, EventReason::FailoverRefused, format!("not failed over: {why}")),
            // Said once, however many nodes it keeps from being failed over.
            Concerns::Supervisor => {
                if self.said_blind_ms.is_none_or(|said| now_ms - said >= repeat_ms) {
                    self.said_blind_ms = Some(now_ms);
                    let text = format!("nobody is failed over: {why}");
                    self.out.push(Output::Event { node: None, reason: EventReason::FailoverRefused, text });
                }
            }
        }
        self.out.push(Output::Refuse { node: id, why });
    }

    pub(crate) fn unrefuse(&mut self, at: usize) {
        if let Some(node) = self.nodes.get_mut(at) {
            node.refusal = None;
        }
    }

    fn suspect(&mut self, at: usize, cause: Option<Cause>) {
        let (window_ms, now_ms) = (self.config.flap_window_ms, self.now_ms);
        let is_new_here = self.watch_since_ms == now_ms;
        let sees_most = self.sight_since_ms.is_some();
        let Some(node) = self.nodes.get_mut(at) else { return };
        if node.suspicion == cause {
            return;
        }
        let before = std::mem::replace(&mut node.suspicion, cause);
        let id = node.id.clone();
        let heard = node.heard.map(|heard| heard.incarnation);
        if before.is_none() {
            (node.suspected_life, node.is_suspected_in_sight) = (heard, sees_most);
        }
        // One that is back in another life was gone.
        let is_same_life = node.suspected_life.is_none() || node.suspected_life == heard;
        let was_wrong = cause.is_none()
            && is_same_life
            && node.is_suspected_in_sight
            && node.record.is_some_and(|record| !record.is_fenced)
            && node.case.is_none();
        let mut flaps = 0;
        if before.is_some() && was_wrong && !is_new_here {
            node.flaps.add(window_ms, now_ms);
            flaps = node.flaps.lately(window_ms, now_ms);
        }
        if self.leader.is_none() {
            return;
        }
        self.poke(at);
        match cause {
            Some(cause) => self.out.push(Output::Suspect { node: id, cause }),
            None => self.out.push(Output::Clear { node: id }),
        }
        if flaps > 1 {
            let text = format!("suspected and heard again {flaps} times; suspicion is slower for a while");
            self.event(at, EventReason::NodeFlapping, text);
        }
    }

    fn reclassify(&mut self, at: usize) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        let class = node.classify(&self.config, self.watch_since_ms, self.now_ms);
        let before = std::mem::replace(&mut node.class, class);
        if let Some(count) = self.seen.of(before) {
            *count -= 1;
        }
        if let Some(count) = self.seen.of(class) {
            *count += 1;
        }
        self.sight_since_ms = match self.sight_since_ms {
            _ if !self.sees_most() => None,
            None => Some(self.now_ms),
            since => since,
        };
    }

    fn sees(&self) -> (usize, usize) {
        let Seen { heard, dead, missing } = self.seen;
        (heard, heard + dead + missing)
    }

    fn sees_too_few(&self) -> Refusal {
        let (seen, of) = self.sees();
        Refusal::SeesTooFew { seen, of }
    }

    /// Nodes that the storage sees dead, too, do not speak for a partition of the supervisor; but only as many as may
    /// be fenced at the same time, in case the storage is what is wrong.
    fn sees_most(&self) -> bool {
        #[cfg(test)]
        if self.flaw == Some(crate::flaw::Flaw::NoSelfPartitionGuard) {
            return true;
        }
        let (heard, of) = self.sees();
        let explained = heard + self.seen.dead.min(self.config.max_at_once);
        heard > 0 && explained as u64 * 100 > of as u64 * self.config.min_visible_percent
    }
}

impl Seen {
    fn of(&mut self, class: Class) -> Option<&mut usize> {
        match class {
            Class::Excluded => None,
            Class::Heard => Some(&mut self.heard),
            Class::Dead => Some(&mut self.dead),
            Class::Missing => Some(&mut self.missing),
        }
    }
}
