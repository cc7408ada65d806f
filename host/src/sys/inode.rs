//! ioctls on file systems: freeze, thaw, shutdown, what btrfs says of itself. `linux/fs.h`, `linux/btrfs.h`.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

const FIFREEZE: libc::Ioctl = nix::request_code_readwrite!(b'X', 119, size_of::<libc::c_int>()) as libc::Ioctl;
const FITHAW: libc::Ioctl = nix::request_code_readwrite!(b'X', 120, size_of::<libc::c_int>()) as libc::Ioctl;
/// The same number in ext4 and xfs.
const FS_IOC_SHUTDOWN: libc::Ioctl = nix::request_code_read!(b'X', 125, size_of::<u32>()) as libc::Ioctl;
const FITRIM: libc::Ioctl = nix::request_code_readwrite!(b'X', 121, size_of::<TrimRange>()) as libc::Ioctl;
const FS_IOC_GETFLAGS: libc::Ioctl = nix::request_code_read!(b'f', 1, size_of::<libc::c_long>()) as libc::Ioctl;
const FS_IOC_SETFLAGS: libc::Ioctl = nix::request_code_write!(b'f', 2, size_of::<libc::c_long>()) as libc::Ioctl;
const FS_IMMUTABLE_FL: libc::c_int = 0x10;
/// Stop at once; what the log holds in memory is dropped.
const SHUTDOWN_NOLOGFLUSH: u32 = 2;
const BTRFS_IOC_FS_INFO: libc::Ioctl = nix::request_code_read!(0x94, 31, size_of::<BtrfsFsInfo>()) as libc::Ioctl;

/// struct btrfs_ioctl_fs_info_args: the kernel fills 1024 bytes.
#[repr(C)]
struct BtrfsFsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

/// struct fstrim_range, in bytes.
#[repr(C)]
struct TrimRange {
    start: u64,
    length: u64,
    least_extent: u64,
}

/// FITRIM over the whole file system: how many bytes it discarded.
pub(crate) fn trim(file: impl AsFd) -> nix::Result<u64> {
    let mut range = TrimRange { start: 0, length: u64::MAX, least_extent: 0 };
    // SAFETY: the kernel reads and writes a struct fstrim_range of ours.
    Errno::result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FITRIM, &mut range) }).map(|_| range.length)
}

/// Sets or clears FS_IMMUTABLE_FL (ioctl_iflags(2)): nothing can be made or removed in such a directory, nor it itself. Whether
/// that changed anything. ENOTTY or EOPNOTSUPP where the file system has no flags.
pub(crate) fn set_immutable(file: impl AsFd, immutable: bool) -> nix::Result<bool> {
    let mut flags: libc::c_int = 0;
    // SAFETY: declared with `long`, the kernel writes an `int`, here into one of ours.
    Errno::result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_GETFLAGS, &mut flags) })?;
    let wanted = if immutable { flags | FS_IMMUTABLE_FL } else { flags & !FS_IMMUTABLE_FL };
    if wanted == flags {
        return Ok(false);
    }
    // SAFETY: as above, it reads an `int` of ours.
    Errno::result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_SETFLAGS, &wanted) }).map(|_| true)
}

/// FIFREEZE: writes everything out and stops all writers of the file system that `file` is on. EBUSY when frozen.
pub(crate) fn freeze(file: impl AsFd) -> nix::Result<()> {
    // SAFETY: the argument is not used.
    Errno::result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FIFREEZE, 0) }).map(drop)
}

/// FITHAW. EINVAL when it is not frozen.
pub(crate) fn thaw(file: impl AsFd) -> nix::Result<()> {
    thaw_raw(file.as_fd().as_raw_fd())
}

/// The same for a child after fork, which has nothing but the number. Async-signal-safe.
pub(super) fn thaw_raw(file: libc::c_int) -> nix::Result<()> {
    // SAFETY: the argument is not used; a wrong descriptor answers EBADF or ENOTTY.
    Errno::result(unsafe { libc::ioctl(file, FITHAW, 0) }).map(drop)
}

/// FS_IOC_SHUTDOWN with NOLOGFLUSH. ENOTTY where the file system has none.
pub(crate) fn shut_down(file: impl AsFd) -> nix::Result<()> {
    let flags = SHUTDOWN_NOLOGFLUSH;
    // SAFETY: the kernel reads a u32 of ours.
    Errno::result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_SHUTDOWN, &flags) }).map(drop)
}

/// BTRFS_IOC_FS_INFO: the id under which /sys/fs/btrfs lists the mounted file system.
pub(crate) fn btrfs_fsid(file: impl AsFd) -> nix::Result<[u8; 16]> {
    let mut info = BtrfsFsInfo { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 992] };
    // SAFETY: the kernel reads and writes the 1024 bytes of the struct, which the request's number states.
    Errno::result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), BTRFS_IOC_FS_INFO, &mut info) }).map(|_| info.fsid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_the_kernel_headers_have_them() {
        assert_eq!(size_of::<BtrfsFsInfo>(), 1024);
        assert_eq!(FIFREEZE, 0xc004_5877_u32 as libc::Ioctl);
        assert_eq!(FITHAW, 0xc004_5878_u32 as libc::Ioctl);
        assert_eq!(FITRIM, 0xc018_5879_u32 as libc::Ioctl);
        assert_eq!(FS_IOC_SHUTDOWN, 0x8004_587d_u32 as libc::Ioctl);
    }
}
