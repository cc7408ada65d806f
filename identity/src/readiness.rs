//! Whether the storage can be used now, found out without ever waiting for it unbounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use volume::{Error, ErrorKind, Result};

/// Looks whether the storage can be reached and used; may hang when the storage does.
pub type Check = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// Answers Probe and `/readyz`.
#[derive(Clone)]
pub struct Readiness {
    check: Check,
    deadline: Duration,
    /// Held by the thread that checks: a check that hangs is one hung thread, however often it is asked.
    running: Arc<Mutex<()>>,
    was_ready: Arc<AtomicBool>,
}

impl Readiness {
    /// Orchestrators wait 1 s (kubelet's default) to 5 s (Nomad) for an answer.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_millis(800);

    pub fn new(check: Check, deadline: Duration) -> Self {
        Self { check, deadline, running: Arc::default(), was_ready: Arc::new(AtomicBool::new(true)) }
    }

    /// `Ok` when ready, else what is wrong; after the deadline `Timeout`. Changes are logged.
    pub async fn observe(&self) -> Result<()> {
        let answer = tokio::time::timeout(self.deadline, self.ask()).await.unwrap_or_else(|_| {
            let message = format!("the storage does not answer within {} ms", self.deadline.as_millis());
            Err(Error::new(ErrorKind::Timeout, message))
        });
        if self.was_ready.swap(answer.is_ok(), Ordering::SeqCst) != answer.is_ok() {
            match &answer {
                Ok(()) => tracing::info!("ready"),
                Err(error) => tracing::warn!(error = error.chain(), "not ready"),
            }
        }
        answer
    }

    async fn ask(&self) -> Result<()> {
        let running = self.running.clone().lock_owned().await;
        let check = self.check.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let _running = running;
            check()
        });
        checked
            .await
            .unwrap_or_else(|failed| Err(Error::internal(format!("the check of the storage failed: {failed}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_hung_check_costs_one_thread_and_heals() {
        let (go_on, wait) = mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(Some(wait));
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        let check = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            if let Some(wait) = wait.lock().unwrap().take() {
                let _ = wait.recv();
            }
            Ok(())
        };
        let readiness = Readiness::new(Arc::new(check), Duration::from_millis(30));
        for _ in 0..3 {
            assert_eq!(readiness.observe().await.unwrap_err().kind(), ErrorKind::Timeout);
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        go_on.send(()).unwrap();
        let healed = Readiness { deadline: Duration::from_secs(5), ..readiness };
        assert!(healed.observe().await.is_ok());
    }

    #[tokio::test]
    async fn a_panic_is_not_ready_and_does_not_stick() {
        let first = AtomicBool::new(true);
        let check = move || {
            assert!(!first.swap(false, Ordering::SeqCst), "once");
            Ok(())
        };
        let readiness = Readiness::new(Arc::new(check), Duration::from_secs(5));
        assert_eq!(readiness.observe().await.unwrap_err().kind(), ErrorKind::Internal);
        assert!(readiness.observe().await.is_ok());
    }
}
