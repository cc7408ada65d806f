//! Which works are running, and which of them nobody waits for any more.

use crate::{Call, Rpc, Trace};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The works of one process.
#[derive(Clone, Default)]
pub(crate) struct Running {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    next: u64,
    works: HashMap<u64, Work>,
}

struct Work {
    rpc: Rpc,
    volume: Option<String>,
    operation: Option<&'static str>,
    trace: Trace,
    is_abandoned: bool,
}

/// The thread's hold on its entry; dropped when the work ends.
pub(crate) struct Entry {
    running: Running,
    id: u64,
}

/// The waiting task's hold; dropped when it has its answer or its client is gone.
pub(crate) struct Waiting {
    running: Running,
    id: u64,
}

impl Running {
    pub(crate) fn enter(&self, call: &Call, trace: &Trace) -> (Entry, Waiting) {
        let mut table = self.table();
        let id = table.next;
        table.next += 1;
        let work = Work {
            rpc: call.rpc,
            volume: call.volume.clone(),
            operation: call.operation,
            trace: trace.clone(),
            is_abandoned: false,
        };
        table.works.insert(id, work);
        drop(table);
        (Entry { running: self.clone(), id }, Waiting { running: self.clone(), id })
    }

    /// Whether an equal call hangs: nothing has happened in it for longer than `patience`, and its client has left. The
    /// step it is in.
    pub(crate) fn hung(&self, call: &Call, patience: Duration) -> Option<&'static str> {
        self.table()
            .works
            .values()
            .find(|work| {
                let equal = work.rpc == call.rpc && work.volume == call.volume && work.operation == call.operation;
                equal && work.is_abandoned && work.trace.idle() > patience
            })
            .map(|work| work.trace.current().unwrap_or("start"))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every section under the lock is a plain insert, remove or flag.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.table().works.remove(&self.id);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(work) = self.running.table().works.get_mut(&self.id) {
            work.is_abandoned = true;
        }
    }
}
