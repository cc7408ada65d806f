//! The mount table.

use super::block::Content;
use super::faults::Stop;
use super::kernel::{Kernel, Mount, Opened, Place, Superblock};
use super::tree::Kind;
use crate::linux::options;
use crate::{FileSystemStats, MountEntry, MountRequest};
use std::collections::BTreeSet;
use std::path::Path;
use volume::{DeviceNumber, Error, ErrorKind, Result};

/// Of the file systems that are on no image.
const ROOT_BYTES: u64 = 1 << 40;
const BYTES_PER_INODE: u64 = 16 << 10;

impl Kernel {
    pub(super) fn mount_entries(&self) -> Vec<MountEntry> {
        self.mounts.iter().map(|mount| self.entry(mount)).collect()
    }

    pub(super) fn mount(&mut self, request: &MountRequest<'_>) -> Result<(), Stop> {
        let what = format!("mounting {} ({}) at {}", request.device.display(), request.fs, request.target.display());
        let refused = |kind, why: &str| Err(Stop::Failed(Error::new(kind, format!("{what}: {why}"))));
        let plan = options::plan(request.fs, request.read_only, request.flags)?;
        let target = self.place_of_directory(request.target)?;
        let number = match self.kind_at(request.device)? {
            Kind::BlockDevice(number) => *number,
            _ => return refused(ErrorKind::FailedPrecondition, "it is not a block device"),
        };
        if number != request.number {
            return refused(
                ErrorKind::FailedPrecondition,
                "it is another device than the volume's; nothing is mounted",
            );
        }
        let read_only = plan.read_only;
        let attached = self.loop_of(number);
        if !read_only && attached.is_some_and(|attached| attached.read_only) {
            return refused(ErrorKind::FailedPrecondition, "the device is read-only; mount it read-only too");
        }
        match &self.disk_of(number)?.content {
            Content::FileSystem { fs, size_bytes, .. }
                if *fs == request.fs && *size_bytes <= attached.map_or(0, |attached| attached.visible_bytes()) => {}
            _ => return refused(ErrorKind::Corrupt, "the file system on it is damaged or not what it should be"),
        }
        let superblock = Superblock::Device(number, request.fs);
        // One superblock is either read-only or not, for all its mounts.
        if self.mounts.iter().any(|m| m.superblock == superblock && m.options.contains("ro") != read_only) {
            return refused(ErrorKind::FailedPrecondition, "the device is mounted elsewhere with another access mode");
        }
        self.effect("mount")?;
        let key = |(key, value): (&str, Option<String>)| value.map_or(key.to_owned(), |value| format!("{key}={value}"));
        let mut options: BTreeSet<String> = plan.keys.into_iter().map(key).collect();
        options.insert(if read_only { "ro" } else { "rw" }.to_owned());
        let (parent, at) = target;
        self.push_mount(parent.mount, at, superblock, "/".into(), read_only, options);
        Ok(())
    }

    pub(super) fn bind(&mut self, source: &Path, target: &Path, read_only: bool) -> Result<(), Stop> {
        let what = format!("binding {} to {}", source.display(), target.display());
        let refused =
            |why: &str| Err(Stop::Failed(Error::new(ErrorKind::FailedPrecondition, format!("{what}: {why}"))));
        let is_device = match self.kind_at(source)? {
            Kind::Directory => false,
            Kind::BlockDevice(number) => {
                if read_only && !self.loop_of(*number).is_some_and(|attached| attached.read_only) {
                    return refused("the device itself is writable; attach it read-only");
                }
                true
            }
            _ => return refused("the source is neither a directory nor a block device"),
        };
        let from = self.place(&self.checked(source)?)?;
        let (parent, at) = if is_device { self.place_of_file(target)? } else { self.place_of_directory(target)? };
        let options = self.mounts.iter().find(|m| m.id == from.mount).map(|m| m.options.clone()).unwrap_or_default();
        self.effect("bind")?;
        self.push_mount(parent.mount, at, from.superblock, from.inner, read_only || from.read_only, options);
        Ok(())
    }

    pub(super) fn unmount(&mut self, path: &Path) -> Result<(), Stop> {
        let path = self.checked(path)?;
        let Some(mount) = self.top_mount(&path) else { return Ok(()) };
        let (id, superblock) = (mount.id, mount.superblock);
        let is_open = self.open.values().any(|opened| matches!(opened, Opened::Mount(open) if *open == id));
        if is_open || self.mounts.iter().any(|m| m.parent == id) {
            return Err(Stop::Failed(Error::new(
                ErrorKind::FailedPrecondition,
                format!("{} is in use: a process has it open, or something is mounted below it", path.display()),
            )));
        }
        self.effect("unmount")?;
        self.mounts.retain(|m| m.id != id);
        if let Superblock::Device(number, _) = superblock
            && !self.is_mounted(number)
        {
            self.frozen.remove(&number);
            self.shut_down.remove(&number);
            self.went_read_only.remove(&number);
        }
        Ok(())
    }

    pub(super) fn stats(&self, path: &Path) -> Result<FileSystemStats> {
        let path = self.checked(path)?;
        self.kind_at(&path)?;
        let place = self.place(&path)?;
        let total_bytes = match place.superblock {
            Superblock::Root | Superblock::Dev => ROOT_BYTES,
            Superblock::Device(number, _) => self.filesystem_size(number)?,
        };
        let tree = self.tree(place.superblock)?;
        let (used_bytes, used_inodes) = (tree.used_bytes(), tree.used_inodes());
        let total_inodes = total_bytes / BYTES_PER_INODE;
        Ok(FileSystemStats {
            total_bytes,
            available_bytes: total_bytes.saturating_sub(used_bytes),
            used_bytes,
            total_inodes,
            available_inodes: total_inodes.saturating_sub(used_inodes),
            used_inodes,
        })
    }

    /// Whether the mounted file system was frozen by this call; nothing is to be done for one that is not mounted.
    pub(super) fn freeze(&mut self, number: DeviceNumber) -> Result<bool> {
        if !self.is_mounted(number) {
            return Ok(false);
        }
        if self.frozen.contains(&number) {
            let DeviceNumber { major, minor } = number;
            let message = format!("the file system on device {major}:{minor} is frozen by somebody else");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        self.frozen.insert(number);
        Ok(true)
    }

    /// Whether it was frozen.
    pub(super) fn thaw(&mut self, number: DeviceNumber) -> bool {
        self.frozen.remove(&number)
    }

    pub(super) fn shutdown_filesystem(&mut self, mounted_at: &Path) -> Result<(), Stop> {
        let path = self.checked(mounted_at)?;
        let whole = self.top_mount(&path).filter(|mount| mount.root == Path::new("/"));
        match whole.map(|mount| mount.superblock) {
            Some(Superblock::Device(_, volume::FsType::Btrfs)) => {
                Err(Stop::Failed(Error::new(ErrorKind::Unsupported, "btrfs cannot be shut down (FS_IOC_SHUTDOWN)")))
            }
            Some(Superblock::Device(number, _)) => {
                self.effect("shutdown")?;
                self.shut_down.insert(number);
                Ok(())
            }
            Some(Superblock::Root | Superblock::Dev) | None => Err(Stop::Failed(Error::new(
                ErrorKind::FailedPrecondition,
                format!("no volume is mounted at {}", path.display()),
            ))),
        }
    }

    /// What is at `path`, without following a final symlink; `NotFound` when nothing is.
    pub(super) fn kind_at(&self, path: &Path) -> Result<&Kind> {
        let path = self.checked(path)?;
        let node = self.node(&path)?;
        node.map(|node| &node.kind).ok_or_else(|| Error::not_found(format!("{} is not there", path.display())))
    }

    fn entry(&self, mount: &Mount) -> MountEntry {
        let device = mount.superblock.device();
        let (fs_type, source) = match mount.superblock {
            Superblock::Root => ("ext4".to_owned(), "/dev/sda1".to_owned()),
            Superblock::Dev => ("devtmpfs".to_owned(), "udev".to_owned()),
            Superblock::Device(number, fs) => (fs.to_string(), format!("/dev/loop{}", number.minor)),
        };
        MountEntry {
            mounted_at: mount.at.clone(),
            root: mount.root.clone(),
            device,
            fs_type,
            source,
            read_only: mount.read_only,
            own_read_only: mount.read_only,
            options: self.options_of(mount),
            id: mount.id,
        }
    }

    fn place_of_directory(&self, path: &Path) -> Result<(Place, std::path::PathBuf)> {
        let at = self.checked(path)?;
        match self.kind_at(&at)? {
            Kind::Directory => Ok((self.place(&at)?, at)),
            _ => Err(Error::new(ErrorKind::FailedPrecondition, format!("{} is not a directory", at.display()))),
        }
    }

    /// A file, or a device node that is bound onto one already.
    fn place_of_file(&self, path: &Path) -> Result<(Place, std::path::PathBuf)> {
        let at = self.checked(path)?;
        match self.kind_at(&at)? {
            Kind::File(_) => Ok((self.place(&at)?, at)),
            Kind::BlockDevice(_) if self.is_mount_point(&at) => Ok((self.place(&at)?, at)),
            _ => Err(Error::new(ErrorKind::FailedPrecondition, format!("{} is not a regular file", at.display()))),
        }
    }
}
