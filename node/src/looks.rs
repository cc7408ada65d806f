//! Looks at what may hang: each is waited for only so long, and one that hangs is not joined by others.

use host::deadline;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use volume::{ErrorKind, Result};

pub(crate) struct Looks {
    patience: Duration,
    running: Arc<Running>,
}

#[derive(Default)]
struct Running {
    /// Since when, by what is looked at.
    table: Mutex<BTreeMap<String, Instant>>,
    ended: Condvar,
}

/// A look's hold on its entry, dropped when it ends, however late.
struct Entry {
    running: Arc<Running>,
    what: String,
}

impl Looks {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, running: Arc::default() }
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Runs `look` on a thread of its own. `None` when it takes too long, or when an earlier look at the same does.
    pub(crate) fn look<T: Send + 'static>(
        &self,
        what: &str,
        look: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        let Some(entry) = self.enter(what) else { return Ok(None) };
        let patience_ms = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
        let looked = deadline::run(patience_ms, what, move || {
            let _entry = entry;
            look()
        });
        match looked {
            Err(late) if late.kind() == ErrorKind::Timeout => Ok(None),
            looked => looked.map(Some),
        }
    }

    /// `None` when the entry is taken for longer than anybody waits.
    fn enter(&self, what: &str) -> Option<Entry> {
        let mut table = self.running.table();
        while let Some(since) = table.get(what) {
            let left = self.patience.checked_sub(since.elapsed())?;
            table = self.running.ended.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        table.insert(what.to_owned(), Instant::now());
        Some(Entry { running: Arc::clone(&self.running), what: what.to_owned() })
    }
}

impl Running {
    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        // Every section under the lock is a plain insert or remove.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.table().remove(&self.what);
        self.running.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::channel;

    #[test]
    fn a_hung_look_is_one_thread_however_often_it_is_asked_for() {
        let looks = Looks::new(Duration::from_millis(50));
        let started = Arc::new(AtomicU32::new(0));
        let (go_on, wait) = channel::<()>();
        let counted = Arc::clone(&started);
        let hung = looks.look("one", move || {
            counted.fetch_add(1, Ordering::SeqCst);
            wait.recv().unwrap();
            Ok(())
        });
        assert!(hung.unwrap().is_none());
        for _ in 0..20 {
            let counted = Arc::clone(&started);
            let begun = Instant::now();
            assert!(looks.look("one", move || Ok(counted.fetch_add(1, Ordering::SeqCst))).unwrap().is_none());
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
        assert_eq!(started.load(Ordering::SeqCst), 1);
        assert_eq!(looks.look("other", || Ok(7)).unwrap(), Some(7));
        go_on.send(()).unwrap();
        while looks.look("one", || Ok(())).unwrap().is_none() {
            std::thread::yield_now();
        }
        assert!(looks.running.table().is_empty());
    }

    /// Two that ask at the same time each get an answer.
    #[test]
    fn one_that_is_under_way_is_waited_for() {
        let looks = Looks::new(Duration::from_secs(30));
        std::thread::scope(|scope| {
            let (begun, has_begun) = channel::<()>();
            let (go_on, wait) = channel::<()>();
            let looks = &looks;
            let first = scope.spawn(move || {
                looks.look("one", move || {
                    begun.send(()).unwrap();
                    wait.recv().unwrap();
                    Ok(1)
                })
            });
            has_begun.recv().unwrap();
            let second = scope.spawn(move || looks.look("one", || Ok(2)));
            go_on.send(()).unwrap();
            assert_eq!(first.join().unwrap().unwrap(), Some(1));
            assert_eq!(second.join().unwrap().unwrap(), Some(2));
        });
    }
}
