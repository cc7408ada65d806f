//! The agent's half of the protocol: who may ask, what is asked, and the work on a thread of its own.

use crate::connection::Peer;
use crate::credentials::Credentials;
use crate::describe::{DESCRIBE, Description};
use crate::envelope::{Answer as Reply, Invocation as Asked};
use crate::operation::Prepared;
use crate::proto::agent_server::Agent;
use crate::proto::{Answer, Heartbeat, Invocation, WatchRequest};
use crate::{Role, operations};
use nix::time::{ClockId, clock_gettime};
use rpc::{Call, Rpc, Runtime};
use serde_json::Value;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use volume::{Backend, BackendName, Error, ErrorKind, LockTable, NodeId, Result};

pub(crate) struct Service {
    pub(crate) node: NodeId,
    pub(crate) backends: Vec<Arc<dyn Backend>>,
    pub(crate) credentials: Arc<Credentials>,
    /// The controller's guards are of another process; these keep two of its calls apart when one outlives its client.
    pub(crate) locks: LockTable,
    pub(crate) runtime: Runtime,
    pub(crate) heartbeat: Duration,
    pub(crate) condition: watch::Receiver<Arc<Heartbeat>>,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// As often as anybody may want a heartbeat.
const FASTEST: Duration = Duration::from_millis(50);
const SLOWEST: Duration = Duration::from_secs(10);

type Heartbeats = Pin<Box<dyn Stream<Item = Result<Heartbeat, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for Service {
    type WatchStream = Heartbeats;

    /// Errors of backends are answers; a status is what keeps the controller from asking at all.
    async fn invoke(&self, request: Request<Invocation>) -> Result<Response<Answer>, Status> {
        self.authorise(&request, &Call::new(Rpc::AgentInvoke), &[Role::Controller])?;
        let result = self.carry_out(&request.get_ref().json).await;
        Ok(Response::new(Answer { json: Reply::new(result).to_json() }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Heartbeats>, Status> {
        let call = Call::new(Rpc::AgentWatch);
        let peer = self.authorise(&request, &call, &[Role::Controller, Role::Supervisor])?;
        self.runtime.answered(Rpc::AgentWatch);
        tracing::info!(peer = %peer.address, "watched");
        let wanted = Duration::from_millis(request.get_ref().interval_ms.into());
        let interval = if wanted.is_zero() { self.heartbeat } else { wanted.clamp(FASTEST, SLOWEST) };
        // One that does not keep up loses the connection's window, not memory here.
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(beat(self.condition.clone(), self.stopping.clone(), interval, send, {
            let credentials = Arc::clone(&self.credentials);
            move || peer.is_still_valid(&*credentials.current()?)
        }));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

impl Service {
    fn authorise<T>(&self, request: &Request<T>, call: &Call, allowed: &[Role]) -> Result<Arc<Peer>, Status> {
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection has no certificate"))?;
        let refuse = |error: Error| {
            let text = format!("the agent of node {} refuses: {}", self.node, error.chain());
            tracing::warn!(peer = %peer.address, rpc = %call.rpc, error = text, "refused");
            text
        };
        let material = self.credentials.current().map_err(|error| Status::unauthenticated(refuse(error)))?;
        peer.is_still_valid(&material).map_err(|error| Status::unauthenticated(refuse(error)))?;
        peer.is_one_of(allowed).map_err(|error| Status::permission_denied(refuse(error)))?;
        Ok(peer)
    }

    async fn carry_out(&self, json: &[u8]) -> Result<Value> {
        let asked = Asked::from_json(json)?;
        let Some(name) = &asked.backend else { return self.describe(&asked) };
        let backend = self.backend(name)?;
        let known = operations::ALL.iter().find(|known| known.name == asked.operation);
        let known = known.ok_or_else(|| asked.unsupported(&format!("operation {:?}", asked.operation)))?;
        let call = Call::new(Rpc::AgentInvoke).operation(known.name);
        let Prepared { name, keys, run } = (known.prepare)(&asked)?;
        let subject = asked.subject().map(str::to_owned).or_else(|| keys.first().cloned());
        let call = subject.map_or(call.clone(), |id| call.volume(&id));
        let guard = self.locks.try_lock(keys.iter().map(String::as_str)).inspect_err(|busy| {
            self.runtime.refuse(&call, busy);
        })?;
        let work = move |trace: &mut rpc::Trace| {
            trace.step(name);
            run(&*backend, &guard)
        };
        self.runtime.outcome(call, work).await
    }

    fn backend(&self, name: &BackendName) -> Result<Arc<dyn Backend>> {
        self.backends.iter().find(|backend| backend.name() == name).cloned().ok_or_else(|| {
            let message = format!("node {} has no backend {name} any more; its configuration has changed", self.node);
            Error::new(ErrorKind::Unavailable, message)
        })
    }

    fn describe(&self, asked: &Asked) -> Result<Value> {
        if asked.operation != DESCRIBE {
            return Err(asked.unsupported(&format!("operation {:?} without a backend", asked.operation)));
        }
        let described = Description::of(&self.node, &self.backends)?;
        serde_json::to_value(described).map_err(|error| Error::internal(format!("cannot describe: {error}")))
    }
}

/// Until the client or the agent has enough, or the client's certificate does not count any more.
async fn beat(
    condition: watch::Receiver<Arc<Heartbeat>>,
    mut stopping: watch::Receiver<bool>,
    interval: Duration,
    send: mpsc::Sender<Result<Heartbeat, Status>>,
    is_still_valid: impl Fn() -> Result<()>,
) {
    let mut ticks = tokio::time::interval(interval);
    // A node that was frozen has nothing to catch up with.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sequence = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = send.closed() => return,
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        let last = is_still_valid().err().map(|error| Status::unauthenticated(error.chain()));
        sequence = boot_ms().max(sequence + 1);
        let beat = match last.clone() {
            Some(refused) => Err(refused),
            None => Ok(Heartbeat { sequence, ..(**condition.borrow()).clone() }),
        };
        if send.send(beat).await.is_err() || last.is_some() {
            return;
        }
    }
}

/// Milliseconds since the machine was started, the time that it was suspended included.
fn boot_ms() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return 0 };
    u64::try_from(Duration::from(now).as_millis()).unwrap_or(0)
}
