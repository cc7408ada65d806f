//! Keeps the ledger, off the node that writes: takes acks on a socket, a connection a writer.

use super::ledger::Ack;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use volume::{Error, Result};

pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    ledger: File,
    epochs: BTreeMap<u64, Epoch>,
}

#[derive(Clone, Copy)]
struct Epoch {
    acks: u64,
    first_ns: u64,
}

impl Recorder {
    /// Binds `socket` (nothing may be there) and appends to `ledger`. Its threads end with the process.
    pub fn start(socket: &Path, ledger: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket)
            .map_err(|error| Error::io(format!("cannot bind the recorder's socket {}", socket.display()), error))?;
        let ledger = OpenOptions::new()
            .create(true)
            .append(true)
            .open(ledger)
            .map_err(|error| Error::io(format!("cannot open the ledger {}", ledger.display()), error))?;
        let shared =
            Arc::new(Shared { state: Mutex::new(State { ledger, epochs: BTreeMap::new() }), changed: Condvar::new() });
        let for_threads = Arc::clone(&shared);
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(|accepted| accepted.ok()) {
                let shared = Arc::clone(&for_threads);
                // A thread that cannot start drops its connection, and its writer stops without an ack.
                let _ = std::thread::Builder::new().stack_size(128 << 10).spawn(move || shared.read(connection));
            }
        });
        Ok(Self { shared })
    }

    /// Acks of one epoch, or of all.
    pub fn count(&self, epoch: Option<u64>) -> u64 {
        let state = self.shared.lock();
        state.epochs.iter().filter(|(e, _)| epoch.is_none_or(|wanted| **e == wanted)).map(|(_, e)| e.acks).sum()
    }

    /// Waits until `epoch` has `count` acks; when its first record was durable (CLOCK_MONOTONIC), or `None` in time.
    pub fn wait_for(&self, epoch: u64, count: u64, timeout: Duration) -> Option<u64> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = state.epochs.get(&epoch).filter(|found| found.acks >= count) {
                return Some(found.first_ns);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Blocks until SIGTERM or SIGINT.
    pub fn until_signal(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::io("cannot wait for signals", error))?;
        let stopped = async {
            crate::process::termination()?.await;
            Ok(())
        };
        runtime.block_on(stopped).map_err(|error| Error::io("cannot wait for signals", error))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line that is cut off belongs to a writer that died while it reported; it is no ack.
    fn read(&self, connection: UnixStream) {
        let mut reader = BufReader::new(connection);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) && line.ends_with(b"\n") {
            let Ok(ack) = serde_json::from_slice::<Ack>(&line) else { return };
            let mut state = self.lock();
            if state.ledger.write_all(&line).is_err() {
                return;
            }
            let epoch = state.epochs.entry(ack.epoch).or_insert(Epoch { acks: 0, first_ns: ack.end_ns });
            epoch.acks += 1;
            epoch.first_ns = epoch.first_ns.min(ack.end_ns);
            drop(state);
            self.changed.notify_all();
            line.clear();
        }
    }
}
