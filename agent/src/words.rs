//! Words of other programs where the domain has words of this one.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The domain names reasons by `&'static str`, since they are few and fixed. Those that agents tell are kept for ever, so
/// only so many are.
#[derive(Default)]
pub(crate) struct Words {
    kept: Mutex<BTreeSet<&'static str>>,
}

const MOST: usize = 256;
const LONGEST: usize = 512;

impl Words {
    /// `otherwise` when there are too many, or it is too long.
    pub(crate) fn keep(&self, word: &str, otherwise: &'static str) -> &'static str {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(word) {
            return known;
        }
        if kept.len() >= MOST || word.len() > LONGEST {
            return otherwise;
        }
        let word: &'static str = Box::leak(word.to_owned().into_boxed_str());
        kept.insert(word);
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_agent_fills_the_memory() {
        let words = Words::default();
        let first = words.keep("PoolFull", "Other");
        assert!(std::ptr::eq(first, words.keep("PoolFull", "Other")));
        assert_eq!(words.keep(&"x".repeat(LONGEST + 1), "Other"), "Other");
        let kept = (0..MOST * 2).filter(|n| words.keep(&n.to_string(), "Other") != "Other").count();
        assert_eq!(kept, MOST - 1);
        assert_eq!(words.keep("PoolFull", "Other"), "PoolFull");
    }
}
