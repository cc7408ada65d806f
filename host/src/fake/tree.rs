//! The files of one file system.

use crate::Owner;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use volume::DeviceNumber;

/// Number of an image file's content.
pub(super) type DiskId = u64;

#[derive(Clone, PartialEq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) owner: Owner,
    /// A directory in which nothing can be made.
    pub(super) is_sealed: bool,
}

#[derive(Clone, PartialEq)]
pub(super) enum Kind {
    Directory,
    File(Vec<u8>),
    Image(DiskId),
    BlockDevice(DeviceNumber),
    Symlink(PathBuf),
    Socket,
}

/// By absolute path inside the file system; the root is always there.
#[derive(Clone, PartialEq)]
pub(super) struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { nodes: BTreeMap::from([(PathBuf::from("/"), Node::new(Kind::Directory))]) }
    }

    pub(super) fn get(&self, path: &Path) -> Option<&Node> {
        self.nodes.get(path)
    }

    pub(super) fn get_mut(&mut self, path: &Path) -> Option<&mut Node> {
        self.nodes.get_mut(path)
    }

    pub(super) fn put(&mut self, path: PathBuf, kind: Kind) {
        self.nodes.insert(path, Node::new(kind));
    }

    pub(super) fn remove(&mut self, path: &Path) -> Option<Node> {
        self.nodes.remove(path)
    }

    /// With all below it.
    pub(super) fn remove_all(&mut self, path: &Path) -> Vec<Node> {
        let gone: Vec<PathBuf> = self.nodes.keys().filter(|found| found.starts_with(path)).cloned().collect();
        gone.iter().filter_map(|path| self.nodes.remove(path)).collect()
    }

    pub(super) fn is_sealed(&self, path: &Path) -> bool {
        self.nodes.get(path).is_some_and(|node| node.is_sealed)
    }

    pub(super) fn has_children(&self, path: &Path) -> bool {
        self.nodes.keys().any(|found| found.parent() == Some(path))
    }

    pub(super) fn has_image(&self, disk: DiskId) -> bool {
        self.nodes.values().any(|node| matches!(node.kind, Kind::Image(found) if found == disk))
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.nodes.values().map(|node| if let Kind::File(bytes) = &node.kind { bytes.len() as u64 } else { 0 }).sum()
    }

    pub(super) fn used_inodes(&self) -> u64 {
        self.nodes.len() as u64
    }
}

impl Node {
    pub(super) fn new(kind: Kind) -> Self {
        let mode = if matches!(kind, Kind::Directory) { 0o755 } else { 0o600 };
        Self { kind, owner: Owner { uid: 0, gid: 0, mode }, is_sealed: false }
    }
}
