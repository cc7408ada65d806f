//! Files of a pool or a journal, below one open directory: every name is one checked component, no symlink is ever
//! followed, and what is published is complete and durable or not there at all.

mod data;
mod extents;
mod tree;

pub use data::{
    FileIdentity, FileSystemKind, Space, allocate, allocated_bytes, clone_file, copy_sparse, filesystem_of, get_xattr,
    identity, is_open_here_alone, probe_reflink, set_xattr, space,
};
pub use extents::{Extent, ExtentContent, ExtentPage, extents};

use crate::Effects;
use crate::sys::file as sys;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use volume::{Error, ErrorKind, Result};

/// What one getdents64 call can take: more than a thousand names of this driver's lengths.
const LISTING_BYTES: usize = 64 << 10;
/// NAME_MAX of every Linux file system that a pool can be on.
const MAX_NAME_BYTES: usize = 255;
const TEMPORARY_PREFIX: &str = ".tmp-";

/// An open directory. It keeps meaning the same directory when that is renamed or removed.
#[derive(Clone)]
pub struct Dir {
    fd: std::sync::Arc<OwnedFd>,
    /// As it was opened, for messages and for calls that take a path.
    path: PathBuf,
    effects: Effects,
}

/// How [`Dir::open_file`] opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
    /// With O_DIRECT.
    ReadWriteDirect,
}

/// A new file that no reader can see until [`Dir::link_unnamed`]; gone when it is dropped before.
pub struct Unnamed {
    file: File,
    /// Where the file system has no O_TMPFILE (NFS): the directory and the name it has meanwhile.
    temporary: Option<(Dir, String)>,
}

impl Dir {
    /// Opens the directory at `path`; its parents may be symlinks, itself not.
    pub fn open(path: &Path, effects: Effects) -> Result<Self> {
        let how = OpenHow::new().flags(OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY);
        let fd = retry(|| openat2(nix::fcntl::AT_FDCWD, path, how))
            .map_err(|errno| io(format!("opening the directory {}", path.display()), errno))?;
        Ok(Self { fd: fd.into(), path: path.to_owned(), effects })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn effects(&self) -> &Effects {
        &self.effects
    }

    /// The directory `name` in this one; `NotFound` when absent.
    pub fn child(&self, name: &str) -> Result<Self> {
        self.find_child(name)?
            .ok_or_else(|| Error::not_found(format!("there is no directory {}", self.path.join(name).display())))
    }

    pub fn find_child(&self, name: &str) -> Result<Option<Self>> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
        match self.open_at(component(name)?, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd: fd.into(), path: self.path.join(name), effects: self.effects.clone() })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.failed("opening the directory", name, errno)),
        }
    }

    /// Makes the directory unless it is there, and opens it.
    pub fn ensure_child(&self, name: &str) -> Result<Self> {
        self.create_dir(name)?;
        self.child(name)
    }

    /// Makes and opens a directory that counts for nothing until a rename gives it and what is in it a name: neither it nor
    /// [`Dir::write_new`] in it is made durable before [`Dir::sync`] and that rename are. `FailedPrecondition` when it is
    /// there already.
    pub fn begin_child(&self, name: &str) -> Result<Self> {
        mkdirat(self, component(name)?.as_c_str(), Mode::S_IRWXU)
            .map_err(|errno| self.failed("making the directory", name, errno))?;
        self.effects.done("create-dir");
        self.child(name)
    }

    /// Makes a file with this content; nothing of it is durable yet. `FailedPrecondition` when the name is taken.
    pub fn write_new(&self, name: &str, bytes: &[u8]) -> Result<File> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR;
        let fd = self
            .open_at(component(name)?, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| self.failed("making", name, errno))?;
        self.effects.done("create-file");
        let mut file = File::from(fd);
        file.write_all(bytes).map_err(|e| Error::io(format!("writing {}", self.path.join(name).display()), e))?;
        Ok(file)
    }

    /// Makes a directory with mode 0700; whether it is new.
    pub fn create_dir(&self, name: &str) -> Result<bool> {
        match mkdirat(self, component(name)?.as_c_str(), Mode::S_IRWXU) {
            Ok(()) => {
                self.effects.done("create-dir");
                self.sync()?;
                Ok(true)
            }
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(self.failed("making the directory", name, errno)),
        }
    }

    /// Whether both are the same directory, under whatever names.
    pub fn is_same(&self, other: &Self) -> Result<bool> {
        let stat = |dir: &Self| nix::sys::stat::fstat(dir).map_err(|errno| dir.failed("reading what is", ".", errno));
        let (a, b) = (stat(self)?, stat(other)?);
        Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// The device that the files in it are on, as loop devices name it.
    pub fn device(&self) -> Result<volume::DeviceNumber> {
        let stat = nix::sys::stat::fstat(self).map_err(|errno| self.failed("reading what is", ".", errno))?;
        data::device_number(stat.st_dev)
    }

    /// The names in this directory that are UTF-8 (every name of this driver is), sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        self.list().map(|(names, _)| names)
    }

    /// As [`Dir::names`], read by one getdents64 call. The kernel runs it under the directory's lock, which link,
    /// rename and unlink take exclusively, so the answer is the state at one instant. `Corrupt` when it does not fit.
    pub fn names_at_once(&self) -> Result<Vec<String>> {
        match self.list()? {
            (names, true) => Ok(names),
            (names, false) => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} holds {} names, more than this driver ever puts there; remove what is not its own",
                    self.path.display(),
                    names.len()
                ),
            )),
        }
    }

    /// When a name last came or went in the directory `name`; `None` when there is none. One stat(2).
    pub fn changed_at(&self, name: &str) -> Result<Option<SystemTime>> {
        match nix::sys::stat::fstatat(self, component(name)?.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
                let nanos = Duration::from_nanos(u64::try_from(stat.st_mtime_nsec).unwrap_or(0));
                Ok(Some(SystemTime::UNIX_EPOCH + seconds + nanos))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.failed("looking at", name, errno)),
        }
    }

    pub fn contains(&self, name: &str) -> Result<bool> {
        match nix::sys::stat::fstatat(self, component(name)?.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.failed("looking for", name, errno)),
        }
    }

    /// Opens a regular file; `NotFound` when absent, `Corrupt` when it is something else.
    pub fn open_file(&self, name: &str, access: Access) -> Result<File> {
        let flags = match access {
            Access::Read => OFlag::O_RDONLY,
            Access::ReadWrite => OFlag::O_RDWR,
            Access::ReadWriteDirect => OFlag::O_RDWR | OFlag::O_DIRECT,
        };
        // O_NONBLOCK keeps the open of a FIFO that somebody put there from waiting; files ignore it.
        let fd = self
            .open_at(component(name)?, flags | OFlag::O_NONBLOCK, Mode::empty())
            .map_err(|errno| self.failed("opening", name, errno))?;
        let file = File::from(fd);
        let metadata = file.metadata().map_err(|e| Error::io(format!("reading what {name} is"), e))?;
        if metadata.is_file() {
            Ok(file)
        } else {
            Err(Error::new(ErrorKind::Corrupt, format!("{} is not a regular file", self.path.join(name).display())))
        }
    }

    /// The whole content of a file of at most `max_bytes`; `Corrupt` when it is larger.
    pub fn read(&self, name: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let file = self.open_file(name, Access::Read)?;
        let mut bytes = Vec::new();
        file.take(max_bytes + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(format!("reading {}", self.path.join(name).display()), e))?;
        if bytes.len() as u64 > max_bytes {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} has more than {max_bytes} bytes", self.path.join(name).display()),
            ));
        }
        Ok(bytes)
    }

    /// Makes the file `name` with this content, complete and durable; `false` when the name is taken.
    pub fn publish(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        let mut unnamed = self.unnamed_file()?;
        unnamed
            .file
            .write_all(bytes)
            .map_err(|e| Error::io(format!("writing {}", self.path.join(name).display()), e))?;
        self.link_unnamed(unnamed, name)
    }

    /// As [`Dir::publish`], but not durable: complete for whoever reads it, also after this process is killed; a power loss
    /// may take it, or leave it empty or as zeros.
    pub fn publish_volatile(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        let mut unnamed = self.unnamed_file()?;
        unnamed
            .file
            .write_all(bytes)
            .map_err(|e| Error::io(format!("writing {}", self.path.join(name).display()), e))?;
        self.give_name(&unnamed, name)
    }

    /// A new empty file (mode 0600) in this directory's file system, without a name.
    pub fn unnamed_file(&self) -> Result<Unnamed> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
        match self.open_at(c".".to_owned(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(fd) => Ok(Unnamed { file: File::from(fd), temporary: None }),
            // open(2): the file system has no O_TMPFILE.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) => self.temporary_file(),
            Err(errno) => Err(self.failed("making a file in", ".", errno)),
        }
    }

    /// Makes the file's data durable, gives it its name, and makes the name durable. `false` when the name is taken.
    pub fn link_unnamed(&self, unnamed: Unnamed, name: &str) -> Result<bool> {
        unnamed
            .file
            .sync_all()
            .map_err(|e| Error::io(format!("making {} durable", self.path.join(name).display()), e))?;
        self.effects.done("sync-file");
        let is_new = self.give_name(&unnamed, name)?;
        if is_new {
            self.sync()?;
        }
        Ok(is_new)
    }

    /// `false` when the name is taken.
    fn give_name(&self, unnamed: &Unnamed, name: &str) -> Result<bool> {
        let to = component(name)?;
        let linked = match &unnamed.temporary {
            Some((dir, from)) => linkat(dir, from.as_str(), self, to.as_c_str(), AtFlags::empty()),
            None => match linkat(&unnamed.file, "", self, to.as_c_str(), AtFlags::AT_EMPTY_PATH) {
                // Kernels before 6.10 want CAP_DAC_READ_SEARCH for this form (open(2), O_TMPFILE).
                Err(Errno::ENOENT) => {
                    let from = format!("/proc/self/fd/{}", unnamed.file.as_raw_fd());
                    linkat(nix::fcntl::AT_FDCWD, from.as_str(), self, to.as_c_str(), AtFlags::AT_SYMLINK_FOLLOW)
                }
                other => other,
            },
        };
        match linked {
            Ok(()) => {
                self.effects.done("link");
                Ok(true)
            }
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(self.failed("linking", name, errno)),
        }
    }

    /// Renames, also to another directory of the same file system; `false` when the new name is taken.
    pub fn rename_noreplace(&self, from: &str, to_dir: &Self, to: &str) -> Result<bool> {
        match self.rename_with(from, to_dir, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(self.failed(&format!("renaming to {}:", to_dir.path.join(to).display()), from, errno)),
        }
    }

    /// Swaps two names atomically.
    pub fn exchange(&self, from: &str, to_dir: &Self, to: &str) -> Result<()> {
        self.rename_with(from, to_dir, to, RenameFlags::RENAME_EXCHANGE)
            .map_err(|errno| self.failed(&format!("exchanging with {}:", to_dir.path.join(to).display()), from, errno))
    }

    fn rename_with(&self, from: &str, to_dir: &Self, to: &str, flags: RenameFlags) -> nix::Result<()> {
        let parse = |name| component(name).map_err(|_| Errno::EINVAL);
        renameat2(self, parse(from)?.as_c_str(), to_dir, parse(to)?.as_c_str(), flags)?;
        self.effects.done("rename");
        nix::unistd::fsync(to_dir)?;
        if std::sync::Arc::ptr_eq(&self.fd, &to_dir.fd) { Ok(()) } else { nix::unistd::fsync(self) }
    }

    /// Whether there was one.
    pub fn remove_file(&self, name: &str) -> Result<bool> {
        self.remove_with(name, UnlinkatFlags::NoRemoveDir)
    }

    /// Removes a file whose return after a power loss would do no harm; fine when absent.
    pub fn discard_file(&self, name: &str) -> Result<()> {
        match unlinkat(self, component(name)?.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => {
                self.effects.done("discard");
                Ok(())
            }
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.failed("removing", name, errno)),
        }
    }

    /// Whether there was one; `FailedPrecondition` when it is not empty.
    pub fn remove_empty_dir(&self, name: &str) -> Result<bool> {
        self.remove_with(name, UnlinkatFlags::RemoveDir)
    }

    fn remove_with(&self, name: &str, how: UnlinkatFlags) -> Result<bool> {
        match unlinkat(self, component(name)?.as_c_str(), how) {
            Ok(()) => {
                self.effects.done("remove");
                self.sync()?;
                Ok(true)
            }
            Err(Errno::ENOENT) => Ok(false),
            Err(Errno::ENOTEMPTY) => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("the directory {} is not empty", self.path.join(name).display()),
            )),
            Err(errno) => Err(self.failed("removing", name, errno)),
        }
    }

    /// Removes `name` and everything below it, whatever its depth; fine when absent. Follows no symlink and does not
    /// leave the mount: `FailedPrecondition` when something is mounted inside. It can be repeated after a crash.
    pub fn remove_tree(&self, name: &str) -> Result<()> {
        tree::remove(self, name)
    }

    /// Makes all names of this directory durable.
    pub fn sync(&self) -> Result<()> {
        nix::unistd::fsync(self).map_err(|errno| self.failed("making durable", ".", errno))
    }

    fn list(&self) -> Result<(Vec<String>, bool)> {
        let (entries, at_once) = self.entries()?;
        let mut names: Vec<String> = entries.into_iter().filter_map(|e| String::from_utf8(e.name).ok()).collect();
        names.sort_unstable();
        Ok((names, at_once))
    }

    /// All entries, and whether one call read them.
    fn entries(&self) -> Result<(Vec<sys::Entry>, bool)> {
        let failed = |errno| self.failed("listing", ".", errno);
        // A descriptor of its own: positions are not shared with other threads, and btrfs shows entries that are
        // newer than the descriptor only to a fresh one.
        let fresh = self.open_at(c".".to_owned(), OFlag::O_DIRECTORY | OFlag::O_RDONLY, Mode::empty());
        let fresh = fresh.map_err(failed)?;
        let mut buffer = vec![0u8; LISTING_BYTES];
        let mut entries = Vec::new();
        let mut calls = 0;
        while let Some(more) = sys::getdents64(fresh.as_fd(), &mut buffer).map_err(failed)? {
            entries.extend(more);
            calls += 1;
        }
        Ok((entries, calls <= 1))
    }

    fn open_at(&self, name: CString, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
        retry(|| openat2(self, name.as_c_str(), how))
    }

    /// For file systems without O_TMPFILE. What a crash leaves is found by [`is_temporary`].
    fn temporary_file(&self) -> Result<Unnamed> {
        let name = format!("{TEMPORARY_PREFIX}{}", uuid::Uuid::new_v4().simple());
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR;
        let fd = self
            .open_at(component(&name)?, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| self.failed("making", &name, errno))?;
        self.effects.done("create-temporary");
        Ok(Unnamed { file: File::from(fd), temporary: Some((self.clone(), name)) })
    }

    fn failed(&self, what: &str, name: &str, errno: Errno) -> Error {
        let path = if name == "." { self.path.clone() } else { self.path.join(name) };
        io(format!("{what} {}", path.display()), errno)
    }
}

/// Whether a name is that of a file that was never linked, left by a crash on a file system without O_TMPFILE.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY_PREFIX)
}

impl Unnamed {
    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn file_mut(&mut self) -> &mut File {
        &mut self.file
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some((dir, name)) = self.temporary.take()
            && let Err(error) = dir.remove_file(&name)
        {
            tracing::warn!(error = error.chain(), "a temporary file stays behind; it is removed later");
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One path component: anything else is a defect of the caller or an attack, and names nothing.
fn component(name: &str) -> Result<CString> {
    let usable = !name.is_empty() && name.len() <= MAX_NAME_BYTES && !matches!(name, "." | "..") && !name.contains('/');
    match CString::new(name) {
        Ok(name) if usable => Ok(name),
        _ => Err(Error::invalid(format!("{name:?} cannot be a file's name"))),
    }
}

/// openat2(2): EAGAIN when a rename elsewhere kept the kernel from proving that the walk stayed beneath, and while
/// somebody looks whether a file is open ([`is_open_here_alone`]).
pub(crate) fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    let mut attempts = 0;
    loop {
        match call() {
            Err(Errno::EAGAIN | Errno::EINTR) if attempts < 100 => attempts += 1,
            other => return other,
        }
        if attempts > 10 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn io(message: String, errno: Errno) -> Error {
    let kind = match errno {
        Errno::EROFS => Some(ErrorKind::FailedPrecondition),
        Errno::ELOOP | Errno::ENOTDIR => Some(ErrorKind::Corrupt),
        Errno::EXDEV | Errno::EBUSY | Errno::EEXIST => Some(ErrorKind::FailedPrecondition),
        Errno::EOPNOTSUPP | Errno::ENOSYS => Some(ErrorKind::Unsupported),
        Errno::EIO => Some(ErrorKind::Unavailable),
        _ => None,
    };
    let source = std::io::Error::from(errno);
    match kind {
        Some(kind) => Error::with_source(kind, message, source),
        None => Error::io(message, source),
    }
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

#[cfg(test)]
mod tests;
