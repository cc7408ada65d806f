//! Directory listings, reflinks, inode generations and extended attributes on descriptors.

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct linux_dirent64`: d_ino, d_off, d_reclen, d_type, d_name (getdents64(2)).
const DIRENT_HEADER: usize = 19;
const DIRENT_RECLEN: usize = 16;
const DIRENT_TYPE: usize = 18;
/// asm-generic/fcntl.h
const F_SETSIG: libc::c_int = 10;

nix::ioctl_write_int_bad!(ioctl_ficlone, libc::FICLONE);
// FS_IOC_GETVERSION is declared with `long` and gives an `int` (ioctl_iflags(2)).
nix::ioctl_read!(ioctl_getversion, b'v', 1, libc::c_long);

/// One entry of a directory; `.` and `..` are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    /// From d_type; `None` where the file system does not tell.
    pub(crate) is_dir: Option<bool>,
}

/// One getdents64 call; empty at the end.
pub(crate) fn getdents64(dir: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<Option<Vec<Entry>>> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes into a buffer that we hold exclusively.
    let read = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    let read = Errno::result(read)?;
    let read = usize::try_from(read).map_err(|_| Errno::EIO)?;
    if read == 0 {
        return Ok(None);
    }
    parse(buffer.get(..read).ok_or(Errno::EIO)?).map(Some).ok_or(Errno::EIO)
}

fn parse(mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let length = bytes.get(DIRENT_RECLEN..DIRENT_RECLEN + 2)?;
        let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
        let name = CStr::from_bytes_until_nul(bytes.get(DIRENT_HEADER..length)?).ok()?;
        let is_dir = match *bytes.get(DIRENT_TYPE)? {
            libc::DT_UNKNOWN => None,
            kind => Some(kind == libc::DT_DIR),
        };
        if !matches!(name.to_bytes(), b"." | b"..") {
            entries.push(Entry { name: name.to_bytes().to_vec(), is_dir });
        }
        bytes = bytes.get(length..)?;
    }
    Some(entries)
}

/// FICLONE: makes `target` share all blocks of `source`.
pub(crate) fn ficlone(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: both are open descriptors and the argument is a plain number.
    unsafe { ioctl_ficlone(target.as_raw_fd(), source.as_raw_fd()) }.map(drop)
}

/// Copies within the kernel, from and to the same offset; how many bytes it did.
pub(crate) fn copy_file_range(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    offset: i64,
    length: usize,
) -> nix::Result<usize> {
    let (mut from, mut to) = (offset, offset);
    // SAFETY: both offsets are live variables that the kernel reads and updates.
    let copied =
        unsafe { libc::copy_file_range(source.as_raw_fd(), &raw mut from, target.as_raw_fd(), &raw mut to, length, 0) };
    usize::try_from(Errno::result(copied)?).map_err(|_| Errno::EIO)
}

/// FS_IOC_GETVERSION.
pub(crate) fn generation(file: BorrowedFd<'_>) -> nix::Result<u32> {
    let mut version: libc::c_long = 0;
    // SAFETY: `version` is as large as the request says and lives through the call.
    unsafe { ioctl_getversion(file.as_raw_fd(), &raw mut version) }?;
    // The kernel fills only the first four bytes of it, whatever their order.
    let bytes = version.to_ne_bytes();
    Ok(bytes.first_chunk::<4>().map_or(0, |first| u32::from_ne_bytes(*first)))
}

pub(crate) fn set_xattr(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> nix::Result<()> {
    // SAFETY: pointers and lengths are those of live slices; the kernel only reads them.
    let result = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

/// `None` when there is none of this name.
pub(crate) fn get_xattr(file: BorrowedFd<'_>, name: &CStr, max_bytes: usize) -> nix::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; max_bytes];
    // SAFETY: the kernel writes at most `value.len()` bytes into a buffer that we hold exclusively.
    let read = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match Errno::result(read) {
        Ok(read) => {
            value.truncate(usize::try_from(read).map_err(|_| Errno::EIO)?);
            Ok(Some(value))
        }
        Err(Errno::ENODATA) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// F_SETLEASE: takes a write lease on the file and gives it back. `false`: somebody else has it open.
///
/// An opener who meets the lease waits for those microseconds (EAGAIN with O_NONBLOCK), and the kernel tells the holder by
/// a signal: by SIGURG, which does nothing where it is not handled, because SIGIO would end the process.
pub(crate) fn try_lease(file: BorrowedFd<'_>) -> nix::Result<bool> {
    let fcntl = |command, argument: libc::c_int| {
        // SAFETY: each of these commands takes a number.
        Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) })
    };
    fcntl(F_SETSIG, libc::SIGURG)?;
    match fcntl(libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(_) => fcntl(libc::F_SETLEASE, libc::F_UNLCK).map(|_| true),
        Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_listing_is_refused_not_trusted() {
        let mut bytes = vec![0u8; 24];
        bytes[DIRENT_RECLEN] = 24;
        bytes[DIRENT_TYPE] = libc::DT_DIR;
        bytes[DIRENT_HEADER] = b'a';
        assert_eq!(parse(&bytes), Some(vec![Entry { name: b"a".to_vec(), is_dir: Some(true) }]));
        bytes[DIRENT_RECLEN] = 25;
        assert_eq!(parse(&bytes), None);
        bytes[DIRENT_RECLEN] = 0;
        assert_eq!(parse(&bytes), None);
    }
}
