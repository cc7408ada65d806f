//! How long each step of a call took, and in which one it is now.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The steps of one call. The thread that works writes it; the task that waits reads it when a deadline passes.
#[derive(Debug, Clone)]
pub struct Trace {
    steps: Arc<Mutex<Steps>>,
}

#[derive(Debug)]
struct Steps {
    started: Instant,
    done: Vec<(&'static str, Duration)>,
    current: Option<(&'static str, Instant)>,
    /// When something was last seen to happen.
    progressed: Instant,
}

impl Trace {
    pub fn new() -> Self {
        let now = Instant::now();
        let steps = Steps { started: now, done: Vec::new(), current: None, progressed: now };
        Self { steps: Arc::new(Mutex::new(steps)) }
    }

    /// Ends the step before and begins this one. Names are few and fixed: each becomes a metric's label.
    pub fn step(&mut self, name: &'static str) {
        self.steps().turn(Some(name));
    }

    /// The step goes on, and something of it is done.
    pub(crate) fn progress(&self) {
        self.steps().progressed = Instant::now();
    }

    /// For how long nothing was seen to happen.
    pub(crate) fn idle(&self) -> Duration {
        self.steps().progressed.elapsed()
    }

    /// The step that is under way.
    pub(crate) fn current(&self) -> Option<&'static str> {
        self.steps().current.map(|(name, _)| name)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.steps().started.elapsed()
    }

    /// Ends the last step; all of them with their times, in order.
    pub(crate) fn finish(&self) -> Vec<(&'static str, Duration)> {
        let mut steps = self.steps();
        steps.turn(None);
        steps.done.clone()
    }

    fn steps(&self) -> MutexGuard<'_, Steps> {
        // Nothing under this lock can panic between two changes that belong together.
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steps {
    fn turn(&mut self, next: Option<&'static str>) {
        let now = Instant::now();
        self.progressed = now;
        if let Some((name, began)) = self.current.take() {
            self.done.push((name, now - began));
        }
        self.current = next.map(|name| (name, now));
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}
