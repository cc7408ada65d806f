//! Images and the loop devices that show them.

use super::kernel::{Kernel, io_error};
use super::tree::{DiskId, Kind, Tree};
use crate::LoopDevice;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use volume::{DeviceNumber, Error, ErrorKind, FsType, ImageIdentity, Result};

pub(super) const LOOP_MAJOR: u32 = 7;
pub(super) const BLOCK_BYTES: u64 = 4096;

/// An image file's inode.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) size_bytes: u64,
    pub(super) inode: u64,
    pub(super) generation: u32,
    pub(super) content: Content,
}

#[derive(Clone, PartialEq)]
pub(super) enum Content {
    Blank,
    /// What was written to a raw device, by block; the rest reads as zeros.
    Data(BTreeMap<u64, Vec<u8>>),
    FileSystem {
        fs: FsType,
        uuid: [u8; 16],
        size_bytes: u64,
        /// The superblock's error flag, and what a checker would say about it.
        errors: Option<String>,
        tree: Tree,
    },
    Damaged {
        fs: FsType,
        reason: String,
    },
    Other(String),
    Unreadable,
}

pub(super) struct Loop {
    pub(super) disk: DiskId,
    pub(super) label: String,
    pub(super) read_only: bool,
    pub(super) size_limit_bytes: u64,
    /// As the image was when it was attached or refreshed.
    pub(super) size_bytes: u64,
}

impl Loop {
    pub(super) fn visible_bytes(&self) -> u64 {
        if self.size_limit_bytes == 0 { self.size_bytes } else { self.size_bytes.min(self.size_limit_bytes) }
    }
}

impl Kernel {
    pub(super) fn loop_of(&self, number: DeviceNumber) -> Option<&Loop> {
        if number.major == LOOP_MAJOR { self.loops.get(&number.minor) } else { None }
    }

    pub(super) fn disk_of(&self, number: DeviceNumber) -> Result<&Disk> {
        self.loop_of(number).and_then(|attached| self.disks.get(&attached.disk)).ok_or_else(|| io_error(number))
    }

    pub(super) fn disk_of_mut(&mut self, number: DeviceNumber) -> Result<&mut Disk> {
        let disk = self.loop_of(number).map(|attached| attached.disk);
        disk.and_then(|disk| self.disks.get_mut(&disk)).ok_or_else(|| io_error(number))
    }

    /// The image behind a path, be it the image file or a loop's node, and how much of it is visible there.
    pub(super) fn disk_at(&self, path: &Path) -> Result<(DiskId, u64)> {
        match self.kind_at(path)? {
            Kind::Image(disk) => Ok((*disk, self.disk(*disk)?.size_bytes)),
            Kind::BlockDevice(number) => {
                let attached = self.loop_of(*number).ok_or_else(|| {
                    Error::new(ErrorKind::Unavailable, format!("{} is a device without a medium", path.display()))
                })?;
                Ok((attached.disk, attached.visible_bytes()))
            }
            _ => Err(Error::invalid(format!("{} is neither an image nor a block device", path.display()))),
        }
    }

    pub(super) fn disk(&self, id: DiskId) -> Result<&Disk> {
        self.disks.get(&id).ok_or_else(|| Error::internal(format!("the fake host lost image {id}")))
    }

    pub(super) fn disk_mut(&mut self, id: DiskId) -> Result<&mut Disk> {
        self.disks.get_mut(&id).ok_or_else(|| Error::internal(format!("the fake host lost image {id}")))
    }

    pub(super) fn image_identity(&self, image: &Path) -> Result<ImageIdentity> {
        match self.kind_at(image)? {
            Kind::Image(disk) => {
                let disk = self.disk(*disk)?;
                let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Ok(ImageIdentity { name, inode: disk.inode, generation: disk.generation })
            }
            _ => Err(not_an_image(image, "no regular file")),
        }
    }

    /// Writes whole blocks; `Unavailable` where a write gets EIO.
    pub(super) fn write_blocks(&mut self, path: &Path, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        if let Kind::BlockDevice(number) = self.kind_at(path)? {
            let is_writable = self.loop_of(*number).is_some_and(|attached| !attached.read_only);
            if !is_writable {
                return Err(io_error(*number));
            }
        }
        let (disk, visible_bytes) = self.disk_at(path)?;
        check_blocks(path, offset_bytes, bytes.len() as u64, visible_bytes)?;
        let content = &mut self.disk_mut(disk)?.content;
        if !matches!(content, Content::Data(_)) {
            *content = Content::Data(BTreeMap::new());
        }
        if let Content::Data(blocks) = content {
            for (index, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
                blocks.insert(offset_bytes / BLOCK_BYTES + index as u64, block.to_owned());
            }
        }
        Ok(())
    }

    pub(super) fn read_blocks(&self, path: &Path, offset_bytes: u64, length_bytes: u64) -> Result<Vec<u8>> {
        let (disk, visible_bytes) = self.disk_at(path)?;
        check_blocks(path, offset_bytes, length_bytes, visible_bytes)?;
        let indexes = offset_bytes / BLOCK_BYTES..(offset_bytes + length_bytes) / BLOCK_BYTES;
        let zeros = || vec![0; BLOCK_BYTES as usize];
        match &self.disk(disk)?.content {
            Content::Blank => Ok(indexes.flat_map(|_| zeros()).collect()),
            Content::Data(blocks) => {
                Ok(indexes.flat_map(|index| blocks.get(&index).cloned().unwrap_or_else(zeros)).collect())
            }
            _ => Err(Error::new(ErrorKind::Unsupported, format!("{} is not modelled byte by byte", path.display()))),
        }
    }

    /// The lowest inode number that is free, as ext4 does it; its generation tells two files in a row apart.
    pub(super) fn add_disk(&mut self, size_bytes: u64, content: Content) -> DiskId {
        let inode = (12..).find(|inode| !self.disks.values().any(|disk| disk.inode == *inode)).unwrap_or(u64::MAX);
        let id = self.next_disk;
        self.next_disk += 1;
        self.disks.insert(id, Disk { size_bytes, inode, generation: id as u32, content });
        id
    }

    /// An inode goes when neither a name nor a loop has it.
    pub(super) fn forget_unused_disks(&mut self, candidates: &[DiskId]) {
        for id in candidates {
            if !self.loops.values().any(|attached| attached.disk == *id) && !self.root.has_image(*id) {
                self.disks.remove(id);
            }
        }
    }

    pub(super) fn describe_loop(&self, minor: u32, attached: &Loop) -> LoopDevice {
        LoopDevice {
            path: loop_path(minor),
            number: DeviceNumber { major: LOOP_MAJOR, minor },
            backing_device: super::kernel::ROOT_DEVICE,
            backing_inode: self.disks.get(&attached.disk).map_or(0, |disk| disk.inode),
            label: attached.label.clone(),
            read_only: attached.read_only,
            size_limit_bytes: attached.size_limit_bytes,
        }
    }
}

fn check_blocks(path: &Path, offset_bytes: u64, length_bytes: u64, visible_bytes: u64) -> Result<()> {
    if !offset_bytes.is_multiple_of(BLOCK_BYTES) || !length_bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(Error::invalid(format!("{} takes whole blocks of {BLOCK_BYTES} bytes", path.display())));
    }
    if offset_bytes.saturating_add(length_bytes) > visible_bytes {
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!("byte {offset_bytes} of {} is past its end: input/output error", path.display()),
        ));
    }
    Ok(())
}

pub(super) fn loop_path(minor: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{minor}"))
}

pub(super) fn not_an_image(image: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the image {} is {what}; it is not attached", image.display()))
}
