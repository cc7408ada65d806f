//! Announces each side effect, so that crash tests can end or stop the process right after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts effects. In production it only counts; `driver` builds one with an action from `HAWSER_TEST_EFFECT`.
#[derive(Clone, Default)]
pub struct Effects {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    count: AtomicU64,
    action: Option<Action>,
}

type Action = Box<dyn Fn(u64, &'static str) + Send + Sync>;

impl Effects {
    /// `action` gets the number of the effect, from 1, and its name, right after the effect happened.
    pub fn with_action(action: impl Fn(u64, &'static str) + Send + Sync + 'static) -> Self {
        Self { inner: Arc::new(Inner { count: AtomicU64::new(0), action: Some(Box::new(action)) }) }
    }

    /// To be called right after every effect that outlives the process.
    pub fn done(&self, name: &'static str) {
        let number = self.inner.count.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(action) = &self.inner.action {
            action(number, name);
        }
    }
}
