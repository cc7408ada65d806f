//! FS_IOC_FIEMAP (`linux/fiemap.h`, Documentation/filesystems/fiemap.rst).

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

const FS_IOC_FIEMAP: libc::Ioctl = nix::request_code_readwrite!(b'f', 11, size_of::<Header>()) as libc::Ioctl;
/// Writes the file's dirty pages out first.
const FLAG_SYNC: u32 = 1;
/// How many extents one call asks for: a page is 57 KiB.
pub(crate) const PAGE_EXTENTS: usize = 1024;

/// struct fiemap, without its flexible array.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// struct fiemap_extent.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawExtent {
    pub(crate) logical: u64,
    pub(crate) physical: u64,
    pub(crate) length: u64,
    reserved64: [u64; 2],
    pub(crate) flags: u32,
    reserved: [u32; 3],
}

/// What one call fills.
#[repr(C)]
struct Page {
    header: Header,
    extents: [RawExtent; PAGE_EXTENTS],
}

/// The extents that overlap `start..start + length`, at most [`PAGE_EXTENTS`] of them.
pub(crate) fn fiemap(file: BorrowedFd<'_>, start: u64, length: u64) -> nix::Result<Vec<RawExtent>> {
    let count = u32::try_from(PAGE_EXTENTS).map_err(|_| Errno::EINVAL)?;
    let header = Header { start, length, flags: FLAG_SYNC, extent_count: count, ..Header::default() };
    let mut page = Box::new(Page { header, extents: [RawExtent::default(); PAGE_EXTENTS] });
    // SAFETY: the kernel reads the header and writes it and at most `extent_count` extents behind it, for which the
    // page, which we hold exclusively, has room.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut *page) })?;
    let mapped = usize::try_from(page.header.mapped_extents).map_err(|_| Errno::EIO)?;
    Ok(page.extents.get(..mapped).ok_or(Errno::EIO)?.to_vec())
}

#[cfg(test)]
impl RawExtent {
    pub(crate) fn new(logical: u64, physical: u64, length: u64, flags: u32) -> Self {
        Self { logical, physical, length, flags, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_as_the_kernel_headers_have_it() {
        assert_eq!(FS_IOC_FIEMAP, 0xc020_660b_u32 as libc::Ioctl);
        assert_eq!((size_of::<Header>(), size_of::<RawExtent>()), (32, 56));
        assert_eq!(std::mem::offset_of!(RawExtent, flags), 40);
        assert_eq!(std::mem::offset_of!(Page, extents), 32);
    }
}
