//! Whether devices and mounted file systems still answer, found out by small reads.

use super::{mountinfo, os};
use crate::{MountEntry, MountState, sys};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statvfs::fstatvfs;
use nix::sys::uio::pread;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use volume::{DeviceNumber, Error, ErrorKind, Result};

/// A multiple of every logical block size that the driver's devices have.
const BLOCK_BYTES: usize = 4096;

pub(super) fn device(device: &Path) -> Result<()> {
    let failed = |errno| os::error(format!("reading {}", device.display()), errno);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(AT_FDCWD, device, flags, Mode::empty()).map_err(failed)?;
    let size_bytes = sys::block::size_bytes(&opened).map_err(failed)?;
    let last = size_bytes.checked_sub(BLOCK_BYTES as u64).ok_or_else(|| {
        Error::new(
            ErrorKind::Unavailable,
            format!("{} shows {size_bytes} bytes: it is cut off from its image", device.display()),
        )
    })?;
    read_block(&opened, device, 0)?;
    read_block(&opened, device, last)
}

/// The mount on top.
pub(super) fn mounted(path: &Path) -> Result<MountState> {
    let absent = || Error::not_found(format!("nothing is mounted at {}", path.display()));
    let entry = mountinfo::own()?.into_iter().rfind(|entry| entry.mounted_at == path).ok_or_else(absent)?;
    // Said by ext4 since Linux 6.15; xfs and older kernels show it by what they answer.
    if entry.options.contains("shutdown") {
        return Ok(MountState::ShutDown);
    }
    if let Err(errno) = list(path) {
        return match errno {
            Errno::EIO => Ok(MountState::ShutDown),
            errno => Err(os::error(format!("listing {}", path.display()), errno)),
        };
    }
    if entry.went_read_only() {
        return Ok(MountState::WentReadOnly);
    }
    Ok(match noted_errors(&entry)? {
        0 => MountState::Sound,
        errors => MountState::Errors(errors),
    })
}

fn list(path: &Path) -> nix::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = openat(AT_FDCWD, path, flags, Mode::empty())?;
    fstatvfs(&root)?;
    sys::file::getdents64(root.as_fd(), &mut [0; BLOCK_BYTES]).map(drop)
}

/// Of ext4: kept in its superblock until e2fsck clears it. It says nothing when /sys does not show it.
fn noted_errors(entry: &MountEntry) -> Result<u64> {
    if entry.fs_type != "ext4" {
        return Ok(0);
    }
    let DeviceNumber { major, minor } = entry.device;
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let device = std::fs::read_link(&link).map_err(|e| Error::io(format!("reading {}", link.display()), e))?;
    let count = Path::new("/sys/fs/ext4").join(device.file_name().unwrap_or_default()).join("errors_count");
    Ok(os::read_line(&count).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}

fn read_block(opened: &OwnedFd, device: &Path, offset_bytes: u64) -> Result<()> {
    // Direct I/O wants an aligned address.
    let mut memory = vec![0u8; 2 * BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    let block = memory.get_mut(start..start + BLOCK_BYTES).ok_or_else(|| Error::internal("no aligned memory"))?;
    let offset = i64::try_from(offset_bytes).map_err(|_| Error::internal("a device larger than an offset can tell"))?;
    match pread(opened, block, offset) {
        Ok(BLOCK_BYTES) => Ok(()),
        Ok(length) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{} ends {length} bytes after byte {offset_bytes}; its image was truncated", device.display()),
        )),
        Err(errno) => {
            Err(os::error(format!("reading {BLOCK_BYTES} bytes at {offset_bytes} of {}", device.display()), errno))
        }
    }
}
