//! ioctls of block devices; `linux/fs.h`.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOR(0x12, 114, size_t)`
const BLKGETSIZE64: libc::Ioctl = nix::request_code_read!(0x12, 114, size_of::<usize>()) as libc::Ioctl;
/// `_IO(0x12, 94)`
const BLKROGET: libc::Ioctl = 0x125e as libc::Ioctl;

/// `_IO(0x12, 98)` and `_IO(0x12, 99)`
const BLKRASET: libc::Ioctl = 0x1262 as libc::Ioctl;
const BLKRAGET: libc::Ioctl = 0x1263 as libc::Ioctl;

/// BLKRAGET: how far the kernel reads ahead, in sectors of 512 bytes.
pub(crate) fn read_ahead_sectors(device: impl AsFd) -> nix::Result<u64> {
    let mut sectors: libc::c_long = 0;
    // SAFETY: the kernel writes a long to a long of ours.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKRAGET, &mut sectors) };
    Errno::result(result)?;
    u64::try_from(sectors).map_err(|_| Errno::EINVAL)
}

/// BLKRASET; the kernel rounds down to pages. Needs CAP_SYS_ADMIN.
pub(crate) fn set_read_ahead_sectors(device: impl AsFd, sectors: u64) -> nix::Result<()> {
    let sectors = libc::c_ulong::try_from(sectors).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the argument is a plain number.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKRASET, sectors) };
    Errno::result(result).map(drop)
}

/// BLKGETSIZE64: the device's size in bytes.
pub(crate) fn size_bytes(device: impl AsFd) -> nix::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the kernel writes a u64 (the request's number says size_t for historical reasons) to a u64 of ours.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKGETSIZE64, &mut bytes) };
    Errno::result(result).map(|_| bytes)
}

/// BLKROGET: whether the device refuses writes.
pub(crate) fn is_read_only(device: impl AsFd) -> nix::Result<bool> {
    let mut flag: libc::c_int = 0;
    // SAFETY: the kernel writes an int to an int of ours.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKROGET, &mut flag) };
    Errno::result(result).map(|_| flag != 0)
}
