//! Runs the work of a call on a thread of its own, so that it ends however the client fares.
//!
//! tonic drops a handler when its client goes away or its grpc-timeout passes. The work must not be dropped halfway
//! with its lock, so it is moved to a blocking thread and owns its `VolumeGuard`; the retry gets ABORTED while it runs
//! and finds its result afterwards. Threads are not used up by a device that hangs: an equal call is refused while an
//! abandoned one still hangs, so retries add none.

use crate::metrics::code_name;
use crate::running::{Entry, Running, Waiting};
use crate::{Call, Metrics, Rpc, Trace, status};
use std::fmt::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::{Code, Status};
use volume::{Error, ErrorKind, Result};

#[derive(Clone)]
pub struct Runtime {
    metrics: Metrics,
    deadline: Duration,
    running: Running,
}

/// An abandoned work in which nothing happens for longer than this counts as hung.
const PATIENCE: Duration = Duration::from_secs(5);

impl Runtime {
    /// What a call may take before its client is told DEADLINE_EXCEEDED, unless configured otherwise.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

    pub fn new(metrics: Metrics, deadline: Duration) -> Self {
        Self { metrics, deadline, running: Running::default() }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Runs `work`, which owns the lock of what it touches, to its end. When the client goes away, or the deadline
    /// passes (DEADLINE_EXCEEDED, with the step it hangs in), it goes on with its lock. A panic is an `Internal` error.
    /// One line is logged when the work ends, and one more when the deadline passes before.
    pub async fn run<T: Send + 'static>(
        &self,
        call: Call,
        work: impl FnOnce(&mut Trace) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let rpc = call.rpc;
        self.outcome(call, work).await.map_err(|error| status(rpc, &error))
    }

    /// As [`Runtime::run`], with the error as it is, for a protocol that carries it whole.
    pub async fn outcome<T: Send + 'static>(
        &self,
        call: Call,
        work: impl FnOnce(&mut Trace) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let trace = Trace::new();
        let (send, mut receive) = oneshot::channel();
        let (worker, _waiting) = self.worker(&call, &trace)?;
        let answered_late = worker.answered_late.clone();
        tokio::task::spawn_blocking(move || worker.work(work, send));
        if let Ok(received) = tokio::time::timeout(self.deadline, &mut receive).await {
            return received.map_err(|_| stopping(call.rpc))?;
        }
        answered_late.store(true, Ordering::SeqCst);
        receive.close();
        // It may have ended in this very moment.
        if let Ok(result) = receive.try_recv() {
            return result;
        }
        Err(self.late(&call, &trace, "the work goes on, retry to find its result"))
    }

    /// The thread's half of a call, and the mark that somebody waits for it. `Unavailable` while an equal call hangs.
    pub(crate) fn worker(&self, call: &Call, trace: &Trace) -> Result<(Worker, Waiting)> {
        if let Some(step) = self.running.hung(call, PATIENCE) {
            let rpc = call.rpc;
            let message = format!("{rpc}: an earlier call of the same still hangs in step \"{step}\"; retry later");
            let error = Error::new(ErrorKind::Unavailable, message);
            self.refuse(call, &error);
            return Err(error);
        }
        let (entry, waiting) = self.running.enter(call, trace);
        self.metrics.in_flight().inc();
        let worker = Worker {
            metrics: self.metrics.clone(),
            call: call.clone(),
            trace: trace.clone(),
            answered_late: Arc::default(),
            _entry: entry,
        };
        Ok((worker, waiting))
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The deadline passed: counts and logs it; its error.
    pub(crate) fn late(&self, call: &Call, trace: &Trace, advice: &str) -> Error {
        let Call { rpc, volume, node, operation } = call;
        self.metrics.answered(*rpc, Code::DeadlineExceeded);
        let message = format!(
            "{rpc}: not done after {} s{}; {advice}",
            self.deadline.as_secs_f32(),
            trace.current().map(|step| format!(", in step \"{step}\"")).unwrap_or_default()
        );
        tracing::warn!(%rpc, operation, volume, node, code = "DEADLINE_EXCEEDED", error = message, "call");
        Error::new(ErrorKind::Timeout, message)
    }

    /// For a request that is wrong before any work begins: counts and logs it; its status.
    pub fn refuse(&self, call: &Call, error: &Error) -> Status {
        let status = status(call.rpc, error);
        self.metrics.answered(call.rpc, status.code());
        let Call { rpc, volume, node, operation } = call;
        tracing::warn!(%rpc, operation, volume, node, code = code_name(status.code()), error = status.message(), "call");
        status
    }

    /// For a call whose capability no backend has: nothing advertises it. Counted, and logged at debug level.
    pub fn unimplemented(&self, rpc: Rpc) -> Status {
        self.metrics.answered(rpc, Code::Unimplemented);
        tracing::debug!(%rpc, code = "UNIMPLEMENTED", "call");
        Status::unimplemented(format!("{rpc} is not implemented by this driver, as its capabilities say"))
    }

    /// For a call that is answered from memory: counts it, and logs it at debug level alone, because orchestrators
    /// repeat such calls every few seconds.
    pub fn answered(&self, rpc: Rpc) {
        self.metrics.answered(rpc, Code::Ok);
        tracing::debug!(%rpc, code = "OK", "call");
    }

    /// Logs a request at debug level. `Debug` of CSI's messages hides their secrets.
    pub fn received(&self, rpc: Rpc, request: &impl fmt::Debug) {
        tracing::debug!(%rpc, ?request, "request");
    }

    /// Waits until no work is running, at most for `limit`; how many still are. For a graceful stop.
    pub async fn drain(&self, limit: Duration) -> u64 {
        let running = || u64::try_from(self.metrics.in_flight().get()).unwrap_or(0);
        let idle = async {
            while running() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(limit, idle).await;
        running()
    }
}

/// The blocking thread's half of a call.
pub(crate) struct Worker {
    metrics: Metrics,
    call: Call,
    trace: Trace,
    pub(crate) answered_late: Arc<AtomicBool>,
    _entry: Entry,
}

impl Worker {
    pub(crate) fn work<T>(self, work: impl FnOnce(&mut Trace) -> Result<T>, reply: oneshot::Sender<Result<T>>) {
        let mut trace = self.trace.clone();
        // The closure is consumed, and the guard in it with it, before anybody learns the result: a client that calls
        // again at once never meets its own lock.
        let result = catch_unwind(AssertUnwindSafe(move || work(&mut trace)))
            .unwrap_or_else(|panic| Err(Error::internal(format!("the driver failed: {}", panic_message(&*panic)))));
        let steps = self.trace.finish();
        let total = self.trace.elapsed();
        let refusal = result.as_ref().err().map(|error| status(self.call.rpc, error));
        let code = refusal.as_ref().map_or(Code::Ok, Status::code);
        // As the client reads it: one line, of bounded length.
        let error = refusal.as_ref().map(Status::message);
        let heard = reply.send(result).is_ok();
        let late = self.answered_late.load(Ordering::SeqCst);

        self.metrics.worked(self.call.rpc, total, &steps);
        if heard {
            self.metrics.answered(self.call.rpc, code);
        } else if !late {
            self.metrics.answered(self.call.rpc, Code::Cancelled);
        }
        let client = match (heard, late) {
            (true, _) => "answered",
            (false, true) => "deadline passed",
            (false, false) => "gone",
        };
        let Call { rpc, volume, node, operation } = &self.call;
        let (code, total_ms, steps) = (code_name(code), milliseconds(total), describe(&steps));
        if error.is_none() && heard {
            tracing::info!(%rpc, operation, volume, node, code, total_ms, steps, "call");
        } else {
            tracing::warn!(%rpc, operation, volume, node, code, total_ms, steps, client, error, "call");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.metrics.in_flight().dec();
    }
}

/// The work ended without a result: only the end of the process does that.
pub(crate) fn stopping(rpc: Rpc) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{rpc}: the driver is stopping; retry"))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// `lock=0.0 format=1.3`, in milliseconds.
fn describe(steps: &[(&'static str, Duration)]) -> String {
    let mut text = String::new();
    for (name, time) in steps {
        let _ = write!(text, "{}{name}={:.1}", if text.is_empty() { "" } else { " " }, milliseconds(*time));
    }
    text
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use volume::LockTable;

    fn runtime(deadline_ms: u64) -> Runtime {
        Runtime::new(Metrics::new(), Duration::from_millis(deadline_ms))
    }

    fn call() -> Call {
        Call::new(Rpc::ControllerExpandVolume).volume("pool.v1")
    }

    #[tokio::test]
    async fn result_and_error() {
        let runtime = runtime(10_000);
        assert_eq!(runtime.run(call(), |_| Ok(7)).await.unwrap(), 7);
        let refused = runtime.run::<()>(call(), |_| Err(Error::new(ErrorKind::Busy, "later"))).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Aborted, "later"));
        assert_eq!(runtime.drain(Duration::from_secs(5)).await, 0);
        let text = runtime.metrics().encode();
        assert!(text.contains(r#"{rpc="ControllerExpandVolume",code="ABORTED"} 1"#), "{text}");
        assert!(text.contains(r#"{rpc="ControllerExpandVolume",code="OK"} 1"#), "{text}");
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_frees_the_lock() {
        let locks = LockTable::default();
        let guard = locks.try_lock(["v"]).unwrap();
        let work = move |_: &mut Trace| -> Result<()> {
            let _guard = guard;
            panic!("boom")
        };
        let failed = runtime(10_000).run(call(), work).await.unwrap_err();
        assert_eq!(failed.code(), Code::Internal);
        assert!(failed.message().contains("boom"));
        assert!(locks.try_lock(["v"]).is_ok());
    }

    #[tokio::test]
    async fn after_the_deadline_the_work_goes_on_with_its_lock() {
        let runtime = runtime(50);
        let locks = LockTable::default();
        let guard = locks.try_lock(["v"]).unwrap();
        let (go_on, wait) = mpsc::channel::<()>();
        let work = move |trace: &mut Trace| {
            let _guard = guard;
            trace.step("quick");
            trace.step("fsync");
            wait.recv().unwrap();
            Ok(())
        };
        let late = runtime.run(call(), work).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded);
        assert!(late.message().contains("\"fsync\""), "{}", late.message());
        assert!(locks.try_lock(["v"]).is_err());
        assert_eq!(runtime.drain(Duration::from_millis(30)).await, 1);
        go_on.send(()).unwrap();
        assert_eq!(runtime.drain(Duration::from_secs(5)).await, 0);
        assert!(locks.try_lock(["v"]).is_ok());
    }

    #[tokio::test]
    async fn without_its_client_the_work_goes_on_with_its_lock() {
        let runtime = runtime(10_000);
        let locks = LockTable::default();
        let guard = locks.try_lock(["v"]).unwrap();
        let (started, has_started) = oneshot::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let work = move |_: &mut Trace| {
            let _guard = guard;
            started.send(()).unwrap();
            wait.recv().unwrap();
            Ok(())
        };
        let running = {
            let runtime = runtime.clone();
            tokio::spawn(async move { runtime.run(call(), work).await })
        };
        has_started.await.unwrap();
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        assert!(locks.try_lock(["v"]).is_err());
        go_on.send(()).unwrap();
        assert_eq!(runtime.drain(Duration::from_secs(5)).await, 0);
        assert!(locks.try_lock(["v"]).is_ok());
        let text = runtime.metrics().encode();
        assert!(text.contains(r#"{rpc="ControllerExpandVolume",code="CANCELLED"} 1"#), "{text}");
    }

    /// A device that hangs costs one thread a call, however often the call is repeated.
    #[tokio::test]
    async fn a_hung_call_is_not_joined_by_others() {
        let running = Running::default();
        let trace = Trace::new();
        let (entry, waiting) = running.enter(&call(), &trace);
        trace.clone().step("read");
        std::thread::sleep(Duration::from_millis(20));
        let patience = Duration::from_millis(10);
        assert_eq!(running.hung(&call(), patience), None, "somebody waits for it");
        drop(waiting);
        assert_eq!(running.hung(&call(), patience), Some("read"));
        assert_eq!(running.hung(&call(), PATIENCE), None, "it may only be slow");
        assert_eq!(running.hung(&call().volume("other"), patience), None);
        assert_eq!(running.hung(&Call::new(Rpc::ListVolumes).volume("pool.v1"), patience), None);
        let runtime = Runtime { running: running.clone(), ..runtime(10_000) };
        assert!(runtime.run(call(), |_| Ok(())).await.is_ok());
        drop(entry);
        assert_eq!(running.hung(&call(), patience), None);
    }
}
