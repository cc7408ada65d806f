//! The second witness: whether a node leaves signs of life in the storage, or its machine answers at all.

use crate::Witness;
use std::collections::HashMap;
use volume::{BackendName, NodeId};

/// A node that lives leaves a sign each half second, and each half second they are read. So this is a few of them.
const SIGN_MS: u64 = 2_000;
/// A storage that could not be read for longer may have been of no use to anybody, so nodes get the time to show themselves again.
const GAP_MS: u64 = 2_000;
/// A machine that answers is asked again every second; one answer may get lost.
const REFUSED_MS: u64 = 3_000;

/// What was seen, and when. It goes by the supervisor's own clock alone: a sign's number says nothing but that it grew.
#[derive(Debug, Default)]
pub(crate) struct Witnesses {
    signs: HashMap<NodeId, Vec<Sign>>,
    refused_ms: HashMap<NodeId, u64>,
}

#[derive(Debug)]
struct Sign {
    backend: BackendName,
    number: u64,
    /// Since when the number stands still, as far as it was watched.
    since_ms: u64,
    has_grown: bool,
    /// Since when it cannot be read.
    unread_since_ms: Option<u64>,
}

impl Witnesses {
    /// The machine answered that nobody listens at its agent's port: it lives, whatever its agent does.
    pub(crate) fn refused(&mut self, node: NodeId, now_ms: u64) {
        self.refused_ms.insert(node, now_ms);
    }

    /// All marks that a look at the backend has shown.
    pub(crate) fn read(&mut self, backend: &BackendName, marks: &[(NodeId, u64)], now_ms: u64) {
        for (node, number) in marks {
            let signs = match self.signs.get_mut(node) {
                Some(signs) => signs,
                None => self.signs.entry(node.clone()).or_default(),
            };
            match signs.iter_mut().find(|sign| sign.backend == *backend) {
                Some(sign) => {
                    let unread_since_ms = sign.unread_since_ms.take();
                    if sign.number != *number {
                        (sign.has_grown, sign.number, sign.since_ms) = (true, *number, now_ms);
                    } else if unread_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= GAP_MS) {
                        (sign.has_grown, sign.since_ms) = (false, now_ms);
                    }
                }
                None => signs.push(Sign {
                    backend: backend.clone(),
                    number: *number,
                    since_ms: now_ms,
                    has_grown: false,
                    unread_since_ms: None,
                }),
            }
        }
    }

    /// The backend could not be read, or keeps no marks (any more).
    pub(crate) fn unread(&mut self, backend: &BackendName, now_ms: u64) {
        for sign in self.signs.values_mut().flatten().filter(|sign| sign.backend == *backend) {
            sign.unread_since_ms.get_or_insert(now_ms);
        }
    }

    /// One sign that grows is enough; stillness counts where at least one storage was watched for long enough.
    pub(crate) fn of(&self, node: &NodeId, now_ms: u64) -> Witness {
        let answers = self.refused_ms.get(node).is_some_and(|at| now_ms.saturating_sub(*at) < REFUSED_MS);
        let read = || self.signs.get(node).into_iter().flatten().filter(|sign| sign.unread_since_ms.is_none());
        let is_still = |sign: &Sign| now_ms.saturating_sub(sign.since_ms) >= SIGN_MS;
        if answers {
            Witness::AgentAway
        } else if read().any(|sign| sign.has_grown && !is_still(sign)) {
            Witness::Active
        } else if read().any(is_still) {
            Witness::Silent
        } else {
            Witness::CannotTell
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sign_that_was_watched_and_stands_still_is_silence() {
        let (backend, node) = (BackendName::parse("pool").unwrap(), NodeId::parse("n1").unwrap());
        let mut seen = Witnesses::default();
        assert_eq!(seen.of(&node, 0), Witness::CannotTell);
        let mark = |number| [(node.clone(), number)];
        seen.read(&backend, &mark(7), 1_000);
        assert_eq!(seen.of(&node, 1_500), Witness::CannotTell, "one number alone tells nothing");
        seen.read(&backend, &mark(8), 1_500);
        assert_eq!(seen.of(&node, 3_400), Witness::Active);
        seen.read(&backend, &mark(8), 3_500);
        assert_eq!(seen.of(&node, 3_500), Witness::Silent);
        seen.unread(&backend, 3_600);
        assert_eq!(seen.of(&node, 3_600), Witness::CannotTell);
        seen.read(&backend, &mark(8), 4_500);
        assert_eq!(seen.of(&node, 4_500), Witness::Silent, "the number is what it was");
        seen.unread(&backend, 5_000);
        seen.read(&backend, &mark(8), 9_000);
        assert_eq!(seen.of(&node, 9_000), Witness::CannotTell, "perhaps nobody could write meanwhile");
        seen.read(&backend, &mark(8), 11_000);
        assert_eq!(seen.of(&node, 11_000), Witness::Silent);
        seen.refused(node.clone(), 11_100);
        assert_eq!(seen.of(&node, 11_200), Witness::AgentAway, "a machine that answers lives");
        assert_eq!(seen.of(&node, 14_200), Witness::Silent);
        // A restart of the node's process may begin anywhere.
        seen.read(&backend, &mark(1), 16_300);
        assert_eq!(seen.of(&node, 16_300), Witness::Active);
    }
}
