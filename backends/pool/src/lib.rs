//! The file pool: volumes are images (or directories) below one directory, on xfs, btrfs or ext4. The layout on disk
//! and the rules are in `docs/architecture.md`.
#![forbid(unsafe_code)]

mod alive;
mod attach;
mod backend;
mod ballast;
mod capacity;
mod changed_blocks;
mod config;
mod connector;
mod create;
mod delete;
mod expand;
mod extent_map;
mod fence;
mod group;
mod group_take;
mod health;
mod image;
mod image_pool;
mod leftovers;
mod list;
mod loops;
mod model;
mod modify;
mod nodes;
mod open;
mod orphan;
mod rebuild;
mod record;
mod snapshot;
mod template;
#[cfg(test)]
mod testing;
mod trim;

pub use config::{PoolConfig, Scope};

use host::file::{Dir, FileSystemKind};
use host::{Effects, Host};
use model::PoolTag;
use open::PoolFile;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

/// One pool, as the controller and the node see it alike. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    config: Arc<PoolConfig>,
    file: Arc<PoolFile>,
    dir: Dir,
    volumes: Dir,
    snapshots: Dir,
    groups: Dir,
    nodes: Dir,
    templates: Dir,
    trash: Dir,
    host: Arc<dyn Host>,
    file_system: FileSystemKind,
    /// Whether images can be cloned in place of copied.
    reflink: bool,
    /// Whether the log says that it is full.
    said_full: Arc<AtomicBool>,
}

impl Pool {
    /// Whether all loops of this pool's images are on this kernel and so in sight.
    fn sees_all_loops(&self) -> bool {
        !matches!(self.file_system, FileSystemKind::Network(_))
    }

    fn tag(&self) -> PoolTag {
        PoolTag::of(&self.file.uuid)
    }

    fn effects(&self) -> &Effects {
        self.dir.effects()
    }
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
