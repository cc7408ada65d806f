//! The configured backends, opened; and the ways commands name volumes, snapshots and themselves.

use crate::config::{BackendConfig, BackendKind, Config};
use host::{Effects, FakeHost, Host, LinuxHost};
use memory::MemoryBackend;
use pool::{Pool, PoolConfig};
use std::sync::Arc;
use volume::{
    Backend, BackendName, Connector, Error, ErrorKind, LockTable, NodeRecord, PageRequest, Result, SnapshotId, Volume,
    VolumeId, VolumeName,
};

/// What volumes of a memory backend can hold together. Only what is written to them takes memory.
const MEMORY_CAPACITY_BYTES: u64 = 1 << 40;

/// Every configured backend with its node half, in the order of the configuration, and the host they act on.
pub struct Storage {
    pub entries: Vec<Entry>,
    pub host: Arc<dyn host::Host>,
    pub locks: LockTable,
}

pub struct Entry {
    pub backend: Arc<dyn Backend>,
    pub connector: Arc<dyn Connector>,
}

impl Storage {
    /// Opens every configured backend; directories of pools are made.
    pub fn open(config: &Config, effects: Effects) -> Result<Self> {
        let simulated = config.backends.iter().any(|backend| backend.kind == BackendKind::Memory);
        let (host, entries): (Arc<dyn Host>, Result<Vec<Entry>>) = if simulated {
            let host = Arc::new(FakeHost::mirroring_targets(effects));
            (host.clone(), Ok(config.backends.iter().map(|backend| open_memory(backend, &host)).collect()))
        } else {
            let host: Arc<dyn Host> = Arc::new(LinuxHost::new(effects.clone()));
            let open = |backend| open_pool(config, backend, &host, &effects);
            (host.clone(), config.backends.iter().map(open).collect())
        };
        Ok(Self { entries: entries?, host, locks: LockTable::default() })
    }

    /// As [`Storage::open`], for commands beside `hawser serve`.
    pub fn open_for_commands(config: &Config, effects: Effects) -> Result<Self> {
        if let Some(backend) = config.backends.iter().find(|backend| backend.kind == BackendKind::Memory) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "backend {} is of type memory: its volumes are in the process that serves it, where no command sees them",
                    backend.name
                ),
            ));
        }
        Self::open(config, effects)
    }

    /// To be kept by a service.
    pub fn shared_backends(&self) -> Vec<Arc<dyn Backend>> {
        self.entries.iter().map(|entry| Arc::clone(&entry.backend)).collect()
    }

    pub fn backends(&self) -> impl Iterator<Item = &dyn Backend> {
        self.entries.iter().map(|entry| &*entry.backend)
    }

    /// The backend named, or the first.
    pub fn backend(&self, name: Option<&str>) -> Result<&dyn Backend> {
        let mut backends = self.backends();
        let found = match name {
            None => backends.next(),
            Some(name) => backends.find(|backend| backend.name().as_str() == name),
        };
        found.ok_or_else(|| {
            let known: Vec<&str> = self.backends().map(|backend| backend.name().as_str()).collect();
            let name = name.unwrap_or("(default)");
            Error::not_found(format!("no backend {name:?} is configured; there is {}", known.join(", ")))
        })
    }

    /// The volume that `text` names: an id, or a name on the default backend, or a name on any other.
    pub fn find_volume(&self, text: &str) -> Result<(&dyn Backend, Volume)> {
        if let Ok(id) = VolumeId::parse(text) {
            let backend = self.backend(Some(id.backend()))?;
            return match backend.find_volume(&id)? {
                Some(volume) => Ok((backend, volume)),
                None => Err(Error::not_found(format!("no volume has the id {id}"))),
            };
        }
        let name = VolumeName::parse(text)?;
        for backend in self.backends() {
            if let Some(volume) = backend.find_volume(&VolumeId::of_name(backend.name(), &name))? {
                return Ok((backend, volume));
            }
        }
        Err(Error::not_found(format!("no volume has the name or id {text:?}; see: hawser volume ls")))
    }

    /// As [`Storage::find_volume`].
    pub fn find_snapshot(&self, text: &str) -> Result<(&dyn Backend, volume::Snapshot)> {
        let candidates: Vec<(&dyn Backend, SnapshotId)> = match SnapshotId::parse(text) {
            Ok(id) => vec![(self.backend(Some(id.backend()))?, id)],
            Err(_) => {
                let name = VolumeName::parse(text)?;
                self.backends().map(|backend| (backend, SnapshotId::of_name(backend.name(), &name))).collect()
            }
        };
        for (backend, id) in candidates {
            if let Some(found) = backend.snapshots().map(|s| s.find_snapshot(&id)).transpose()?.flatten() {
                return Ok((backend, found));
            }
        }
        Err(Error::not_found(format!("no snapshot has the name or id {text:?}; see: hawser snapshot ls")))
    }

    pub fn volumes(&self) -> Result<Vec<Volume>> {
        let mut all = Vec::new();
        for backend in self.backends() {
            all.extend(backend.list_volumes(&PageRequest::default())?.entries);
        }
        Ok(all)
    }

    /// The nodes each backend knows.
    pub fn nodes(&self) -> Result<Vec<(BackendName, NodeRecord)>> {
        let mut all = Vec::new();
        for backend in self.backends() {
            if let Some(attach) = backend.attach() {
                all.extend(attach.nodes()?.into_iter().map(|node| (backend.name().clone(), node)));
            }
        }
        Ok(all)
    }
}

fn open_memory(backend: &BackendConfig, host: &Arc<FakeHost>) -> Entry {
    let (name, limit) = (backend.name.clone(), backend.max_volumes_per_node);
    let memory = MemoryBackend::new(name, Arc::clone(host), MEMORY_CAPACITY_BYTES, limit);
    Entry { connector: Arc::new(memory.connector()), backend: Arc::new(memory) }
}

fn open_pool(config: &Config, backend: &BackendConfig, host: &Arc<dyn Host>, effects: &Effects) -> Result<Entry> {
    let mut settings = pool_config(config, backend);
    settings.is_fence_pretended = crate::test_switches::pretends_fences()?;
    if settings.is_fence_pretended {
        tracing::error!("{} is set: fences cut NOTHING off, and data will be lost", crate::test_switches::NO_FENCE);
    }
    settings.is_network_pretended = crate::test_switches::pretends_network()?;
    if settings.is_network_pretended {
        let name = crate::test_switches::NETWORK;
        tracing::error!("{name} is set: fences do NOT stop the old node, and what it still acknowledges is lost");
    }
    let pool = Arc::new(Pool::open(settings, Arc::clone(host), effects.clone())?);
    Ok(Entry { backend: pool.clone(), connector: pool })
}

fn pool_config(config: &Config, backend: &BackendConfig) -> PoolConfig {
    let mut pool = PoolConfig::new(backend.name.clone(), &backend.directory);
    pool.node = Some(config.node_id.clone());
    pool.allow_fork_only_fence = backend.allow_fork_only_fence;
    pool.shut_down_after_ms = backend.shut_down_after_s.map(|seconds| seconds * 1000);
    pool.max_volumes_per_node = backend.max_volumes_per_node;
    pool.image_bytes = backend.image_bytes;
    pool.reserve_bytes = backend.reserve_bytes;
    if let Some(scope) = backend.scope {
        pool.scope = scope;
    }
    if let Some(seconds) = backend.orphan_keep_s {
        pool.orphan_keep_ms = seconds * 1000;
    }
    pool
}

/// `cli:<user>@<host>`, as it is recorded with fences. Under sudo, the user who called it.
pub fn actor() -> String {
    let uid = nix::unistd::getuid();
    let user = std::env::var("SUDO_USER")
        .ok()
        .or_else(|| nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name))
        .unwrap_or_else(|| format!("uid-{uid}"));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("cli:{user}@{}", host.trim())
}
