//! Bounds calls that can hang in the kernel on a device.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;
use volume::{Error, ErrorKind, Result};

/// Runs `work` on a thread of its own and waits for it at most `deadline_ms`.
///
/// `Timeout`, naming `what`, when it takes longer: a thread that sits in an uninterruptible call cannot be ended, so it
/// is left behind, finishes whenever the kernel lets it, and its result is dropped (guards in it act then). `work` must
/// therefore own what it uses, and be harmless when it finishes late.
pub fn run<T: Send + 'static>(
    deadline_ms: u64,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = channel();
    thread::Builder::new()
        .name("hawser-deadline".to_owned())
        .spawn(move || {
            // The receiver is gone after the deadline; nobody wants the result then.
            let _ = sender.send(work());
        })
        .map_err(|e| Error::io(format!("starting a thread for {what}"), e))?;
    match receiver.recv_timeout(Duration::from_millis(deadline_ms)) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(Error::new(
            ErrorKind::Timeout,
            format!("{what} did not end within {deadline_ms} ms; the device or the storage below it may be hung"),
        )),
        Err(RecvTimeoutError::Disconnected) => Err(Error::internal(format!("{what} panicked"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Barrier};

    #[test]
    fn a_result_an_error_and_a_panic_come_back() {
        assert_eq!(run(5000, "adding", || Ok(1 + 1)).unwrap(), 2);
        let refused = run(5000, "refusing", || Err::<(), _>(Error::invalid("no"))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        let panicked = run::<()>(5000, "panicking", || std::panic::resume_unwind(Box::new(()))).unwrap_err();
        assert_eq!(panicked.kind(), ErrorKind::Internal);
    }

    #[test]
    fn late_work_is_left_behind_and_what_it_gives_is_dropped() {
        struct Guard(Arc<AtomicBool>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let (dropped, release) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(2)));
        let (guard, gate) = (Guard(Arc::clone(&dropped)), Arc::clone(&release));
        let late = run(20, "waiting", move || {
            gate.wait();
            Ok(guard)
        });
        assert_eq!(late.err().map(|e| e.kind()), Some(ErrorKind::Timeout));
        assert!(!dropped.load(Ordering::SeqCst));
        release.wait();
        while !dropped.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    }
}
