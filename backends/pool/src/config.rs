//! How one pool is set up. The driver makes it from its configuration.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use volume::{BackendName, NodeId};

#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// The backend instance's name, the first part of every volume id.
    pub name: BackendName,
    pub directory: PathBuf,
    pub scope: Scope,
    /// The node this process serves; a local pool belongs to it.
    pub node: Option<NodeId>,
    /// How long an orphan (what a fenced node wrote last) is kept.
    pub orphan_keep_ms: u64,
    /// On a network file system the fence is a fork alone: the fenced node may go on acknowledging writes, which are
    /// lost. Nothing fails over there without this opt-in.
    pub allow_fork_only_fence: bool,
    /// For tests of tests alone: a fence records its proof and cuts nothing off.
    pub is_fence_pretended: bool,
    /// For tests alone: the pool counts as on a network file system, whatever it is on.
    pub is_network_pretended: bool,
    /// For how long this node goes on without having left a sign of life in the pool, before it stops its own writing there;
    /// 0: for ever. `None`: where nothing but a fork keeps it from its volumes, [`DEFAULT_LEASE_MS`], else for ever.
    pub shut_down_after_ms: Option<u64>,
    /// How long the fence of one volume may take.
    pub fence_deadline_ms: u64,
    pub max_volumes_per_node: Option<u64>,
    /// Kept free for records, forks and copy-on-write: nothing new is made in it, and capacity answers without it.
    /// `None`: a fiftieth of the pool, between 16 MiB and 4 GiB.
    pub reserve_bytes: Option<u64>,
    /// Where the directory's file system cannot clone files: the size of the pool image with xfs to make there and to
    /// mount at `<directory>/mnt`. `None`: the directory itself is the pool.
    pub image_bytes: Option<u64>,
}

/// Twice what a supervisor takes at least until it fences a node that is cut off.
pub(crate) const DEFAULT_LEASE_MS: u64 = 10_000;

/// Which nodes reach the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The one node that has the directory.
    Local,
    /// Every node that mounts it at the same path.
    Shared,
}

impl PoolConfig {
    pub fn new(name: BackendName, directory: impl Into<PathBuf>) -> Self {
        Self {
            name,
            directory: directory.into(),
            scope: Scope::Shared,
            node: None,
            orphan_keep_ms: 7 * 24 * 60 * 60 * 1000,
            allow_fork_only_fence: false,
            is_fence_pretended: false,
            is_network_pretended: false,
            shut_down_after_ms: None,
            fence_deadline_ms: 30_000,
            max_volumes_per_node: None,
            reserve_bytes: None,
            image_bytes: None,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Shared => "shared",
        })
    }
}
