//! What tests, and the backend that keeps its volumes in this host, do to it from outside: images, files that
//! workloads write, faults. None of it is an effect of the driver, so none of it is counted or fails by a fault.

use super::FakeHost;
use super::block::{BLOCK_BYTES, Content};
use super::kernel::{Kernel, Opened};
use super::tree::{Kind, Tree};
use crate::Probe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use volume::{DeviceNumber, Error, ErrorKind, FsType, Result};

/// A mount or a device that some process has open, until it is dropped.
pub struct OpenFile {
    host: Arc<FakeHost>,
    number: u64,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.host.kernel().open.remove(&self.number);
    }
}

/// Images.
impl FakeHost {
    /// Makes a blank image file, and the directories above it. `AlreadyExists` when something is there.
    pub fn create_image(&self, path: &Path, size_bytes: u64) -> Result<()> {
        self.kernel().add_image(path, size_bytes, Content::Blank)
    }

    /// Makes a file system over the whole image, as `filesystem::make` does; refuses an image that is not blank.
    pub fn format_image(&self, path: &Path, fs: FsType, uuid: [u8; 16]) -> Result<()> {
        let mut kernel = self.kernel();
        let (disk, size_bytes) = kernel.disk_at(path)?;
        let disk = kernel.disk_mut(disk)?;
        if !matches!(disk.content, Content::Blank) {
            return Err(Error::new(ErrorKind::FailedPrecondition, format!("{} is not blank", path.display())));
        }
        disk.content = Content::FileSystem { fs, uuid, size_bytes, errors: None, tree: Tree::new() };
        Ok(())
    }

    /// A reflink: a new inode with the content as it is now.
    pub fn clone_image(&self, from: &Path, to: &Path) -> Result<()> {
        let mut kernel = self.kernel();
        let source = kernel.disk(kernel.disk_at(from)?.0)?.clone();
        kernel.add_image(to, source.size_bytes, source.content)
    }

    /// As `filesystem::set_uuid`.
    pub fn set_image_uuid(&self, path: &Path, uuid: [u8; 16]) -> Result<()> {
        self.change_content(path, |content| {
            if let Content::FileSystem { uuid: own, .. } = content {
                *own = uuid;
            }
        })
    }

    pub fn resize_image(&self, path: &Path, size_bytes: u64) -> Result<()> {
        let mut kernel = self.kernel();
        let disk = kernel.disk_at(path)?.0;
        kernel.disk_mut(disk)?.size_bytes = size_bytes;
        Ok(())
    }

    /// What was written to the image, in bytes.
    pub fn allocated_bytes(&self, path: &Path) -> Result<u64> {
        let kernel = self.kernel();
        Ok(match &kernel.disk(kernel.disk_at(path)?.0)?.content {
            Content::FileSystem { tree, .. } => tree.used_bytes(),
            Content::Data(blocks) => blocks.len() as u64 * BLOCK_BYTES,
            Content::Blank | Content::Damaged { .. } | Content::Other(_) | Content::Unreadable => 0,
        })
    }

    /// Removes what is at `path` and below it; loops keep the inodes that they have. Fine when absent.
    pub fn remove_all(&self, path: &Path) {
        let mut kernel = self.kernel();
        let gone = kernel.root.remove_all(path);
        let disks: Vec<_> =
            gone.iter().filter_map(|node| if let Kind::Image(disk) = node.kind { Some(disk) } else { None }).collect();
        kernel.forget_unused_disks(&disks);
    }

    /// Puts on the image what a probe is to find: data, another's signature, damage.
    pub fn put_on_image(&self, path: &Path, found: &Probe) -> Result<()> {
        let found = found.clone();
        self.change_content(path, move |content| {
            *content = match found {
                Probe::Blank => Content::Blank,
                Probe::Other(name) => Content::Other(name),
                Probe::Damaged { fs, reason } => Content::Damaged { fs, reason },
                Probe::FileSystem { fs, uuid, size_bytes, errors } => {
                    let errors = errors.then(String::new);
                    Content::FileSystem { fs, uuid, size_bytes, errors, tree: Tree::new() }
                }
            };
        })
    }

    /// Reads of the image fail from now on.
    pub fn make_unreadable(&self, path: &Path) -> Result<()> {
        self.change_content(path, |content| *content = Content::Unreadable)
    }

    /// Sets the superblock's error flag; `said` is what a checker then finds, nothing when empty.
    pub fn set_errors(&self, path: &Path, said: &str) -> Result<()> {
        let said = said.to_owned();
        self.change_content(path, move |content| {
            if let Content::FileSystem { errors, .. } = content {
                *errors = Some(said);
            }
        })
    }

    fn change_content(&self, path: &Path, change: impl FnOnce(&mut Content)) -> Result<()> {
        let mut kernel = self.kernel();
        let disk = kernel.disk_at(path)?.0;
        change(&mut kernel.disk_mut(disk)?.content);
        Ok(())
    }
}

/// What workloads and administrators do.
impl FakeHost {
    /// Makes the directory and those above it.
    pub fn create_directory(&self, path: &Path) -> Result<()> {
        let mut kernel = self.kernel();
        let mut missing: Vec<_> = path.ancestors().collect();
        missing.reverse();
        for directory in missing {
            match kernel.node(directory)?.map(|node| &node.kind) {
                Some(Kind::Directory) => {}
                Some(_) => {
                    return Err(Error::new(ErrorKind::AlreadyExists, format!("{directory:?} is not a directory")));
                }
                None => kernel.put_node(directory, Kind::Directory)?,
            }
        }
        Ok(())
    }

    pub fn create_symlink(&self, path: &Path, target: &Path) -> Result<()> {
        self.kernel().put_node(path, Kind::Symlink(target.to_owned()))
    }

    pub fn create_socket(&self, path: &Path) -> Result<()> {
        self.kernel().put_node(path, Kind::Socket)
    }

    /// Writes a file and syncs it. `Busy` where a real writer would sleep (frozen),
    /// `Unavailable` where it would get EIO (fenced, shut down), `Exhausted` on a full file system.
    pub fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut kernel = self.kernel();
        let path = kernel.checked(path)?;
        match path.parent().map(|parent| kernel.kind_at(parent)) {
            Some(Ok(Kind::Directory)) | None => {}
            Some(Err(error)) if error.kind() == ErrorKind::InvalidArgument => {}
            _ => return Err(Error::not_found(format!("the directory of {} is not there", path.display()))),
        }
        let place = kernel.place(&path)?;
        if place
            .inner
            .parent()
            .is_some_and(|parent| kernel.tree(place.superblock).is_ok_and(|tree| tree.is_sealed(parent)))
        {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("the directory of {} is sealed", path.display()),
            ));
        }
        if let super::kernel::Superblock::Device(number, _) = place.superblock {
            let used = kernel.tree(place.superblock)?.used_bytes();
            if used + bytes.len() as u64 > kernel.filesystem_size(number)? {
                return Err(Error::new(ErrorKind::Exhausted, format!("write {}: no space left", path.display())));
            }
        }
        kernel.put_node(&path, Kind::File(bytes.to_owned()))
    }

    pub fn read_file(&self, path: &Path) -> Result<Vec<u8>> {
        let kernel = self.kernel();
        match kernel.kind_at(path)? {
            Kind::File(bytes) => Ok(bytes.clone()),
            _ => Err(Error::invalid(format!("{} is not a file", path.display()))),
        }
    }

    /// Writes whole blocks to a block device or an image.
    pub fn write_blocks(&self, path: &Path, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.kernel().write_blocks(path, offset_bytes, bytes)
    }

    /// Reads whole blocks.
    pub fn read_blocks(&self, path: &Path, offset_bytes: u64, length_bytes: u64) -> Result<Vec<u8>> {
        self.kernel().read_blocks(path, offset_bytes, length_bytes)
    }

    /// A process opens the mount that `path` is on, or the block device at `path`.
    pub fn open(self: &Arc<Self>, path: &Path) -> Result<OpenFile> {
        let mut kernel = self.kernel();
        let opened = match kernel.kind_at(path)? {
            Kind::BlockDevice(number) => Opened::Device(*number),
            _ => Opened::Mount(kernel.place(&kernel.checked(path)?)?.mount),
        };
        let number = kernel.next_open;
        kernel.next_open += 1;
        kernel.open.insert(number, opened);
        Ok(OpenFile { host: Arc::clone(self), number })
    }

    /// How many loop devices there are in all.
    pub fn set_loop_limit(&self, limit: u32) {
        self.kernel().loop_limit = limit;
    }

    /// Whether the driver has CAP_SYS_RESOURCE.
    pub fn set_may_grow_mounted_ext4(&self, may: bool) {
        self.kernel().may_grow_mounted_ext4 = may;
    }

    /// The file system on the device meets an error and stops writing (errors=remount-ro), until it is unmounted.
    pub fn fail_file_system(&self, device: DeviceNumber) {
        self.kernel().went_read_only.insert(device);
    }

    pub fn is_frozen(&self, device: DeviceNumber) -> bool {
        self.kernel().frozen.contains(&device)
    }
}

/// Faults.
impl FakeHost {
    /// Effects since the start.
    pub fn effect_count(&self) -> u64 {
        self.kernel().faults.count
    }

    /// After `n` more effects, the next one fails once and does not happen.
    pub fn fail_after(&self, n: u64, kind: ErrorKind) {
        self.kernel().faults.fail = Some((n, kind));
    }

    /// With the `n`th effect from now (at least the first) the driver process is gone: that effect happens, its verb
    /// and all later ones fail, until [`FakeHost::restart`].
    pub fn crash_after(&self, n: u64) {
        self.kernel().faults.crash = Some(n.max(1));
    }

    /// After `n` more effects, whoever comes to the next one hangs in it until [`FakeHost::release`].
    pub fn hang_after(&self, n: u64) {
        self.kernel().faults.hang = Some(n);
    }

    /// Reads of the device hang, and of what is mounted from it, until [`FakeHost::release`].
    pub fn hang_device(&self, device: DeviceNumber) {
        self.kernel().faults.hung.insert(device);
    }

    pub fn release(&self) {
        let mut kernel = self.kernel();
        kernel.faults.hang = None;
        kernel.faults.hung.clear();
        drop(kernel);
        self.released.notify_all();
    }

    /// A new driver process on the same kernel: mounts, loops and files are as they were, faults are off.
    pub fn restart(&self) {
        self.kernel().faults.clear();
        self.released.notify_all();
    }

    /// The machine starts anew: no mounts, no loops, nobody has anything open, another boot id. Files stay.
    pub fn reboot(&self) {
        let mut kernel = self.kernel();
        kernel.faults.clear();
        kernel.boot_id = uuid::Uuid::new_v4().to_string();
        kernel.mount_first();
        kernel.dev = Tree::new();
        kernel.open.clear();
        kernel.frozen.clear();
        kernel.shut_down.clear();
        kernel.went_read_only.clear();
        kernel.tuning.forget();
        let disks: Vec<_> = std::mem::take(&mut kernel.loops).into_values().map(|attached| attached.disk).collect();
        kernel.forget_unused_disks(&disks);
        drop(kernel);
        self.released.notify_all();
    }
}

impl Kernel {
    fn add_image(&mut self, path: &Path, size_bytes: u64, content: Content) -> Result<()> {
        if self.node(path)?.is_some() {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("{} is there", path.display())));
        }
        let parents: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_owned).collect();
        for directory in parents.iter().rev() {
            if self.node(directory)?.is_none() {
                self.put_node(directory, Kind::Directory)?;
            }
        }
        let disk = self.add_disk(size_bytes, content);
        self.put_node(path, Kind::Image(disk))
    }

    fn put_node(&mut self, path: &Path, kind: Kind) -> Result<()> {
        let place = self.place(path)?;
        self.tree_mut(&place)?.put(place.inner.clone(), kind);
        Ok(())
    }
}
