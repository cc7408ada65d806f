//! The periodic look at the storage: the nodes' records and their signs of life.

use super::storage::Storage;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use volume::{Backend, BackendName, Error, ErrorKind, Incarnation, NodeId, NodeRecord, Result};

/// Signs of life are left as often.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A backend that takes longer is taken as one that cannot be read this time; the others are not held up. It may have been asked through
/// the agent of a node that has just died: the next look goes another way.
const LOOK_LIMIT: Duration = Duration::from_millis(700);
/// Looks that hang, of one backend: each is a thread.
const HUNG_AT_ONCE: usize = 4;

pub(super) struct Look {
    pub(super) backends: Vec<BackendLook>,
}

pub(super) struct BackendLook {
    pub(super) name: BackendName,
    pub(super) seen: Result<Seen>,
}

pub(super) struct Seen {
    pub(super) records: Vec<Record>,
    /// `None`: the backend keeps no such marks.
    pub(super) signs: Option<Vec<(NodeId, u64)>>,
}

/// Of a node's record what matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) is_fenced: bool,
    pub(super) registered_at_ms: u64,
}

/// Looks again and again, for as long as somebody listens.
pub(super) async fn look_again(storage: Arc<Storage>, looks: mpsc::Sender<Look>) {
    let hung: Arc<Mutex<BTreeMap<BackendName, usize>>> = Arc::default();
    let mut interval = tokio::time::interval(LOOK_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let under_way: Vec<_> = storage
            .backends()
            .into_iter()
            .filter(|backend| backend.attach().is_some())
            .map(|backend| (backend.name().clone(), tokio::spawn(look_at(backend, Arc::clone(&hung)))))
            .collect();
        let mut backends = Vec::new();
        for (name, look) in under_way {
            let seen = look.await.unwrap_or_else(|failed| Err(Error::internal(format!("a look failed: {failed}"))));
            backends.push(BackendLook { name, seen });
        }
        if looks.send(Look { backends }).await.is_err() {
            return;
        }
    }
}

async fn look_at(backend: Arc<dyn Backend>, hung: Arc<Mutex<BTreeMap<BackendName, usize>>>) -> Result<Seen> {
    let slow = || Error::new(ErrorKind::Timeout, "the storage does not answer");
    {
        let mut hung = hung.lock().unwrap_or_else(PoisonError::into_inner);
        let running = hung.entry(backend.name().clone()).or_default();
        if *running >= HUNG_AT_ONCE {
            return Err(slow());
        }
        *running += 1;
    }
    let look = tokio::task::spawn_blocking(move || {
        let seen = read(backend.as_ref());
        if let Some(running) = hung.lock().unwrap_or_else(PoisonError::into_inner).get_mut(backend.name()) {
            *running -= 1;
        }
        seen
    });
    match tokio::time::timeout(LOOK_LIMIT, look).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(failed)) => Err(Error::internal(format!("a look failed: {failed}"))),
        Err(_) => Err(slow()),
    }
}

fn read(backend: &dyn Backend) -> Result<Seen> {
    let attach = backend.attach().ok_or_else(|| Error::internal("a backend without grants is looked at"))?;
    let records = attach.nodes()?.iter().map(Record::of).collect();
    Ok(Seen { records, signs: attach.signs_of_life()? })
}

impl Record {
    pub(super) fn of(record: &NodeRecord) -> Self {
        Self {
            node: record.identity.id.clone(),
            incarnation: record.identity.incarnation,
            is_fenced: record.is_fenced(),
            registered_at_ms: record.registered_at_ms,
        }
    }

    /// Another backend's record of the same node: the newer life counts.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.incarnation == self.incarnation {
            self.is_fenced |= other.is_fenced;
            self.registered_at_ms = self.registered_at_ms.max(other.registered_at_ms);
        } else if other.registered_at_ms > self.registered_at_ms {
            *self = other.clone();
        }
    }
}
