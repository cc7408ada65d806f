//! When to look at which node again. One timer a node: a heartbeat moves none, it is found out when the old one is due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(u64, usize)>>,
    /// The one that counts, by node; others in the heap are left-overs.
    due: Vec<Option<u64>>,
}

impl Timers {
    pub(crate) fn add_node(&mut self) {
        self.due.push(None);
    }

    /// Replaces the node's timer.
    pub(crate) fn arm(&mut self, node: usize, at_ms: u64) {
        if let Some(due) = self.due.get_mut(node)
            && *due != Some(at_ms)
        {
            *due = Some(at_ms);
            self.heap.push(Reverse((at_ms, node)));
        }
    }

    /// Takes one that is due.
    pub(crate) fn pop(&mut self, now_ms: u64) -> Option<usize> {
        while let Some(&Reverse((at_ms, node))) = self.heap.peek() {
            if at_ms > now_ms {
                return None;
            }
            self.heap.pop();
            if let Some(due) = self.due.get_mut(node)
                && *due == Some(at_ms)
            {
                *due = None;
                return Some(node);
            }
        }
        None
    }

    /// May be early by a left-over.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at_ms, _))| *at_ms)
    }
}

#[cfg(test)]
impl Timers {
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }
}
