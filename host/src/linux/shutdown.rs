//! Stopping a file system where it is, so that a fenced node's workload fails at once instead of reading stale data.

use super::{mountinfo, os};
use crate::{Effects, sys};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use std::path::Path;
use volume::{Error, ErrorKind, Result};

/// Block major of loop devices (Documentation/admin-guide/devices.txt).
const LOOP_MAJOR: u32 = 7;

/// Only the whole file system of a loop device is ever stopped: a bound directory of the pool, or a path where nothing
/// is mounted any more, would take the pool or the machine's root with it.
pub(super) fn shut_down(effects: &Effects, mounted_at: &Path) -> Result<()> {
    let refused = |why: &str| {
        Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("the file system at {} is not shut down: {why}", mounted_at.display()),
        ))
    };
    let Some(entry) = mountinfo::own()?.into_iter().rfind(|entry| entry.mounted_at == mounted_at) else {
        return refused("nothing is mounted there");
    };
    if entry.root != Path::new("/") {
        return refused("only a directory of it is mounted there");
    }
    let failed = |errno| os::error(format!("shutting down the file system at {}", mounted_at.display()), errno);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let unsupported = || {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} at {} cannot be shut down", entry.fs_type, mounted_at.display()),
        ))
    };
    if entry.fs_type != "ext4" && entry.fs_type != "xfs" {
        return unsupported();
    }
    let root = openat(AT_FDCWD, mounted_at, flags, Mode::empty())
        .and_then(|root| fstat(&root).map(|stat| (root, stat.st_dev)));
    let (root, device) = match root {
        Ok((root, device)) => (root, os::device_number(device)?),
        // It was shut down before: xfs then refuses even this.
        Err(Errno::EIO) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    if device != entry.device || device.major != LOOP_MAJOR {
        return refused("it is not on a loop device of its own");
    }
    match sys::inode::shut_down(&root) {
        Ok(()) => {
            effects.done("shut-down");
            Ok(())
        }
        Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => unsupported(),
        Err(Errno::EIO) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}
