//! Paths that an orchestrator names. Parents are walked by descriptor and may pass through symlinks (an orchestrator's
//! own directory often is one); the last component never is followed.

use super::{mountinfo, os};
use crate::sys::inode::set_immutable;
use crate::sys::mount::{clone_tree, is_mount_root};
use crate::{Effects, Owner, PathState};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use volume::{Error, ErrorKind, Result};

/// Of directories that are made; an orchestrator widens it where others are to look in.
const DIRECTORY_MODE: Mode = Mode::S_IRWXU.union(Mode::S_IRGRP).union(Mode::S_IXGRP);
const PERMISSIONS: u32 = 0o7777;
const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

pub(super) fn resolve_parents(path: &Path) -> Result<PathBuf> {
    if !path.is_absolute() {
        return Err(Error::invalid(format!("path {path:?} is not absolute")));
    }
    let components: Vec<_> = path.components().collect();
    let Some((Component::Normal(name), parents)) = components.split_last() else {
        return Err(Error::invalid(format!("path {path:?} does not end in a name")));
    };
    let mut resolved = PathBuf::from("/");
    let mut exists = true;
    for component in parents {
        if exists {
            match std::fs::canonicalize(resolved.join(component)) {
                Ok(real) => {
                    resolved = real;
                    continue;
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => exists = false,
                Err(e) => return Err(Error::io(format!("resolving {}", path.display()), e)),
            }
        }
        match component {
            Component::Normal(name) => resolved.push(name),
            // What it leads out of does not exist, so where it leads is not known.
            _ => return Err(Error::invalid(format!("path {path:?} holds `..` after a directory that does not exist"))),
        }
    }
    resolved.push(name);
    Ok(resolved)
}

pub(super) fn observe(path: &Path) -> Result<PathState> {
    checked(path)?;
    let stat = match lstat(path) {
        Ok(Some(stat)) => stat,
        Ok(None) => return Ok(PathState::Absent),
        Err(Errno::EIO) if is_in_mount_table(path)? => return Ok(PathState::Directory { is_empty: false }),
        Err(errno) => return Err(os::error(format!("looking at {}", path.display()), errno)),
    };
    Ok(match kind(&stat) {
        SFlag::S_IFDIR => PathState::Directory { is_empty: is_empty(path) },
        SFlag::S_IFREG => PathState::File { size_bytes: u64::try_from(stat.st_size).unwrap_or(0) },
        SFlag::S_IFBLK => PathState::BlockDevice(os::device_number(stat.st_rdev)?),
        SFlag::S_IFLNK => PathState::Symlink,
        _ => PathState::Other,
    })
}

pub(super) fn ensure_directory(effects: &Effects, path: &Path) -> Result<()> {
    let (parents, name) = checked(path)?;
    let parent = ensure_parents(effects, path, &parents)?;
    match ensure_child(effects, &parent, name, OFlag::O_NOFOLLOW) {
        Ok(_) => Ok(()),
        Err(errno) => Err(not_a_directory(path, path, errno)),
    }
}

pub(super) fn ensure_file(effects: &Effects, path: &Path) -> Result<()> {
    let (parents, name) = checked(path)?;
    let parent = ensure_parents(effects, path, &parents)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    match openat(&parent, name, flags, FILE_MODE) {
        Ok(_) => {
            effects.done("make-file");
            return Ok(());
        }
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(os::error(format!("making the file {}", path.display()), errno)),
    }
    match observe(path)? {
        PathState::File { size_bytes: 0 } => Ok(()),
        PathState::BlockDevice(_) if is_mount_point(path)? => Ok(()),
        other => Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("{} is to be an empty file, but there is {}; remove it", path.display(), describe(&other)),
        )),
    }
}

/// A mount of the parent that nobody else sees shows the directory itself, and not what is mounted on it. So it is sealed
/// before it can be seen.
pub(super) fn seal(effects: &Effects, path: &Path) -> Result<bool> {
    let (_, name) = checked(path)?;
    let failed = |errno| os::error(format!("sealing {}", path.display()), errno);
    let Some(parent) = path.parent().filter(|parent| parent.parent().is_some()) else { return Ok(false) };
    let without_mounts = clone_tree(open_place(parent)?).map_err(failed)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = match openat(&without_mounts, name, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
        Err(errno) => return Err(failed(errno)),
    };
    match set_immutable(&directory, true) {
        Ok(is_new) => {
            if is_new {
                effects.done("seal-target");
            }
            Ok(true)
        }
        Err(Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EPERM) => Ok(false),
        Err(errno) => Err(failed(errno)),
    }
}

/// Whether it was sealed.
fn unseal(path: &Path) -> nix::Result<bool> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    set_immutable(openat(AT_FDCWD, path, flags, Mode::empty())?, false)
}

pub(super) fn remove(effects: &Effects, path: &Path) -> Result<()> {
    let refused =
        |why: &str| Err(Error::new(ErrorKind::FailedPrecondition, format!("{} is not removed: {why}", path.display())));
    let state = observe(path)?;
    let flag = match &state {
        PathState::Absent => return Ok(()),
        PathState::Directory { .. } => UnlinkatFlags::RemoveDir,
        PathState::File { .. } | PathState::BlockDevice(_) => UnlinkatFlags::NoRemoveDir,
        PathState::Symlink | PathState::Other => return refused(&format!("it is {}", describe(&state))),
    };
    if is_mount_point(path)? {
        return refused("something is mounted there");
    }
    match state {
        PathState::File { size_bytes: 0 } | PathState::Directory { .. } => {}
        // Data that somebody wrote where a mount was expected, or a device node that is not ours.
        other => return refused(&format!("it is {}, not an empty file", describe(&other))),
    }
    let unlinked = match unlinkat(AT_FDCWD, path, flag) {
        Err(Errno::EPERM) if unseal(path) == Ok(true) => unlinkat(AT_FDCWD, path, flag),
        other => other,
    };
    match unlinked {
        Ok(()) => {
            effects.done("remove-target");
            Ok(())
        }
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
            refused("it is not empty; what is in it was written there while no volume was mounted")
        }
        Err(Errno::EBUSY) => refused("something is mounted there"),
        Err(errno) => Err(os::error(format!("removing {}", path.display()), errno)),
    }
}

pub(super) fn owner(path: &Path) -> Result<Owner> {
    let stat = fstat(&open_directory(path)?)
        .map_err(|errno| os::error(format!("reading the owner of {}", path.display()), errno))?;
    Ok(Owner { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & PERMISSIONS })
}

pub(super) fn set_owner(
    effects: &Effects,
    path: &Path,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<u32>,
) -> Result<()> {
    let failed = |errno| os::error(format!("setting owner and mode of {}", path.display()), errno);
    let directory = open_directory(path)?;
    let now = fstat(&directory).map_err(failed)?;
    let (uid, gid) = (uid.filter(|&uid| uid != now.st_uid), gid.filter(|&gid| gid != now.st_gid));
    if uid.is_some() || gid.is_some() {
        fchown(&directory, uid.map(Uid::from_raw), gid.map(Gid::from_raw)).map_err(failed)?;
        effects.done("set-owner");
    }
    if let Some(mode) = mode.filter(|&mode| mode != now.st_mode & PERMISSIONS) {
        fchmod(&directory, Mode::from_bits_truncate(mode)).map_err(failed)?;
        effects.done("set-mode");
    }
    Ok(())
}

/// Opens what is at `path`, without following a final symlink and without opening a device: for `fstat`, mounts onto it.
pub(super) fn open_place(path: &Path) -> Result<OwnedFd> {
    checked(path)?;
    openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| os::error(format!("opening {}", path.display()), errno))
}

/// `InvalidArgument` for anything but a plain absolute path.
pub(super) fn check(path: &Path) -> Result<()> {
    checked(path).map(drop)
}

/// Whether `path` is where something is mounted, in this mount namespace.
pub(super) fn is_mount_point(path: &Path) -> Result<bool> {
    match is_mount_root(&open_place(path)?) {
        Err(Errno::EIO) => is_in_mount_table(path),
        other => other.map_err(|errno| os::error(format!("asking whether {} is a mount point", path.display()), errno)),
    }
}

/// As [`is_mount_point`]; on what is not there nothing is mounted.
pub(super) fn is_mount_point_if_there(path: &Path) -> Result<bool> {
    checked(path)?;
    match lstat(path) {
        Ok(None) => Ok(false),
        // What a look cannot tell (a file system that was shut down), the mount table does.
        Ok(Some(_)) | Err(_) => is_mount_point(path),
    }
}

/// For the root of a file system that was shut down: xfs answers even stat(2) with EIO then.
fn is_in_mount_table(path: &Path) -> Result<bool> {
    let resolved = resolve_parents(path)?;
    Ok(mountinfo::own()?.iter().any(|entry| entry.mounted_at == resolved))
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    checked(path)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, path, flags, Mode::empty())
        .map_err(|errno| os::error(format!("opening the directory {}", path.display()), errno))
}

/// The components above the last, and the last. `InvalidArgument` for anything but a plain absolute path.
fn checked(path: &Path) -> Result<(Vec<&OsStr>, &OsStr)> {
    let refused = |why: &str| Err(Error::invalid(format!("path {path:?} {why}")));
    if !path.is_absolute() {
        return refused("is not absolute");
    }
    if path.as_os_str().as_bytes().contains(&0) {
        return refused("holds a zero byte");
    }
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return refused("holds `..`"),
        }
    }
    match names.pop() {
        Some(name) => Ok((names, name)),
        None => refused("is the root directory"),
    }
}

fn ensure_parents(effects: &Effects, path: &Path, parents: &[&OsStr]) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut directory =
        openat(AT_FDCWD, "/", flags, Mode::empty()).map_err(|errno| os::error("opening the root directory", errno))?;
    let mut so_far = PathBuf::from("/");
    for name in parents {
        so_far.push(name);
        directory = ensure_child(effects, &directory, name, OFlag::empty())
            .map_err(|errno| not_a_directory(path, &so_far, errno))?;
    }
    Ok(directory)
}

fn ensure_child(effects: &Effects, parent: &OwnedFd, name: &OsStr, follow: OFlag) -> nix::Result<OwnedFd> {
    let open = || openat(parent, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | follow, Mode::empty());
    match open() {
        Err(Errno::ENOENT) => {}
        other => return other,
    }
    match mkdirat(parent, name, DIRECTORY_MODE) {
        Ok(()) => effects.done("make-directory"),
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    open()
}

fn not_a_directory(path: &Path, at: &Path, errno: Errno) -> Error {
    match errno {
        Errno::ENOTDIR | Errno::ELOOP | Errno::ENOENT => Error::new(
            ErrorKind::FailedPrecondition,
            format!("making the directory {}: {} is there and is not a directory", path.display(), at.display()),
        ),
        errno => os::error(format!("making the directory {}", path.display()), errno),
    }
}

/// `None` when nothing is there, also when a parent is no directory: then nothing can be.
fn lstat(path: &Path) -> nix::Result<Option<FileStat>> {
    match fstatat(AT_FDCWD, path, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// A directory that cannot be read (a file system that was shut down) is not shown to be empty.
fn is_empty(path: &Path) -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let Ok(mut directory) = Dir::openat(AT_FDCWD, path, flags, Mode::empty()) else { return false };
    directory.iter().all(|entry| entry.is_ok_and(|e| matches!(e.file_name().to_bytes(), b"." | b"..")))
}

fn describe(state: &PathState) -> String {
    match state {
        PathState::Absent => "nothing".to_owned(),
        PathState::Directory { .. } => "a directory".to_owned(),
        PathState::File { size_bytes } => format!("a file of {size_bytes} bytes"),
        PathState::BlockDevice(number) => format!("the block device {}:{}", number.major, number.minor),
        PathState::Symlink => "a symbolic link".to_owned(),
        PathState::Other => "a socket, pipe or character device".to_owned(),
    }
}
