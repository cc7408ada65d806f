//! Calls that answer with a stream of messages.
//!
//! The work runs on a blocking thread, as that of other calls does, and hands its messages over as the client takes
//! them: a few wait, then the work does. It ends when the client goes away, or takes nothing for as long as a deadline;
//! the client is told when no message comes for as long. The stream ends well only if the work did: an end that is not
//! an error tells the client that it has everything.

use crate::running::Waiting;
use crate::runtime::{Runtime, stopping};
use crate::{Call, Trace, status};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;
use tonic::Status;
use volume::{Error, ErrorKind, Result};

/// Messages that wait for the client.
const READY: usize = 2;

/// Where the work of a stream puts its messages.
pub struct Outlet<T> {
    messages: mpsc::Sender<T>,
    patience: Duration,
    trace: Trace,
    handle: Handle,
}

/// The messages as tonic takes them.
pub struct Messages<T> {
    /// Taken before the stream was given to tonic.
    first: Option<T>,
    arriving: mpsc::Receiver<T>,
    ended: oneshot::Receiver<Result<()>>,
    limit: Pin<Box<Sleep>>,
    answered_late: Arc<AtomicBool>,
    is_over: bool,
    call: Call,
    trace: Trace,
    runtime: Runtime,
    _waiting: Waiting,
}

impl Runtime {
    /// Runs `work` as [`Runtime::run`] does, and gives its messages once the first of them is there: what fails before
    /// is the answer. The deadline is for each message. `work` gets an error from [`Outlet::send`] when nobody listens
    /// any more, and is to give it back.
    pub async fn stream<T: Send + Unpin + 'static>(
        &self,
        call: Call,
        work: impl FnOnce(&mut Trace, &Outlet<T>) -> Result<()> + Send + 'static,
    ) -> Result<Messages<T>, Status> {
        let trace = Trace::new();
        let (messages, arriving) = mpsc::channel(READY);
        let (end, ended) = oneshot::channel();
        let (worker, waiting) = self.worker(&call, &trace).map_err(|error| status(call.rpc, &error))?;
        let answered_late = worker.answered_late.clone();
        let patience = self.deadline();
        let outlet = Outlet { messages, patience, trace: trace.clone(), handle: Handle::current() };
        tokio::task::spawn_blocking(move || worker.work(move |trace| work(trace, &outlet), end));
        let mut stream = Messages {
            first: None,
            arriving,
            ended,
            limit: Box::pin(sleep(patience)),
            answered_late,
            is_over: false,
            call,
            trace,
            runtime: self.clone(),
            _waiting: waiting,
        };
        stream.first = std::future::poll_fn(|context| Pin::new(&mut stream).poll_next(context)).await.transpose()?;
        Ok(stream)
    }
}

impl<T> Outlet<T> {
    /// Waits until the client has room for it. `Timeout` when it makes none, `Unavailable` when it is gone.
    pub fn send(&self, message: T) -> Result<()> {
        let sent = self.handle.block_on(self.messages.send_timeout(message, self.patience));
        self.trace.progress();
        sent.map_err(|error| match error {
            SendTimeoutError::Timeout(_) => {
                let seconds = self.patience.as_secs_f32();
                Error::new(ErrorKind::Timeout, format!("the client took no message for {seconds} s"))
            }
            SendTimeoutError::Closed(_) => {
                Error::new(ErrorKind::Unavailable, "the client went away before it had all messages")
            }
        })
    }
}

impl<T: Unpin> Stream for Messages<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if this.is_over {
            return Poll::Ready(None);
        }
        match this.arriving.poll_recv(context) {
            Poll::Ready(Some(message)) => {
                this.limit.as_mut().reset(Instant::now() + this.runtime.deadline());
                return Poll::Ready(Some(Ok(message)));
            }
            // All messages are out; the work tells how it ended.
            Poll::Ready(None) => {
                if let Poll::Ready(result) = Pin::new(&mut this.ended).poll(context) {
                    return Poll::Ready(this.end(result.ok()));
                }
            }
            Poll::Pending => {}
        }
        ready!(this.limit.as_mut().poll(context));
        this.answered_late.store(true, Ordering::SeqCst);
        this.ended.close();
        if let Ok(result) = this.ended.try_recv() {
            return Poll::Ready(this.end(Some(result)));
        }
        this.arriving.close();
        this.is_over = true;
        let advice = "it is given up; ask again from the end of what was received";
        let late = this.runtime.late(&this.call, &this.trace, advice);
        Poll::Ready(Some(Err(status(this.call.rpc, &late))))
    }
}

/// In this order: work that finds nobody to send to must not find somebody to tell.
impl<T> Drop for Messages<T> {
    fn drop(&mut self) {
        self.ended.close();
        self.arriving.close();
    }
}

impl<T> Messages<T> {
    fn end(&mut self, result: Option<Result<()>>) -> Option<Result<T, Status>> {
        self.is_over = true;
        let rpc = self.call.rpc;
        match result.unwrap_or_else(|| Err(stopping(rpc))) {
            Ok(()) => None,
            Err(error) => Some(Err(status(rpc, &error))),
        }
    }
}

#[cfg(test)]
mod tests;
