//! Whether devices and mounted file systems still answer, and trims.

use super::block::{BLOCK_BYTES, Content};
use super::faults::Stop;
use super::kernel::{Kernel, Mount, Superblock, io_error};
use super::tree::Kind;
use crate::MountState;
use std::collections::BTreeSet;
use std::path::Path;
use volume::{DeviceNumber, Error, HealthProblem, Result, Severity};

impl Kernel {
    pub(super) fn try_device(&self, device: &Path) -> Result<(), Stop> {
        let Kind::BlockDevice(number) = self.kind_at(device)? else {
            return Err(Stop::Failed(Error::invalid(format!("{} is not a block device", device.display()))));
        };
        self.may_hang(*number)?;
        let attached = self.loop_of(*number).ok_or_else(|| io_error(*number))?;
        let disk = self.disk(attached.disk)?;
        let is_short = attached.visible_bytes() < BLOCK_BYTES || disk.size_bytes < attached.visible_bytes();
        if is_short || matches!(disk.content, Content::Unreadable) {
            return Err(Stop::Failed(io_error(*number)));
        }
        Ok(())
    }

    pub(super) fn try_mounted(&self, path: &Path) -> Result<MountState, Stop> {
        let path = self.checked(path)?;
        let mount = self
            .top_mount(&path)
            .ok_or_else(|| Stop::Failed(Error::not_found(format!("nothing is mounted at {}", path.display()))))?;
        let Superblock::Device(number, _) = mount.superblock else { return Ok(MountState::Sound) };
        self.may_hang(number)?;
        if self.shut_down.contains(&number) {
            return Ok(MountState::ShutDown);
        }
        if self.went_read_only.contains(&number) {
            return Ok(MountState::WentReadOnly);
        }
        match &self.disk_of(number)?.content {
            Content::FileSystem { errors: Some(_), .. } => Ok(MountState::Errors(1)),
            Content::FileSystem { errors: None, .. } => Ok(MountState::Sound),
            _ => Ok(MountState::ShutDown),
        }
    }

    /// Deleted files give their space back at once here, so a trim only counts.
    pub(super) fn trim(&mut self, number: DeviceNumber) -> Result<Option<u64>, Stop> {
        if !self.is_mounted(number) {
            return Ok(None);
        }
        let free = match &self.disk_of(number)?.content {
            Content::FileSystem { size_bytes, tree, .. } => size_bytes.saturating_sub(tree.used_bytes()),
            _ => return Err(Stop::Failed(io_error(number))),
        };
        self.effect("trim")?;
        Ok(Some(free))
    }

    pub(super) fn missing_privileges(&self) -> Vec<HealthProblem> {
        if self.may_grow_mounted_ext4 {
            return Vec::new();
        }
        let message = "CAP_SYS_RESOURCE is missing: a mounted ext4 does not grow";
        vec![HealthProblem::new(Severity::Degraded, "NoSysResourceCapability", message)]
    }

    pub(super) fn options_of(&self, mount: &Mount) -> BTreeSet<String> {
        let mut options = mount.options.clone();
        if let Superblock::Device(number, _) = mount.superblock
            && self.went_read_only.contains(&number)
        {
            options.insert("emergency_ro".to_owned());
        }
        options
    }

    fn may_hang(&self, number: DeviceNumber) -> Result<(), Stop> {
        if self.faults.hung.contains(&number) { Err(Stop::Hung) } else { Ok(()) }
    }
}
