//! How this node and its backends are, looked at once a second and told with every heartbeat.

use crate::LifeState;
use crate::proto::{self, BackendState, Heartbeat};
use crate::server::Identify;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use volume::{Backend, NodeId, Result};

const INTERVAL: Duration = Duration::from_secs(1);
/// A backend that takes longer to say how it is counts as one that hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Keeps the last heartbeat (with sequence 0) up to date until nobody holds its receiver any more.
pub(crate) fn observe(
    node: &NodeId,
    identify: Identify,
    backends: &[Arc<dyn Backend>],
) -> watch::Receiver<Arc<Heartbeat>> {
    let node = node.to_string();
    let first =
        Heartbeat { node_id: node.clone(), problem: "it has only just started".to_owned(), ..Default::default() };
    let (send, receive) = watch::channel(Arc::new(first));
    let mut looks: Vec<_> = backends.iter().map(|backend| Look::new(Arc::clone(backend))).collect();
    tokio::spawn(async move {
        while !send.is_closed() {
            let identify = Arc::clone(&identify);
            let life = tokio::task::spawn_blocking(move || identify());
            let mut states = Vec::new();
            for look in &mut looks {
                states.push(look.state().await);
            }
            let life = match tokio::time::timeout(PATIENCE, life).await {
                Ok(Ok(life)) => life,
                Ok(Err(_)) | Err(_) => Err(volume::Error::internal("the node's service does not answer")),
            };
            let problem = match &life {
                Ok(life) => life.problem.clone().unwrap_or_default(),
                Err(error) => error.chain(),
            };
            let life = life.ok();
            send.send_replace(Arc::new(Heartbeat {
                node_id: node.clone(),
                incarnation: life.as_ref().map(|life| life.identity.incarnation.to_string()).unwrap_or_default(),
                boot_id: life.as_ref().map(|life| life.identity.boot_id.clone()).unwrap_or_default(),
                sequence: 0,
                ready: life.as_ref().is_some_and(|life| life.state == LifeState::Running),
                problem,
                backends: states,
                state: life.as_ref().map_or(proto::LifeState::Unspecified, |life| life.state.into()).into(),
            }));
            tokio::time::sleep(INTERVAL).await;
        }
    });
    receive
}

/// One thread looks at a backend at a time: one that hangs is one hung thread.
struct Look {
    backend: Arc<dyn Backend>,
    running: Arc<tokio::sync::Mutex<()>>,
    last: Arc<Mutex<Result<(), String>>>,
}

impl Look {
    fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, running: Arc::default(), last: Arc::new(Mutex::new(Ok(()))) }
    }

    async fn state(&mut self) -> BackendState {
        let name = self.backend.name().to_string();
        let looked = tokio::time::timeout(PATIENCE, async {
            let running = Arc::clone(&self.running).lock_owned().await;
            let (backend, last) = (Arc::clone(&self.backend), Arc::clone(&self.last));
            let look = tokio::task::spawn_blocking(move || {
                let _running = running;
                let found = backend.check().map_err(|error| error.chain());
                *last.lock().unwrap_or_else(PoisonError::into_inner) = found;
            });
            look.await.is_ok()
        });
        let problem = match looked.await {
            Ok(true) => self.last.lock().unwrap_or_else(PoisonError::into_inner).clone().err().unwrap_or_default(),
            Ok(false) => "looking at it failed".to_owned(),
            Err(_) => format!("it does not answer within {} s", PATIENCE.as_secs()),
        };
        BackendState { name, usable: problem.is_empty(), problem }
    }
}
