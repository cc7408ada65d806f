//! One line a test.

use crate::failure::{Failure, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub(crate) struct Report {
    filter: Option<String>,
    except: Vec<String>,
    has_failed: AtomicBool,
}

impl Report {
    pub(crate) fn new(filter: Option<String>, except: Vec<String>) -> Self {
        Self { filter, except, has_failed: AtomicBool::new(false) }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        let contains = |part: &String| name.contains(part.as_str());
        self.filter.as_ref().is_none_or(contains) && !self.except.iter().any(contains)
    }

    /// Whether some test whose name begins so may be wanted.
    pub(crate) fn wants_some(&self, beginning: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.starts_with(beginning)) || self.wants(beginning)
    }

    /// Runs a test; a panic is a failure of it alone.
    pub(crate) fn test(&self, name: &str, work: impl FnOnce() -> Result<()>) {
        if !self.wants(name) {
            return;
        }
        let started = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Failure::from("it panicked")));
        match ended {
            Ok(()) => println!("ok {name} ({} ms)", started.elapsed().as_millis()),
            Err(failure) => self.failed(name, &failure.to_string()),
        }
    }

    pub(crate) fn ok(&self, name: &str) {
        println!("ok {name}");
    }

    pub(crate) fn failed(&self, name: &str, why: &str) {
        self.has_failed.store(true, Ordering::SeqCst);
        println!("FAILED {name}: {}", why.replace('\n', " | "));
    }

    pub(crate) fn skipped(&self, name: &str, why: &str) {
        println!("SKIPPED: {name}: {}", why.replace('\n', " | "));
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }
}
