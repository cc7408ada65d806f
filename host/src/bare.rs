//! The system calls of staging a volume, alone: what `cargo xtask bench` compares the driver with.
//!
//! Not for the driver (`cargo xtask tidy` keeps it to `e2e`): nothing here is verified, announced to
//! [`Effects`](crate::Effects) or undone.

use crate::sys::loops::LO_FLAGS_DIRECT_IO;
use crate::sys::mount::{FsContext, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, attach, clone_tree};
use crate::sys::{self, loops};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const BLOCK_SIZE: u32 = 4096;

/// FICLONE.
pub fn clone(source: &File, target: &File) -> io::Result<()> {
    Ok(sys::file::ficlone(source.as_fd(), target.as_fd())?)
}

/// LOOP_CTL_GET_FREE and LOOP_CONFIGURE with direct I/O; the device.
pub fn attach_loop(image: &File) -> io::Result<PathBuf> {
    let control = open(Path::new("/dev/loop-control"), OFlag::O_RDWR)?;
    loop {
        let path = PathBuf::from(format!("/dev/loop{}", loops::free_number(&control)?));
        let device = match open(&path, OFlag::O_RDWR) {
            Ok(device) => device,
            // Somebody else takes or lets go of it.
            Err(Errno::ENXIO | Errno::EBUSY) => continue,
            Err(errno) => return Err(errno.into()),
        };
        match loops::configure(&device, image, BLOCK_SIZE, "bare", LO_FLAGS_DIRECT_IO) {
            Ok(()) => return Ok(path),
            Err(Errno::EBUSY | Errno::ENXIO) => continue,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// LOOP_CLR_FD.
pub fn detach_loop(device: &Path) -> io::Result<()> {
    Ok(loops::clear(open(device, OFlag::O_RDONLY)?)?)
}

/// fsopen, fsconfig, fsmount, move_mount.
pub fn mount(fs_type: &str, device: &str, target: &Path) -> io::Result<()> {
    let context = FsContext::open(fs_type)?;
    context.set_string("source", device)?;
    context.create()?;
    let mount = context.mount(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)?;
    Ok(attach(&mount, open(target, OFlag::O_PATH)?)?)
}

/// open_tree, move_mount.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    let mount = clone_tree(open(source, OFlag::O_PATH)?)?;
    Ok(attach(&mount, open(target, OFlag::O_PATH)?)?)
}

/// umount2.
pub fn unmount(path: &Path) -> io::Result<()> {
    Ok(umount2(path, MntFlags::UMOUNT_NOFOLLOW)?)
}

fn open(path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::empty())
}
