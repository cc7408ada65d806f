//! Removing a tree of any depth with a constant number of descriptors: subdirectories are moved up before they are
//! emptied, so there is no recursion that a deep tree could exhaust.

use super::{Dir, component, io, os};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::CString;
use volume::Result;

pub(super) fn remove(parent: &Dir, name: &str) -> Result<()> {
    let Some(top) = open_or_unlink(parent, name)? else { return Ok(()) };
    loop {
        let (entries, _) = top.entries()?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            let below = || format!("removing {}", top.path.join(os(&entry.name)).display());
            if !is_dir(&top, &entry.name, entry.is_dir).map_err(|e| io(below(), e))? {
                unlink(&top, &entry.name, UnlinkatFlags::NoRemoveDir).map_err(|e| io(below(), e))?;
                continue;
            }
            lift_and_remove(&top, &entry.name).map_err(|e| io(below(), e))?;
        }
        parent.effects.done("remove-tree-step");
    }
    parent.remove_empty_dir(name).map(drop)
}

/// Empties the directory `name` of `top`: files are unlinked, directories become entries of `top`.
fn lift_and_remove(top: &Dir, name: &[u8]) -> nix::Result<()> {
    let fd = top.open_at(c_name(name)?, OFlag::O_DIRECTORY | OFlag::O_RDONLY, Mode::empty())?;
    let dir = Dir { fd: fd.into(), path: top.path.join(os(name)), effects: top.effects.clone() };
    let (entries, _) = dir.entries().map_err(|_| Errno::EIO)?;
    for entry in entries {
        if is_dir(&dir, &entry.name, entry.is_dir)? {
            let lifted = c_name(uuid::Uuid::new_v4().simple().to_string().as_bytes())?;
            let flags = RenameFlags::RENAME_NOREPLACE;
            renameat2(&dir, c_name(&entry.name)?.as_c_str(), top, lifted.as_c_str(), flags)?;
        } else {
            unlink(&dir, &entry.name, UnlinkatFlags::NoRemoveDir)?;
        }
    }
    match unlink(top, name, UnlinkatFlags::RemoveDir) {
        // Something was put there meanwhile: the next round sees it.
        Err(Errno::ENOTEMPTY) => Ok(()),
        other => other,
    }
}

/// The directory, or `None` when there was none or it was something else, which is then unlinked.
fn open_or_unlink(parent: &Dir, name: &str) -> Result<Option<Dir>> {
    match parent.open_at(component(name)?, OFlag::O_DIRECTORY | OFlag::O_RDONLY, Mode::empty()) {
        Ok(fd) => Ok(Some(Dir { fd: fd.into(), path: parent.path.join(name), effects: parent.effects.clone() })),
        Err(Errno::ENOENT) => Ok(None),
        Err(Errno::ENOTDIR | Errno::ELOOP) => parent.remove_file(name).map(|_| None),
        Err(errno) => Err(parent.failed("removing", name, errno)),
    }
}

fn is_dir(dir: &Dir, name: &[u8], hint: Option<bool>) -> nix::Result<bool> {
    match hint {
        Some(known) => Ok(known),
        None => match fstatat(dir, c_name(name)?.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        },
    }
}

fn unlink(dir: &Dir, name: &[u8], how: UnlinkatFlags) -> nix::Result<()> {
    match unlinkat(dir, c_name(name)?.as_c_str(), how) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// A name that getdents64 gave is a single component already.
fn c_name(name: &[u8]) -> nix::Result<CString> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}
