//! Loop devices.

use super::block::{LOOP_MAJOR, Loop, loop_path, not_an_image};
use super::faults::Stop;
use super::kernel::{Kernel, Opened};
use super::tree::Kind;
use crate::{Fenced, LoopDevice, LoopRequest};
use std::path::{Path, PathBuf};
use volume::{DeviceNumber, Error, ErrorKind};

const MAX_LABEL_BYTES: usize = 63;
const LEAST_IMAGE_BYTES: u64 = 4096;
/// What a fence leaves visible: one sector for file systems; for raw devices a second, different limit.
const LIMIT_BYTES: u64 = 512;
const RAW_LIMIT_BYTES: u64 = 1024;

impl Kernel {
    pub(super) fn loop_devices(&self) -> Vec<LoopDevice> {
        self.loops.iter().map(|(minor, attached)| self.describe_loop(*minor, attached)).collect()
    }

    pub(super) fn attach_loop(&mut self, request: &LoopRequest<'_>) -> Result<LoopDevice, Stop> {
        if request.label.len() > MAX_LABEL_BYTES || request.label.contains('\0') {
            return Err(Stop::Failed(Error::internal(format!(
                "the label {:?} does not fit a loop device",
                request.label
            ))));
        }
        let disk = match self.kind_at(request.image)? {
            Kind::Image(disk) => *disk,
            Kind::Symlink(_) => return Err(Stop::Failed(not_an_image(request.image, "a symbolic link"))),
            Kind::Directory => return Err(Stop::Failed(not_an_image(request.image, "a directory"))),
            _ => return Err(Stop::Failed(not_an_image(request.image, "no regular file"))),
        };
        let found = self.disk(disk)?;
        if (found.inode, found.generation) != (request.identity.inode, request.identity.generation) {
            let what = format!(
                "inode {} generation {}, but the record names inode {} generation {}",
                found.inode, found.generation, request.identity.inode, request.identity.generation
            );
            return Err(Stop::Failed(not_an_image(request.image, &what)));
        }
        let size_bytes = found.size_bytes;
        if size_bytes < LEAST_IMAGE_BYTES {
            let what = format!("only {size_bytes} bytes long, it was truncated");
            return Err(Stop::Failed(not_an_image(request.image, &what)));
        }
        let minor = (0..self.loop_limit).find(|minor| !self.loops.contains_key(minor)).ok_or_else(|| {
            Error::new(ErrorKind::Exhausted, "no free loop device; raise the limit or unpublish volumes")
        })?;
        self.effect("attach-loop")?;
        let (label, read_only) = (request.label.to_owned(), request.read_only);
        self.loops.insert(minor, Loop { disk, label, read_only, size_limit_bytes: 0, size_bytes });
        self.dev.put(node(minor), Kind::BlockDevice(DeviceNumber { major: LOOP_MAJOR, minor }));
        let attached = self.loops.get(&minor).ok_or_else(|| Error::internal("a loop vanished"))?;
        Ok(self.describe_loop(minor, attached))
    }

    pub(super) fn detach_loop(&mut self, device: &LoopDevice) -> Result<(), Stop> {
        let Some(minor) = self.same_loop(device) else { return Ok(()) };
        let is_open = self.open.values().any(|opened| matches!(opened, Opened::Device(n) if *n == device.number));
        if is_open || self.is_mounted(device.number) {
            return Err(Stop::Failed(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "{} ({}) is in use: mounted somewhere, or open in a process",
                    device.path.display(),
                    device.label
                ),
            )));
        }
        self.effect("detach-loop")?;
        if let Some(attached) = self.loops.remove(&minor) {
            self.forget_unused_disks(&[attached.disk]);
        }
        Ok(())
    }

    pub(super) fn refresh_loop(&mut self, device: &LoopDevice) -> Result<(), Stop> {
        let gone = || Error::not_found(format!("{} no longer has the image it had", device.path.display()));
        let minor = self.same_loop(device).ok_or_else(gone)?;
        self.effect("refresh-loop")?;
        let disk = self.loops.get(&minor).map(|attached| attached.disk).ok_or_else(gone)?;
        let size_bytes = self.disk(disk)?.size_bytes;
        if let Some(attached) = self.loops.get_mut(&minor) {
            attached.size_bytes = size_bytes;
        }
        Ok(())
    }

    pub(super) fn fence_loop(&mut self, device: &LoopDevice) -> Result<Option<Fenced>, Stop> {
        let Some(minor) = self.same_loop(device) else { return Ok(None) };
        // No freeze where nothing is mounted or it was shut down: then two limits do it. Somebody else's freeze serves
        // too, and ends with the fence.
        let froze = self.is_mounted(device.number) && !self.shut_down.contains(&device.number);
        let limits: &[u64] = if froze { &[LIMIT_BYTES] } else { &[LIMIT_BYTES, RAW_LIMIT_BYTES] };
        let mut size_limit_bytes = 0;
        for limit in limits {
            self.effect("limit-loop")?;
            size_limit_bytes = *limit;
            if let Some(attached) = self.loops.get_mut(&minor) {
                attached.size_limit_bytes = *limit;
            }
        }
        self.thaw(device.number);
        Ok(Some(Fenced { device: device.number, size_limit_bytes, froze }))
    }

    /// The loop that `device` was seen as, if it still has that image.
    fn same_loop(&self, device: &LoopDevice) -> Option<u32> {
        let attached = self.loop_of(device.number)?;
        let now = self.describe_loop(device.number.minor, attached);
        let is_same = now.backing_device == device.backing_device
            && now.backing_inode == device.backing_inode
            && now.label == device.label;
        is_same.then_some(device.number.minor)
    }
}

/// Its name in the file system of /dev.
fn node(minor: u32) -> PathBuf {
    Path::new("/").join(loop_path(minor).file_name().unwrap_or_default())
}
