//! File systems on images.

use super::block::Content;
use super::faults::Stop;
use super::kernel::{Kernel, Superblock};
use super::tree::Kind;
use crate::{FileSystemCheck, Probe};
use std::path::Path;
use volume::{DeviceNumber, Error, ErrorKind, FsType, Result};

/// One block: less is what a fence leaves.
const LEAST_BYTES: u64 = super::block::BLOCK_BYTES;

impl Kernel {
    pub(super) fn probe(&self, device: &Path) -> Result<Probe> {
        let (disk, visible_bytes) = self.disk_at(device)?;
        if visible_bytes < LEAST_BYTES {
            let message = format!("{} is cut off from its image: input/output error", device.display());
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok(match &self.disk(disk)?.content {
            Content::Blank => Probe::Blank,
            Content::Data(_) => Probe::Other("unknown data".to_owned()),
            Content::FileSystem { fs, size_bytes, .. } if *size_bytes > visible_bytes => {
                let reason = format!(
                    "the file system has {size_bytes} bytes but only {visible_bytes} are there: it was truncated"
                );
                Probe::Damaged { fs: *fs, reason }
            }
            Content::FileSystem { fs, uuid, size_bytes, errors, .. } => {
                Probe::FileSystem { fs: *fs, uuid: *uuid, size_bytes: *size_bytes, errors: errors.is_some() }
            }
            Content::Damaged { fs, reason } => Probe::Damaged { fs: *fs, reason: reason.clone() },
            Content::Other(name) => Probe::Other(name.clone()),
            Content::Unreadable => {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!("read 1048576 bytes at 0 of {}: input/output error", device.display()),
                ));
            }
        })
    }

    pub(super) fn check_filesystem(&self, device: &Path, fs: FsType) -> Result<FileSystemCheck> {
        match self.probe(device)? {
            Probe::FileSystem { fs: found, .. } if found == fs => {}
            found => {
                let message = format!("{} holds no sound {fs}: {found:?}", device.display());
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
        }
        let (disk, _) = self.disk_at(device)?;
        Ok(match &self.disk(disk)?.content {
            Content::FileSystem { errors: Some(said), .. } if !said.is_empty() => {
                FileSystemCheck::NeedsRepair(said.clone())
            }
            _ => FileSystemCheck::Clean,
        })
    }

    pub(super) fn grow_filesystem(&mut self, device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<(), Stop> {
        let (disk, visible_bytes) = self.disk_at(device)?;
        let refused = |kind, why: &str| {
            Err(Stop::Failed(Error::new(kind, format!("the {fs} on {} is not grown: {why}", device.display()))))
        };
        let (now, has_errors) = match &self.disk(disk)?.content {
            Content::FileSystem { fs: found, size_bytes, errors, .. } if *found == fs => {
                (*size_bytes, errors.is_some())
            }
            _ => return refused(ErrorKind::Corrupt, "it is damaged or not there"),
        };
        match mounted_at {
            None if fs != FsType::Ext4 => return refused(ErrorKind::Unsupported, "it grows only while it is mounted"),
            _ if now >= visible_bytes => return Ok(()),
            None if has_errors => return refused(ErrorKind::FailedPrecondition, "its error flag is set"),
            None => {}
            Some(mounted_at) => {
                let path = self.checked(mounted_at)?;
                let mount = self.top_mount(&path).filter(|m| matches!(m.superblock, Superblock::Device(..)));
                let Some(mount) = mount else {
                    return refused(ErrorKind::FailedPrecondition, "it is not mounted where it should be");
                };
                if mount.read_only {
                    return refused(ErrorKind::FailedPrecondition, "it is mounted read-only");
                }
                if fs == FsType::Ext4 && !self.may_grow_mounted_ext4 {
                    return refused(ErrorKind::PermissionDenied, "while it is mounted that takes CAP_SYS_RESOURCE");
                }
            }
        }
        self.effect("grow-filesystem")?;
        if let Content::FileSystem { size_bytes, .. } = &mut self.disk_mut(disk)?.content {
            *size_bytes = visible_bytes;
        }
        Ok(())
    }

    pub(super) fn device_size(&self, device: &Path) -> Result<u64> {
        match self.kind_at(device)? {
            Kind::BlockDevice(_) | Kind::Image(_) => Ok(self.disk_at(device)?.1),
            _ => Err(Error::invalid(format!("{} is neither an image nor a block device", device.display()))),
        }
    }

    pub(super) fn filesystem_size(&self, number: DeviceNumber) -> Result<u64> {
        match &self.disk_of(number)?.content {
            Content::FileSystem { size_bytes, .. } => Ok(*size_bytes),
            _ => Err(super::kernel::io_error(number)),
        }
    }
}
