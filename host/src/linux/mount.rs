//! Mounts, through the kernel's mount API of 5.2 and later: nothing is visible at the target before it is verified.

use super::options::{Options, plan};
use super::{btrfs, mountinfo, os, paths};
use crate::sys::mount::{
    FsContext, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, attach, clone_tree,
    set_attributes,
};
use crate::{Effects, FileSystemStats, LoopDevice, MountEntry, MountRequest, sys};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statvfs::fstatvfs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use volume::{DeviceNumber, Error, ErrorKind, FsType, Result};

pub(super) fn mount(effects: &Effects, request: &MountRequest<'_>) -> Result<()> {
    let options = plan(request.fs, request.read_only, request.flags)?;
    let target = place(request.target, SFlag::S_IFDIR)?;
    let device = paths::open_place(request.device)?;
    let (kind, number) = kind_of(&device, request.device)?;
    if kind != SFlag::S_IFBLK {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("{} is to be mounted and is not a block device", request.device.display()),
        ));
    }
    check_number(request, number, "is")?;
    let mount = make(request, &options)?;
    check_number(request, mounted_device(request.fs, &mount)?, "was mounted from")?;
    attach(&mount, &target).map_err(|errno| os::error(what(request), errno))?;
    effects.done("mount");
    Ok(())
}

pub(super) fn bind(effects: &Effects, source: &Path, target: &Path, read_only: bool) -> Result<()> {
    let opened = paths::open_place(source)?;
    let (target_kind, attributes) = match kind_of(&opened, source)?.0 {
        SFlag::S_IFDIR => (SFlag::S_IFDIR, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV),
        // NODEV would make the device node itself unusable.
        SFlag::S_IFBLK => (SFlag::S_IFREG, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC),
        _ => {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("{} is neither a directory nor a block device and is not bound", source.display()),
            ));
        }
    };
    if read_only && target_kind == SFlag::S_IFREG && !is_read_only(source)? {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "{} is to be bound read-only, but a read-only mount of a node does not stop writes to the device; attach the device itself read-only",
                source.display()
            ),
        ));
    }
    let target_place = place_for_bind(target, target_kind)?;
    let failed = |errno| os::error(format!("binding {} to {}", source.display(), target.display()), errno);
    let mount = clone_tree(&opened).map_err(failed)?;
    let attributes = if read_only { attributes | MOUNT_ATTR_RDONLY } else { attributes };
    set_attributes(&mount, attributes).map_err(failed)?;
    attach(&mount, &target_place).map_err(failed)?;
    effects.done("bind");
    Ok(())
}

pub(super) fn unmount(effects: &Effects, path: &Path) -> Result<()> {
    // Nothing is asked of the file system before: one that was shut down answers only errors.
    paths::check(path)?;
    match os::retry_busy(|| umount2(path, MntFlags::UMOUNT_NOFOLLOW)) {
        Ok(()) => {
            effects.done("unmount");
            Ok(())
        }
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
        // "Not a mount point", but also "locked by another user namespace".
        Err(Errno::EINVAL) if !paths::is_mount_point(path)? => Ok(()),
        Err(Errno::EBUSY) => Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "{} is in use: a process has a file or its working directory there, or something is mounted below it; end that first (`fuser -vm {}` names it)",
                path.display(),
                path.display()
            ),
        )),
        Err(errno) => Err(os::error(format!("unmounting {}", path.display()), errno)),
    }
}

pub(super) fn at(path: &Path) -> Result<Option<MountEntry>> {
    if !paths::is_mount_point_if_there(path)? {
        return Ok(None);
    }
    Ok(mountinfo::own()?.into_iter().rfind(|entry| entry.mounted_at == path))
}

pub(super) fn stats(path: &Path) -> Result<FileSystemStats> {
    let place = paths::open_place(path)?;
    let stat = fstatvfs(&place).map_err(|errno| os::error(format!("statfs of {}", path.display()), errno))?;
    let block = stat.fragment_size();
    let bytes = |blocks: u64| blocks.saturating_mul(block);
    Ok(FileSystemStats {
        total_bytes: bytes(stat.blocks()),
        available_bytes: bytes(stat.blocks_available()),
        used_bytes: bytes(stat.blocks().saturating_sub(stat.blocks_free())),
        total_inodes: stat.files(),
        available_inodes: stat.files_available(),
        used_inodes: stat.files().saturating_sub(stat.files_free()),
    })
}

fn make(request: &MountRequest<'_>, options: &Options) -> Result<OwnedFd> {
    let context = FsContext::open(request.fs.as_str()).map_err(|errno| match errno {
        Errno::ENODEV => {
            Error::new(ErrorKind::Unsupported, format!("this kernel has no {} file system", request.fs.as_str()))
        }
        errno => os::error(what(request), errno),
    })?;
    let configure = || {
        let device = request.device.to_str().ok_or(Errno::EINVAL)?;
        context.set_string("source", device)?;
        if options.read_only {
            context.set_flag("ro")?;
        }
        for (key, value) in &options.keys {
            match value {
                Some(value) => context.set_string(key, value)?,
                None => context.set_flag(key)?,
            }
        }
        context.create()?;
        context.mount(options.attributes)
    };
    configure().map_err(|errno| refused(request, errno, &context.messages()))
}

/// The root of the file system that is mounted from the loop, by a mount of our own that is in no namespace: also when
/// no other mount of it can be seen or reached. `None` when nothing has the device mounted, or it was shut down.
///
/// Making a superblock of a device that has one already gives that one. Should the last mount go away just before, ours
/// is a fresh one, which does what any mount does (it replays the journal).
pub(super) fn join(device: &LoopDevice) -> Result<Option<OwnedFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if !matches!(openat(AT_FDCWD, &device.path, flags, Mode::empty()), Err(Errno::EBUSY)) {
        return Ok(None);
    }
    for fs in FsType::ALL {
        for read_only in [false, true] {
            let Some(mount) = join_as(device, fs, read_only) else { continue };
            let number = match mounted_device(fs, &mount) {
                Ok(number) => number,
                // xfs that was shut down answers nothing but EIO, and acknowledges nothing either.
                Err(error) if error.kind() == ErrorKind::Unavailable => return Ok(None),
                Err(error) => return Err(error),
            };
            if number == device.number {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let root = openat(&mount, ".", flags, Mode::empty());
                return root.map(Some).map_err(|errno| os::error("opening a mount of our own", errno));
            }
        }
    }
    // Another user has it exclusively: a workload of a raw volume, or a program that repairs it.
    Ok(None)
}

/// `None` when it is not mounted as this: the kernel then refuses the device, which another holds exclusively.
fn join_as(device: &LoopDevice, fs: FsType, read_only: bool) -> Option<OwnedFd> {
    let context = FsContext::open(fs.as_str()).ok()?;
    context.set_string("source", device.path.to_str()?).ok()?;
    if read_only {
        context.set_flag("ro").ok()?;
    }
    context.create().ok()?;
    context.mount(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | if read_only { MOUNT_ATTR_RDONLY } else { 0 }).ok()
}

/// What the kernel's refusal to mount means.
fn refused(request: &MountRequest<'_>, errno: Errno, messages: &[String]) -> Error {
    let said = match messages {
        [] => String::new(),
        messages => format!("; the kernel says: {}", messages.join("; ")),
    };
    let (kind, hint) = match errno {
        Errno::EBUSY => (
            ErrorKind::FailedPrecondition,
            "the device is in use: mounted elsewhere with another access mode, or held by another program",
        ),
        // A superblock that is damaged or does not fit the device, or a journal that cannot be replayed.
        Errno::EINVAL | Errno::EUCLEAN | Errno::EBADMSG | Errno::ENOSYS => (
            ErrorKind::Corrupt,
            "the file system on it is damaged or not what it should be; nothing was changed, check it with fsck -n",
        ),
        Errno::EACCES | Errno::EROFS => {
            (ErrorKind::FailedPrecondition, "the device is read-only; mount it read-only too")
        }
        Errno::EEXIST => (
            ErrorKind::FailedPrecondition,
            "a file system with the same UUID is mounted; unmount that first or give one of them a new UUID",
        ),
        errno => return os::error(format!("{}{said}", what(request)), errno),
    };
    Error::with_source(kind, format!("{}: {hint}{said}", what(request)), std::io::Error::from(errno))
}

fn check_number(request: &MountRequest<'_>, found: DeviceNumber, verb: &str) -> Result<()> {
    if found == request.number {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::FailedPrecondition,
        format!(
            "{}: it {verb} device {}:{} and not {}:{}, the volume's; nothing is mounted",
            what(request),
            found.major,
            found.minor,
            request.number.major,
            request.number.minor
        ),
    ))
}

/// The device of a mount that is not attached yet.
fn mounted_device(fs: FsType, mount: &OwnedFd) -> Result<DeviceNumber> {
    let failed = |errno| os::error("looking at a new mount", errno);
    match fs {
        FsType::Ext4 | FsType::Xfs => os::device_number(fstat(mount).map_err(failed)?.st_dev),
        FsType::Btrfs => {
            // The mount's own descriptor is an O_PATH one, which takes no ioctl.
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            btrfs::device_of(openat(mount, ".", flags, Mode::empty()).map_err(failed)?)
        }
    }
}

/// Opens `path` and checks that it is a directory or a regular file, without following a final symlink.
fn place(path: &Path, wanted: SFlag) -> Result<OwnedFd> {
    let place = paths::open_place(path)?;
    if kind_of(&place, path)?.0 == wanted {
        return Ok(place);
    }
    let noun = if wanted == SFlag::S_IFDIR { "directory" } else { "regular file" };
    Err(Error::new(ErrorKind::FailedPrecondition, format!("{} is not a {noun}", path.display())))
}

/// As [`place`]; a device node that is bound onto a file already may be covered by another.
fn place_for_bind(path: &Path, wanted: SFlag) -> Result<OwnedFd> {
    if wanted == SFlag::S_IFREG {
        let place = paths::open_place(path)?;
        if kind_of(&place, path)?.0 == SFlag::S_IFBLK && paths::is_mount_point(path)? {
            return Ok(place);
        }
    }
    place(path, wanted)
}

fn kind_of(place: impl AsFd, path: &Path) -> Result<(SFlag, DeviceNumber)> {
    let stat = fstat(place).map_err(|errno| os::error(format!("looking at {}", path.display()), errno))?;
    Ok((SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()), os::device_number(stat.st_rdev)?))
}

fn is_read_only(device: &Path) -> Result<bool> {
    let failed = |errno| os::error(format!("asking whether {} is read-only", device.display()), errno);
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(AT_FDCWD, device, flags, Mode::empty()).map_err(failed)?;
    sys::block::is_read_only(&opened).map_err(failed)
}

fn what(request: &MountRequest<'_>) -> String {
    format!("mounting {} ({}) at {}", request.device.display(), request.fs.as_str(), request.target.display())
}
