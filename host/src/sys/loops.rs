//! ioctls of loop devices; `linux/loop.h`.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4c07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;

pub(crate) const LO_FLAGS_READ_ONLY: u32 = 1;
pub(crate) const LO_FLAGS_AUTOCLEAR: u32 = 4;
pub(crate) const LO_FLAGS_DIRECT_IO: u32 = 16;

/// struct loop_info64.
#[repr(C)]
#[derive(Clone)]
pub(crate) struct LoopInfo {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    rdevice: u64,
    offset: u64,
    pub(crate) size_limit: u64,
    pub(crate) number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub(crate) flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// struct loop_config.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

impl LoopInfo {
    /// The longest `lo_file_name`, without its terminating zero.
    pub(crate) const MAX_LABEL_BYTES: usize = 63;

    fn new(label: &str, flags: u32) -> Self {
        let mut file_name = [0; 64];
        let bytes = &label.as_bytes()[..label.len().min(Self::MAX_LABEL_BYTES)];
        file_name[..bytes.len()].copy_from_slice(bytes);
        Self { flags, file_name, ..Self::empty() }
    }

    fn empty() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }

    pub(crate) fn label(&self) -> String {
        let end = self.file_name.iter().position(|&b| b == 0).unwrap_or(self.file_name.len());
        String::from_utf8_lossy(&self.file_name[..end]).into_owned()
    }
}

/// LOOP_CTL_GET_FREE on /dev/loop-control: the number of a loop that is free now; another process may take it first.
pub(crate) fn free_number(control: impl AsFd) -> nix::Result<u32> {
    // SAFETY: the ioctl has no argument.
    let number = Errno::result(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE) })?;
    u32::try_from(number).map_err(|_| Errno::EINVAL)
}

/// LOOP_CONFIGURE (Linux 5.8): file, block size, label and flags in one step. EBUSY when another was first.
pub(crate) fn configure(
    device: impl AsFd,
    backing: impl AsFd,
    block_size: u32,
    label: &str,
    flags: u32,
) -> nix::Result<()> {
    let fd = u32::try_from(backing.as_fd().as_raw_fd()).map_err(|_| Errno::EBADF)?;
    let config = LoopConfig { fd, block_size, info: LoopInfo::new(label, flags), reserved: [0; 8] };
    // SAFETY: the kernel reads a struct loop_config; the layout is checked by the test below.
    Errno::result(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE, &config) }).map(drop)
}

/// LOOP_GET_STATUS64. ENXIO when the loop has no file.
pub(crate) fn status(device: impl AsFd) -> nix::Result<LoopInfo> {
    let mut info = LoopInfo::empty();
    // SAFETY: the kernel writes a struct loop_info64 to ours.
    Errno::result(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_GET_STATUS64, &mut info) }).map(|_| info)
}

/// LOOP_SET_STATUS64: drains requests, then changes limit and flags.
pub(crate) fn set_status(device: impl AsFd, info: &LoopInfo) -> nix::Result<()> {
    let info: *const LoopInfo = info;
    // SAFETY: the kernel reads a struct loop_info64.
    Errno::result(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_SET_STATUS64, info) }).map(drop)
}

/// LOOP_SET_CAPACITY: takes over the backing file's present size.
pub(crate) fn set_capacity(device: impl AsFd) -> nix::Result<()> {
    // SAFETY: the argument is not used.
    Errno::result(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_SET_CAPACITY, 0) }).map(drop)
}

/// LOOP_CLR_FD: detaches, when others have the device open only after the last of them closed it.
pub(crate) fn clear(device: impl AsFd) -> nix::Result<()> {
    // SAFETY: the argument is not used.
    Errno::result(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CLR_FD, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_as_the_kernel_headers_have_it() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(std::mem::offset_of!(LoopInfo, file_name), 56);
    }

    #[test]
    fn labels_are_cut_and_read_back() {
        assert_eq!(LoopInfo::new("pool.v1@7", 0).label(), "pool.v1@7");
        assert_eq!(LoopInfo::new(&"x".repeat(200), 0).label().len(), LoopInfo::MAX_LABEL_BYTES);
    }
}
