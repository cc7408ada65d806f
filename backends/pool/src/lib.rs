//! The file pool: volumes are images (or directories) below one directory, on xfs, btrfs or ext4. The layout on disk
//! and the rules are in `docs/architecture.md`.
#![forbid(unsafe_code)]

mod config;
mod model;
mod record;

pub use config::{PoolConfig, Scope};

use host::file::{Dir, FileSystemKind};
use host::{Effects, Host};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use volume::Result;

const VOLUMES: &str = "volumes";
const NODES: &str = "nodes";

/// One pool, as the controller and the node see it alike. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    config: Arc<PoolConfig>,
    dir: Dir,
    volumes: Dir,
    nodes: Dir,
    host: Arc<dyn Host>,
    file_system: FileSystemKind,
    /// Whether images can be cloned in place of copied.
    reflink: bool,
}

impl Pool {
    /// Opens the pool in the configured directory, which exists.
    pub fn open(config: PoolConfig, host: Arc<dyn Host>, effects: Effects) -> Result<Self> {
        let dir = Dir::open(&config.directory, effects)?;
        Ok(Self {
            volumes: dir.ensure_child(VOLUMES)?,
            nodes: dir.ensure_child(NODES)?,
            file_system: host::file::filesystem_of(&dir)?,
            reflink: host::file::probe_reflink(&dir)?,
            config: Arc::new(config),
            dir,
            host,
        })
    }

    /// Whether all loops of this pool's images are on this kernel and so in sight.
    fn sees_all_loops(&self) -> bool {
        !matches!(self.file_system, FileSystemKind::Network(_))
    }
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
