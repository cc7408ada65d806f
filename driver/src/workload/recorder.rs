//! Keeps the ledger, off the node that writes: takes acks on a socket, a connection a writer. To writers that do not know
//! which epoch is theirs it gives the next one.

use super::address::{Connection, RecorderAddress};
use super::ledger::{Ack, Start, StartRequest, now_ns};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;
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
    starts: Option<Starts>,
}

/// Who was given which epoch.
struct Starts {
    nonce: Uuid,
    file: File,
    next: u64,
}

#[derive(Clone, Copy)]
struct Epoch {
    acks: u64,
    first_ns: u64,
}

impl Recorder {
    /// Binds `socket` (nothing may be there) and appends to `ledger`. Its threads end with the process.
    pub fn start(socket: &Path, ledger: &Path) -> Result<Self> {
        Self::start_for(&RecorderAddress::Unix(socket.to_owned()), ledger, None)
    }

    /// Gives out epochs, too, to writers of the run `nonce`.
    pub fn start_for(address: &RecorderAddress, ledger: &Path, nonce: Option<Uuid>) -> Result<Self> {
        let listener =
            address.listen().map_err(|error| Error::io(format!("cannot listen for writers at {address}"), error))?;
        let append = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.map_err(|error| Error::io(format!("cannot open the ledger {}", path.display()), error))
        };
        let starts = match nonce {
            Some(nonce) => Some(Starts { nonce, file: append(&starts_path(ledger))?, next: 1 }),
            None => None,
        };
        let state = State { ledger: append(ledger)?, epochs: BTreeMap::new(), starts };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let for_threads = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok(connection) = listener.accept() {
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
    fn read(&self, connection: Box<dyn Connection>) {
        let mut reader = BufReader::new(connection);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) && line.ends_with(b"\n") {
            if let Ok(request) = serde_json::from_slice::<StartRequest>(&line) {
                let Some(epoch) = self.give_epoch(&request) else { return };
                if writeln!(reader.get_mut(), "{epoch}").is_err() {
                    return;
                }
            } else {
                let Ok(ack) = serde_json::from_slice::<Ack>(&line) else { return };
                if !self.keep(&ack, &line) {
                    return;
                }
            }
            line.clear();
        }
    }

    fn keep(&self, ack: &Ack, line: &[u8]) -> bool {
        let mut state = self.lock();
        if state.ledger.write_all(line).is_err() {
            return false;
        }
        let epoch = state.epochs.entry(ack.epoch).or_insert(Epoch { acks: 0, first_ns: ack.end_ns });
        epoch.acks += 1;
        epoch.first_ns = epoch.first_ns.min(ack.end_ns);
        drop(state);
        self.changed.notify_all();
        true
    }

    /// `None` for a writer of another run, and when it could not be written down.
    fn give_epoch(&self, request: &StartRequest) -> Option<u64> {
        let mut state = self.lock();
        let starts = state.starts.as_mut().filter(|starts| starts.nonce == request.start)?;
        let start = Start { epoch: starts.next, name: request.name.clone(), at_ns: now_ns() };
        let mut line = serde_json::to_vec(&start).ok()?;
        line.push(b'\n');
        starts.file.write_all(&line).ok()?;
        starts.next += 1;
        Some(start.epoch)
    }
}

fn starts_path(ledger: &Path) -> PathBuf {
    let mut path = ledger.as_os_str().to_owned();
    path.push(".starts");
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_given_once_and_to_this_run_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, ledger) = (directory.path().join("socket"), directory.path().join("ledger"));
        let nonce = Uuid::new_v4();
        let address = RecorderAddress::Unix(socket);
        let _recorder = Recorder::start_for(&address, &ledger, Some(nonce)).unwrap();
        let ask = |nonce: Uuid, name: &str| {
            let connection = address.connect().unwrap();
            super::super::write::ask_for_epoch(connection, nonce, name)
        };
        assert_eq!(ask(nonce, "first").unwrap(), 1);
        assert_eq!(ask(nonce, "second").unwrap(), 2);
        assert!(ask(Uuid::new_v4(), "of another run").is_err());
        assert_eq!(ask(nonce, "first").unwrap(), 3);
        let starts = std::fs::read_to_string(starts_path(&ledger)).unwrap();
        let starts: Vec<Start> = starts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<_> = starts.iter().map(|start| (start.epoch, start.name.as_str())).collect();
        assert_eq!(names, [(1, "first"), (2, "second"), (3, "first")]);
        assert_eq!(std::fs::read_to_string(&ledger).unwrap(), "");
    }
}
