//! Opening a pool: its directories are made where they are missing, what crashes left is removed, and a directory that
//! holds something else is refused.
//!
//! Any number of drivers may have one pool open: everything they change is a link, a rename without replacement, or a
//! directory that its maker has locked.

use crate::image_pool::image_pool;
use crate::record::{is_entry, is_unfinished};
use crate::{Pool, PoolConfig, Scope};
use host::file::{Dir, FileSystemKind, filesystem_of, get_xattr, identity, probe_reflink, set_xattr};
use host::{Effects, Host};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use uuid::Uuid;
use volume::{Error, ErrorKind, NodeId, Result, Segments};

const POOL_FILE: &str = "pool.json";
const POOL_FORMAT: u32 = 1;
const MAX_POOL_FILE_BYTES: u64 = 64 << 10;
/// On `volumes/`: the content of pool.json, in case that is lost.
const COPY: &str = "user.hawser";
const VOLUMES: &str = "volumes";
const DIRECTORIES: [&str; 6] = [VOLUMES, "snapshots", "groups", "nodes", "templates", "trash"];
/// What may be beside them: mke2fs makes the first.
const TOLERATED: [&str; 1] = ["lost+found"];

const NODE_KEY: &str = "csi.hawser.dev/node";

/// `pool.json`: what the pool is, written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolFile {
    format: u32,
    pub(crate) uuid: Uuid,
    scope: Scope,
    /// The node that a local pool belongs to.
    node: Option<NodeId>,
}

impl Pool {
    /// Opens the pool in the configured directory, which is made with its parents where it is missing.
    ///
    /// `FailedPrecondition` for a directory that holds something else or a pool of another node or scope,
    /// `Unsupported` for a pool that a newer driver made.
    pub fn open(config: PoolConfig, host: Arc<dyn Host>, effects: Effects) -> Result<Self> {
        if config.scope == Scope::Local && config.node.is_none() {
            return Err(Error::invalid("a local pool belongs to a node, and no node is configured"));
        }
        let directory = &config.directory;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|e| Error::io(format!("making the pool's directory {}", directory.display()), e))?;
        let outer = Dir::open(directory, effects)?;
        let dir = image_pool(&config, host.as_ref(), &outer)?.unwrap_or(outer);
        let file = pool_file(&config, &dir)?;
        let [volumes, snapshots, groups, nodes, templates, trash] = DIRECTORIES.map(|name| dir.ensure_child(name));
        let pool = Self {
            volumes: volumes?,
            snapshots: snapshots?,
            groups: groups?,
            nodes: nodes?,
            templates: templates?,
            trash: trash?,
            file_system: file_system(&config, &dir)?,
            reflink: probe_reflink(&dir)?,
            said_full: Arc::default(),
            file: Arc::new(file),
            config: Arc::new(config),
            dir,
            host,
        };
        pool.clean()?;
        pool.rebuild_lost()?;
        pool.restore_ballast()?;
        Ok(pool)
    }

    /// `Unavailable` when the directory is not this pool any more: unmounted, replaced, or its storage is gone.
    pub(crate) fn check_reachable(&self) -> Result<()> {
        let path = self.dir.path();
        let gone = |error: Error| {
            let message = format!("the pool {} cannot be reached; is its file system mounted?", path.display());
            Error::with_source(ErrorKind::Unavailable, message, error)
        };
        let now = Dir::open(path, Effects::default()).map_err(gone)?;
        if !now.is_same(&self.dir)? {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{} is another directory than when the pool was opened; mount the pool there again",
                    path.display()
                ),
            ));
        }
        // A read, so that a device that went away is noticed.
        let file = read(&self.dir).map_err(gone)?;
        if file.as_ref() == Some(&*self.file) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("{} is not that of this pool any more; restart the driver", path.join(POOL_FILE).display()),
        ))
    }

    /// From where the volumes of this pool can be reached.
    pub(crate) fn own_topology(&self) -> Vec<Segments> {
        let (key, value) = match (self.file.scope, &self.file.node) {
            (Scope::Local, Some(node)) => (NODE_KEY.to_owned(), node.topology_value()),
            // A key for each pool: a node that mounts two reports both.
            _ => (format!("csi.hawser.dev/{}.pool", self.config.name), self.file.uuid.to_string()),
        };
        vec![Segments(BTreeMap::from([(key, value)]))]
    }
}

/// The loops of a file are told by the device it is on. Where files have another one than their directory (overlayfs
/// over several file systems) no loop would ever be found: they count as out of sight.
fn file_system(config: &PoolConfig, dir: &Dir) -> Result<FileSystemKind> {
    if config.is_network_pretended {
        return Ok(FileSystemKind::Network("pretended in a test"));
    }
    let unnamed = dir.unnamed_file()?;
    if identity(unnamed.file())?.device != dir.device()? {
        return Ok(FileSystemKind::Network("files on another device than their directory"));
    }
    filesystem_of(dir)
}

fn pool_file(config: &PoolConfig, dir: &Dir) -> Result<PoolFile> {
    let file = match read(dir)? {
        Some(file) => file,
        None => make(config, dir)?,
    };
    let refuse = |what: String| {
        let message = format!("the pool {} {what}", dir.path().display());
        Err(Error::new(ErrorKind::FailedPrecondition, message))
    };
    if file.scope != config.scope {
        return refuse(format!("was made as a {} pool and is configured as a {} one", file.scope, config.scope));
    }
    if file.scope == Scope::Local && file.node != config.node {
        let name = |node: &Option<NodeId>| node.as_ref().map_or("nobody".to_owned(), ToString::to_string);
        return refuse(format!("belongs to node {}, and this is node {}", name(&file.node), name(&config.node)));
    }
    Ok(file)
}

fn make(config: &PoolConfig, dir: &Dir) -> Result<PoolFile> {
    let names = dir.names()?;
    let ours = |name: &String| {
        DIRECTORIES.contains(&name.as_str()) || TOLERATED.contains(&name.as_str()) || is_unfinished(name)
    };
    if let Some(foreign) = names.iter().find(|name| !ours(name)) {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "{} is no pool and not empty: it holds {foreign:?}; give the pool a directory of its own",
                dir.path().display()
            ),
        ));
    }
    let volumes = dir.ensure_child(VOLUMES)?;
    let handle = volumes.as_fd().try_clone_to_owned().map(File::from);
    let handle = handle.map_err(|e| Error::io(format!("holding {} open", volumes.path().display()), e))?;
    let file = match get_xattr(&handle, COPY)? {
        Some(copy) => parse(dir, &copy)?,
        None if !volumes.names()?.iter().any(|name| is_entry(name)) => {
            PoolFile { format: POOL_FORMAT, uuid: Uuid::new_v4(), scope: config.scope, node: config.node.clone() }
        }
        None => {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} is lost, and so is the copy that the directory {VOLUMES} carried; restore it from a backup",
                    dir.path().join(POOL_FILE).display()
                ),
            ));
        }
    };
    let bytes = serde_json::to_vec_pretty(&file)
        .map_err(|e| Error::with_source(ErrorKind::Internal, "writing what the pool is", e))?;
    if dir.publish(POOL_FILE, &bytes)? {
        keep_copy(&handle, &bytes, dir.effects())?;
        return Ok(file);
    }
    read(dir)?.ok_or_else(|| Error::new(ErrorKind::Busy, "the pool's file came and went; retry"))
}

fn keep_copy(volumes: &File, bytes: &[u8], effects: &Effects) -> Result<()> {
    match set_xattr(volumes, COPY, bytes, effects) {
        // Without attributes (some NFS) the file is all there is.
        Err(error) if error.kind() != ErrorKind::Unsupported => Err(error),
        Ok(()) | Err(_) => volumes.sync_all().map_err(|e| Error::io("making the copy of pool.json durable", e)),
    }
}

fn read(dir: &Dir) -> Result<Option<PoolFile>> {
    match dir.read(POOL_FILE, MAX_POOL_FILE_BYTES) {
        Ok(bytes) => parse(dir, &bytes).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(dir: &Dir, bytes: &[u8]) -> Result<PoolFile> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let path = dir.path().join(POOL_FILE);
    let damaged = |e| {
        let message = format!("{} is damaged; restore it from a backup", path.display());
        Error::with_source(ErrorKind::Corrupt, message, e)
    };
    // The format first: a newer file may have other fields.
    let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format != POOL_FORMAT {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} has format {format}, and this driver knows {POOL_FORMAT}: a newer driver made the pool; use that one",
                path.display()
            ),
        ));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::LinuxHost;
    use volume::{Backend, BackendName, Connector};

    fn open(name: &str, directory: &std::path::Path, scope: Scope, node: &str) -> Pool {
        let mut config = PoolConfig::new(BackendName::parse(name).unwrap(), directory);
        (config.scope, config.node) = (scope, Some(NodeId::parse(node).unwrap()));
        Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap()
    }

    /// An orchestrator places a volume by comparing its topology with all that a node reports together.
    #[test]
    fn a_node_with_several_pools_reaches_each_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, scope| open(name, &dir.path().join(name), scope, "n1");
        let pools = [at("a", Scope::Shared), at("b", Scope::Shared), at("c", Scope::Local)];
        let mut node = Segments::default();
        for pool in &pools {
            node.0.extend(Connector::topology(pool).unwrap().0);
        }
        for pool in &pools {
            for own in Backend::topology(pool).unwrap() {
                assert!(own.is_within(&node), "{own:?} is not in {node:?}");
            }
        }
    }

    /// CSI 1.13, Topology: a value has at most 63 characters, with a letter or digit at both ends.
    #[test]
    fn topology_values_are_short() {
        let node = format!("{}.{}", "n".repeat(60), "example.com".repeat(8));
        let values = |node: &str| {
            let dir = tempfile::tempdir().unwrap();
            let pool = open("pool", dir.path(), Scope::Local, node);
            Backend::topology(&pool).unwrap().remove(0).0.into_values().collect::<Vec<_>>()
        };
        let long = values(&node);
        assert!(
            long.iter().all(|value| value.len() <= 63 && value.ends_with(|c: char| c.is_ascii_alphanumeric())),
            "{long:?}"
        );
        assert_eq!(long, values(&node));
        assert_ne!(long, values(&format!("{node}2")));
        assert_eq!(values("n1"), ["n1"]);
    }
}
