//! The mount API of Linux 5.2 and mount_setattr of 5.12: options are separate keys, everything is a descriptor.

use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;

pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x01;
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x02;
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x04;
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 0x08;
pub(crate) const MOUNT_ATTR_NOATIME: u64 = 0x10;
pub(crate) const MOUNT_ATTR_NODIRATIME: u64 = 0x80;

/// struct mount_attr.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A file system being configured; fsopen(2).
pub(crate) struct FsContext(OwnedFd);

impl FsContext {
    pub(crate) fn open(fs_type: &str) -> nix::Result<Self> {
        let name = c_string(fs_type)?;
        // SAFETY: a terminated string and flags.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    pub(crate) fn set_string(&self, key: &str, value: &str) -> nix::Result<()> {
        let (key, value) = (c_string(key)?, c_string(value)?);
        self.config(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())
    }

    pub(crate) fn set_flag(&self, key: &str) -> nix::Result<()> {
        self.config(FSCONFIG_SET_FLAG, c_string(key)?.as_ptr(), null())
    }

    /// Makes, or finds, the superblock.
    pub(crate) fn create(&self) -> nix::Result<()> {
        self.config(FSCONFIG_CMD_CREATE, null(), null())
    }

    /// fsmount(2): a mount that is not in any namespace yet.
    pub(crate) fn mount(&self, attributes: u64) -> nix::Result<OwnedFd> {
        let attributes = libc::c_uint::try_from(attributes).map_err(|_| Errno::EINVAL)?;
        // SAFETY: a descriptor and two flag words.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
    }

    /// What the kernel wrote to the context's log: `e ` errors, `w ` warnings, `i ` information.
    pub(crate) fn messages(&self) -> Vec<String> {
        let mut messages = Vec::new();
        let mut buffer = [0u8; 1024];
        // Each read gives one message; ENODATA ends them. The bound only guards against a kernel that never ends.
        while messages.len() < 32
            && let Ok(length) = nix::unistd::read(&self.0, &mut buffer)
            && length > 0
        {
            let text = String::from_utf8_lossy(&buffer[..length]);
            messages.push(text.trim_end().get(2..).unwrap_or_default().to_owned());
        }
        messages
    }

    fn config(&self, command: libc::c_uint, key: *const libc::c_char, value: *const libc::c_char) -> nix::Result<()> {
        // SAFETY: key and value are null or terminated strings that live until the call returns.
        checked(unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, key, value, 0) }).map(drop)
    }
}

/// open_tree(2) with OPEN_TREE_CLONE: a bind mount of what `place` is, not in any namespace yet.
pub(crate) fn clone_tree(place: impl AsFd) -> nix::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | (libc::O_CLOEXEC | libc::AT_EMPTY_PATH) as libc::c_uint;
    // SAFETY: a descriptor, an empty terminated string and flags.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, place.as_fd().as_raw_fd(), c"".as_ptr(), flags) })
}

/// mount_setattr(2) on one mount.
pub(crate) fn set_attributes(mount: impl AsFd, set: u64) -> nix::Result<()> {
    let attributes = MountAttr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: a descriptor, an empty terminated string, flags, and a struct of the size stated.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes,
            size_of::<MountAttr>(),
        )
    };
    checked(result).map(drop)
}

/// move_mount(2): puts a detached mount onto the place that `target` is.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> nix::Result<()> {
    // SAFETY: two descriptors, two empty terminated strings and flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            target.as_fd().as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    checked(result).map(drop)
}

/// Whether `place` is the root of a mount (statx(2), STATX_ATTR_MOUNT_ROOT, Linux 5.8).
pub(crate) fn is_mount_root(place: impl AsFd) -> nix::Result<bool> {
    // SAFETY: struct statx is plain numbers, for which zero is a value.
    let mut buffer: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_TYPE;
    // SAFETY: a descriptor, an empty terminated string, and a struct statx of ours that the kernel fills.
    let result =
        unsafe { libc::statx(place.as_fd().as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &mut buffer) };
    Errno::result(result)?;
    let bit = libc::STATX_ATTR_MOUNT_ROOT as u64;
    if buffer.stx_attributes_mask & bit == 0 {
        return Err(Errno::ENOSYS);
    }
    Ok(buffer.stx_attributes & bit != 0)
}

/// What a raw `syscall(2)` answered, as nix would give it.
fn checked(result: libc::c_long) -> nix::Result<libc::c_long> {
    if result == -1 { Err(Errno::last()) } else { Ok(result) }
}

fn c_string(text: &str) -> nix::Result<CString> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = libc::c_int::try_from(checked(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just opened it for us, and nobody else has the number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
