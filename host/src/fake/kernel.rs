//! What the machine remembers, and how a path is found in it.

use super::block::{Content, Disk, Loop};
use super::faults::{Faults, Stop};
use super::tree::{DiskId, Kind, Node, Tree};
use super::tuning::Tuning;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use volume::{DeviceNumber, Error, ErrorKind, FsType, Result};

pub(super) const ROOT_DEVICE: DeviceNumber = DeviceNumber { major: 8, minor: 1 };
const DEV_DEVICE: DeviceNumber = DeviceNumber { major: 0, minor: 5 };
const MAX_SYMLINKS: usize = 40;
const MAX_NAME_BYTES: usize = 255;
/// btrfs gives its mounts numbers that belong to no device.
const BTRFS_MINORS: u32 = 0x100;

pub(super) struct Kernel {
    pub(super) boot_id: String,
    pub(super) root: Tree,
    pub(super) dev: Tree,
    pub(super) disks: BTreeMap<DiskId, Disk>,
    pub(super) next_disk: DiskId,
    pub(super) loops: BTreeMap<u32, Loop>,
    pub(super) loop_limit: u32,
    /// In the order of mounting.
    pub(super) mounts: Vec<Mount>,
    pub(super) next_mount: u64,
    /// Mounts and devices that processes have open, by the number of the opener.
    pub(super) open: BTreeMap<u64, Opened>,
    pub(super) next_open: u64,
    pub(super) frozen: BTreeSet<DeviceNumber>,
    pub(super) shut_down: BTreeSet<DeviceNumber>,
    /// File systems that stopped writing because of an error.
    pub(super) went_read_only: BTreeSet<DeviceNumber>,
    /// CAP_SYS_RESOURCE.
    pub(super) may_grow_mounted_ext4: bool,
    pub(super) tuning: Tuning,
    pub(super) faults: Faults,
}

/// Which tree a mount shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Superblock {
    Root,
    Dev,
    Device(DeviceNumber, FsType),
}

#[derive(Clone)]
pub(super) struct Mount {
    pub(super) id: u64,
    /// The mount that it is mounted on; 0 for the root.
    pub(super) parent: u64,
    pub(super) at: PathBuf,
    pub(super) superblock: Superblock,
    /// The directory or file of the superblock that is its root.
    pub(super) root: PathBuf,
    pub(super) read_only: bool,
    pub(super) options: BTreeSet<String>,
}

pub(super) enum Opened {
    Mount(u64),
    Device(DeviceNumber),
}

/// A path found: on which mount, and where in its tree.
pub(super) struct Place {
    pub(super) mount: u64,
    pub(super) superblock: Superblock,
    pub(super) inner: PathBuf,
    pub(super) read_only: bool,
}

impl Kernel {
    pub(super) fn boot() -> Self {
        let mut root = Tree::new();
        root.put(PathBuf::from("/dev"), Kind::Directory);
        let mut kernel = Self {
            boot_id: uuid::Uuid::new_v4().to_string(),
            root,
            dev: Tree::new(),
            disks: BTreeMap::new(),
            next_disk: 1,
            loops: BTreeMap::new(),
            loop_limit: 1 << 20,
            mounts: Vec::new(),
            next_mount: 1,
            open: BTreeMap::new(),
            next_open: 1,
            frozen: BTreeSet::new(),
            shut_down: BTreeSet::new(),
            went_read_only: BTreeSet::new(),
            may_grow_mounted_ext4: true,
            tuning: Tuning::default(),
            faults: Faults::default(),
        };
        kernel.mount_first();
        kernel
    }

    /// What is mounted when a machine starts.
    pub(super) fn mount_first(&mut self) {
        self.mounts.clear();
        self.next_mount = 1;
        for (superblock, at) in [(Superblock::Root, "/"), (Superblock::Dev, "/dev")] {
            let parent = self.next_mount - 1;
            self.push_mount(parent, PathBuf::from(at), superblock, PathBuf::from("/"), false, BTreeSet::new());
        }
    }

    pub(super) fn push_mount(
        &mut self,
        parent: u64,
        at: PathBuf,
        superblock: Superblock,
        root: PathBuf,
        read_only: bool,
        options: BTreeSet<String>,
    ) {
        let id = self.next_mount;
        self.next_mount += 1;
        self.mounts.push(Mount { id, parent, at, superblock, root, read_only, options });
    }

    /// Walks the mounts down to `path`, whose parents hold no symlinks any more.
    pub(super) fn place(&self, path: &Path) -> Result<Place> {
        let mut current = self.mounts.first().ok_or_else(|| Error::internal("no root is mounted"))?;
        // Of the mounts on this one that cover the path, the first on the way.
        while let Some(next) = self
            .mounts
            .iter()
            .filter(|m| m.parent == current.id && m.id != current.id && path.starts_with(&m.at))
            .min_by_key(|m| m.at.components().count())
        {
            current = next;
        }
        let below = path.strip_prefix(&current.at).unwrap_or(Path::new(""));
        let inner = if below.as_os_str().is_empty() { current.root.clone() } else { current.root.join(below) };
        let read_only = current.read_only;
        Ok(Place { mount: current.id, superblock: current.superblock, inner, read_only })
    }

    pub(super) fn tree(&self, superblock: Superblock) -> Result<&Tree> {
        match superblock {
            Superblock::Root => Ok(&self.root),
            Superblock::Dev => Ok(&self.dev),
            Superblock::Device(number, _) => match &self.disk_of(number)?.content {
                Content::FileSystem { tree, .. } => Ok(tree),
                _ => Err(io_error(number)),
            },
        }
    }

    /// For changes: refused where the kernel would refuse the write.
    pub(super) fn tree_mut(&mut self, place: &Place) -> Result<&mut Tree> {
        if place.read_only {
            return Err(Error::new(ErrorKind::FailedPrecondition, "the file system is mounted read-only"));
        }
        match place.superblock {
            Superblock::Root => Ok(&mut self.root),
            Superblock::Dev => Ok(&mut self.dev),
            Superblock::Device(number, _) => {
                if self.frozen.contains(&number) {
                    // A real writer would sleep here.
                    return Err(Error::new(ErrorKind::Busy, "the file system is frozen"));
                }
                if self.went_read_only.contains(&number) {
                    return Err(Error::new(ErrorKind::FailedPrecondition, "the file system has become read-only"));
                }
                let is_cut_off = self.loop_of(number).is_some_and(|l| l.size_limit_bytes != 0);
                if is_cut_off || self.shut_down.contains(&number) {
                    return Err(io_error(number));
                }
                match &mut self.disk_of_mut(number)?.content {
                    Content::FileSystem { tree, .. } => Ok(tree),
                    _ => Err(io_error(number)),
                }
            }
        }
    }

    pub(super) fn node(&self, path: &Path) -> Result<Option<&Node>> {
        let place = self.place(path)?;
        Ok(self.tree(place.superblock)?.get(&place.inner))
    }

    /// The path with the symlinks and `..` of all but the last component resolved as far as they exist.
    pub(super) fn resolve_parents(&self, path: &Path) -> Result<PathBuf> {
        if !path.is_absolute() {
            return Err(Error::invalid(format!("path {path:?} is not absolute")));
        }
        let mut resolved = PathBuf::from("/");
        let mut left: Vec<_> = path.components().rev().map(|c| c.as_os_str().to_owned()).collect();
        let mut links = 0;
        while let Some(name) = left.pop() {
            match Path::new(&name).components().next() {
                Some(Component::ParentDir) => {
                    if self.node(&resolved)?.is_none() {
                        return Err(Error::invalid(format!(
                            "path {path:?} holds `..` after a directory that does not exist"
                        )));
                    }
                    resolved.pop();
                }
                Some(Component::Normal(name)) => {
                    let next = resolved.join(name);
                    match self.node(&next)?.map(|node| &node.kind) {
                        Some(Kind::Symlink(target)) if !left.is_empty() => {
                            links += 1;
                            if links > MAX_SYMLINKS {
                                return Err(Error::new(
                                    ErrorKind::FailedPrecondition,
                                    format!("{} goes round in symbolic links", path.display()),
                                ));
                            }
                            if target.is_absolute() {
                                resolved = PathBuf::from("/");
                            }
                            left.extend(target.components().rev().map(|c| c.as_os_str().to_owned()));
                        }
                        _ => resolved = next,
                    }
                }
                Some(Component::RootDir | Component::CurDir | Component::Prefix(_)) | None => {}
            }
        }
        Ok(resolved)
    }

    /// The path of a request for a change: absolute, without `..`, not the root, its parents resolved.
    pub(super) fn checked(&self, path: &Path) -> Result<PathBuf> {
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(Error::invalid(format!("path {path:?} holds `..`")));
        }
        if path.components().any(|c| c.as_os_str().len() > MAX_NAME_BYTES) {
            return Err(Error::invalid(format!("path {path:?} holds a name of more than {MAX_NAME_BYTES} bytes")));
        }
        if path.parent().is_none() {
            return Err(Error::invalid(format!("path {path:?} is not absolute or is the root directory")));
        }
        self.resolve_parents(path)
    }

    pub(super) fn is_mount_point(&self, path: &Path) -> bool {
        self.top_mount(path).is_some()
    }

    /// The mount that is visible at `path`.
    pub(super) fn top_mount(&self, path: &Path) -> Option<&Mount> {
        let place = self.place(path).ok()?;
        self.mounts.iter().find(|m| m.id == place.mount && m.at == path)
    }

    pub(super) fn is_mounted(&self, number: DeviceNumber) -> bool {
        self.mounts.iter().any(|m| matches!(m.superblock, Superblock::Device(n, _) if n == number))
    }

    pub(super) fn effect(&mut self, name: &'static str) -> Result<(), Stop> {
        self.faults.effect(name)
    }
}

impl Superblock {
    /// As the mount table shows it.
    pub(super) fn device(self) -> DeviceNumber {
        match self {
            Self::Root => ROOT_DEVICE,
            Self::Dev => DEV_DEVICE,
            Self::Device(number, FsType::Btrfs) => DeviceNumber { major: 0, minor: BTRFS_MINORS + number.minor },
            Self::Device(number, FsType::Ext4 | FsType::Xfs) => number,
        }
    }
}

pub(super) fn io_error(number: DeviceNumber) -> Error {
    let DeviceNumber { major, minor } = number;
    Error::new(ErrorKind::Unavailable, format!("input/output error on device {major}:{minor}"))
}
