//! How far the kernel reads ahead on a device. By ioctl: sysfs is read-only in many containers.

use super::os;
use crate::{Effects, sys};
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::os::fd::OwnedFd;
use std::path::Path;
use volume::{DeviceNumber, Error, ErrorKind, Result};

const SECTORS_PER_KIB: u64 = 2;

pub(super) fn get(device: &Path, number: DeviceNumber) -> Result<u32> {
    let opened = open(device, number)?;
    let sectors = sys::block::read_ahead_sectors(&opened)
        .map_err(|errno| os::error(format!("asking {} for its read-ahead", device.display()), errno))?;
    Ok(u32::try_from(sectors / SECTORS_PER_KIB).unwrap_or(u32::MAX))
}

pub(super) fn set(effects: &Effects, device: &Path, number: DeviceNumber, kib: u32) -> Result<()> {
    let opened = open(device, number)?;
    sys::block::set_read_ahead_sectors(&opened, u64::from(kib) * SECTORS_PER_KIB)
        .map_err(|errno| os::error(format!("setting the read-ahead of {} to {kib} KiB", device.display()), errno))?;
    effects.done("set-read-ahead");
    Ok(())
}

/// The device of that number, whatever else has its name by now. Reading is enough for both ioctls.
fn open(device: &Path, number: DeviceNumber) -> Result<OwnedFd> {
    let failed = |errno| os::error(format!("opening {}", device.display()), errno);
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let opened = openat(AT_FDCWD, device, flags, Mode::empty()).map_err(failed)?;
    let stat = fstat(&opened).map_err(failed)?;
    let is_device = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFBLK;
    if is_device && os::device_number(stat.st_rdev)? == number {
        return Ok(opened);
    }
    let DeviceNumber { major, minor } = number;
    Err(Error::new(ErrorKind::FailedPrecondition, format!("{} is not the device {major}:{minor}", device.display())))
}
