//! A backend that keeps everything in memory: records in this process, images and loop devices in a [`FakeHost`]. For
//! tests of all that stands on backends, and for trying the driver out without root. Nothing outlives the process.
#![forbid(unsafe_code)]

mod attach;
mod changed_blocks;
mod connector;
mod copies;
mod fence;
mod groups;
mod health;
mod state;
mod volumes;

pub use connector::MemoryConnector;

use host::FakeHost;
use state::State;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use volume::{BackendName, Epoch, VolumeId};

/// The controller's half. Clones are further controllers on the same storage.
#[derive(Clone)]
pub struct MemoryBackend {
    storage: Arc<Storage>,
}

struct Storage {
    name: BackendName,
    host: Arc<FakeHost>,
    capacity_bytes: u64,
    max_volumes: Option<u64>,
    state: Mutex<State>,
}

impl MemoryBackend {
    /// `capacity_bytes` is what thick volumes, what is written to thin ones, and the orphans of fences share; a node gets
    /// at most `max_volumes`.
    pub fn new(name: BackendName, host: Arc<FakeHost>, capacity_bytes: u64, max_volumes: Option<u64>) -> Self {
        let storage = Storage { name, host, capacity_bytes, max_volumes, state: Mutex::new(State::default()) };
        Self { storage: Arc::new(storage) }
    }

    /// The node's half, for any number of nodes that run on this backend's host.
    pub fn connector(&self) -> MemoryConnector {
        MemoryConnector::new(self.clone())
    }
}

impl Storage {
    /// Held for changes of records and files, never for what may hang on a device.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self, id: &str) -> PathBuf {
        PathBuf::from(format!("/hawser-memory/{}/{id}", self.name))
    }

    /// The image that the holder of `epoch` forks to; the first has epoch 0.
    fn image_path(&self, id: &VolumeId, epoch: Epoch) -> PathBuf {
        self.directory(id.as_str()).join(format!("image.{:016x}", epoch.0))
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
