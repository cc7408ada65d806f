//! Errors and numbers of the operating system in the words of `volume`.

use nix::errno::Errno;
use std::path::Path;
use std::time::Duration;
use volume::{DeviceNumber, Error, ErrorKind, Result};

const BUSY_TRIES: u32 = 30;
const BUSY_WAIT: Duration = Duration::from_millis(10);

/// The error of a failed call; the kind is what a caller of a host verb can do about that errno.
pub(super) fn error(message: impl Into<String>, errno: Errno) -> Error {
    let kind = match errno {
        Errno::ENAMETOOLONG => ErrorKind::InvalidArgument,
        Errno::ENOENT => ErrorKind::NotFound,
        Errno::EBUSY | Errno::ENOTDIR | Errno::EISDIR | Errno::ELOOP | Errno::EROFS | Errno::ENOTBLK => {
            ErrorKind::FailedPrecondition
        }
        Errno::ENOSPC | Errno::EDQUOT | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => ErrorKind::Exhausted,
        Errno::EPERM | Errno::EACCES => ErrorKind::PermissionDenied,
        Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::ENOTTY => ErrorKind::Unsupported,
        Errno::ESTALE | Errno::ENOTCONN | Errno::EIO | Errno::ENXIO | Errno::ENODEV => ErrorKind::Unavailable,
        Errno::EUCLEAN | Errno::EBADMSG => ErrorKind::Corrupt,
        Errno::ETIMEDOUT => ErrorKind::Timeout,
        _ => ErrorKind::Internal,
    };
    Error::with_source(kind, message, std::io::Error::from(errno))
}

/// Tries again for a moment on EBUSY: a child that this process forked holds copies of all its descriptors until it
/// closes them or execs, and programs that look at devices (udev, blkid) hold them for as long as they look.
pub(super) fn retry_busy<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    for _ in 0..BUSY_TRIES {
        match call() {
            Err(Errno::EBUSY) => std::thread::sleep(BUSY_WAIT),
            other => return other,
        }
    }
    call()
}

pub(super) fn device_number(raw: u64) -> Result<DeviceNumber> {
    let part = |n: u64| u32::try_from(n).map_err(|_| Error::internal(format!("device number {raw:#x} is too large")));
    Ok(DeviceNumber { major: part(nix::sys::stat::major(raw))?, minor: part(nix::sys::stat::minor(raw))? })
}

/// A small file of /proc or /sys, trimmed.
pub(super) fn read_line(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|e| Error::io(format!("reading {}", path.display()), e))
}

/// `major:minor` as /sys writes it.
pub(super) fn parse_device_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}
