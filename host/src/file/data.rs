//! What is in files and what holds them: clones, sparse copies, allocation, identity, and the file system below.

use super::{Dir, io};
use crate::Effects;
use crate::sys::file as sys;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::fstatfs;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{Whence, lseek64};
use std::ffi::CString;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use volume::{DeviceNumber, Error, ErrorKind, Result};

/// Largest value [`get_xattr`] reads; ext4 keeps all of an inode's attributes in one block.
const MAX_XATTR_BYTES: usize = 4096;
const COPY_CHUNK: u64 = 1 << 30;
/// The unit of st_blocks (inode(7)), whatever the file system's block is.
const STAT_BLOCK: u64 = 512;

/// What a file is, for as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    pub device: DeviceNumber,
    pub inode: u64,
    /// FS_IOC_GETVERSION; 0 where the file system has none.
    pub generation: u32,
}

/// What a directory is on, as far as a pool cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystemKind {
    Ext4,
    Xfs,
    Btrfs,
    /// Other machines can have it mounted too, or nobody can tell (FUSE): loops of its files may be out of sight.
    Network(&'static str),
    /// Of this kernel alone.
    Other(&'static str),
}

/// In bytes, as statvfs(3) gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    /// For unprivileged use: free less the root's reserve.
    pub available_bytes: u64,
    /// Of the mount or of the whole file system.
    pub read_only: bool,
}

/// FICLONE: `target` gets all of `source`, sharing its blocks. `Unsupported` where the file system cannot.
pub fn clone_file(source: &File, target: &File, effects: &Effects) -> Result<()> {
    sys::ficlone(source.as_fd(), target.as_fd()).map_err(|errno| match errno {
        Errno::EOPNOTSUPP | Errno::EXDEV | Errno::EINVAL | Errno::ENOTTY => Error::with_source(
            ErrorKind::Unsupported,
            "the file system cannot clone this file",
            std::io::Error::from(errno),
        ),
        other => io("cloning a file".to_owned(), other),
    })?;
    effects.done("clone");
    Ok(())
}

/// Copies what is not a hole, and gives `target` (new and empty) the size of `source`.
pub fn copy_sparse(source: &File, target: &File, effects: &Effects) -> Result<()> {
    let failed = |errno| io("copying a file".to_owned(), errno);
    let size = source.metadata().map_err(|e| Error::io("reading a file's size", e))?.len();
    target.set_len(size).map_err(|e| Error::io("setting a file's size", e))?;
    let mut offset = 0;
    while offset < size {
        let data = match lseek64(source, signed(offset)?, Whence::SeekData) {
            Ok(data) => unsigned(data)?,
            // lseek(2): no data past this offset.
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(failed(errno)),
        };
        let end = unsigned(lseek64(source, signed(data)?, Whence::SeekHole).map_err(failed)?)?.min(size);
        copy_range(source, target, data, end)?;
        offset = end;
    }
    effects.done("copy");
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> Result<()> {
    let mut at = start;
    while at < end {
        let length = usize::try_from((end - at).min(COPY_CHUNK)).map_err(|_| Error::internal("a copy's length"))?;
        match sys::copy_file_range(source.as_fd(), target.as_fd(), signed(at)?, length) {
            // The source was cut short meanwhile.
            Ok(0) => return Err(Error::new(ErrorKind::Corrupt, "a file became shorter while it was copied")),
            Ok(copied) => at += copied as u64,
            Err(Errno::EINTR) => {}
            // copy_file_range(2): between some file systems it does not work at all.
            Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => {
                return copy_by_hand(source, target, at, end);
            }
            Err(errno) => return Err(io("copying a file".to_owned(), errno)),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, start: u64, end: u64) -> Result<()> {
    let mut buffer = vec![0u8; 1 << 20];
    let mut at = start;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let chunk = buffer.get_mut(..wanted).ok_or_else(|| Error::internal("a copy's buffer"))?;
        source.read_exact_at(chunk, at).map_err(|e| Error::io("reading a file to copy", e))?;
        target.write_all_at(chunk, at).map_err(|e| Error::io("writing a copy", e))?;
        at += wanted as u64;
    }
    Ok(())
}

/// Allocates all blocks of the range that have none, and makes the file that long; `Exhausted` when they are not there.
/// xfs wants as much free space as the range is long, also for what is allocated already.
pub fn allocate(file: &File, range: Range<u64>, effects: &Effects) -> Result<()> {
    let length = range.end.saturating_sub(range.start);
    loop {
        match fallocate(file, FallocateFlags::empty(), signed(range.start)?, signed(length)?) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(io(format!("allocating {length} bytes"), errno)),
        }
    }
    effects.done("allocate");
    Ok(())
}

/// Whether the kernel vouches that nobody but the caller has the file open at this moment: no process, and no loop device,
/// which holds its image open for as long as it has it. `false` says nothing. `file` is open for writing.
///
/// A write lease is granted only to who has the file open alone (fcntl(2), "Leases"); it is given back at once.
pub fn is_open_here_alone(file: &File) -> bool {
    sys::try_lease(file.as_fd()).unwrap_or(false)
}

/// Sets an extended attribute (`user.hawser...`).
pub fn set_xattr(file: &File, name: &str, value: &[u8], effects: &Effects) -> Result<()> {
    sys::set_xattr(file.as_fd(), &xattr_name(name)?, value)
        .map_err(|errno| io(format!("setting the attribute {name}"), errno))?;
    effects.done("set-xattr");
    Ok(())
}

/// `None` when the file has no such attribute or the file system has none at all.
pub fn get_xattr(file: &File, name: &str) -> Result<Option<Vec<u8>>> {
    match sys::get_xattr(file.as_fd(), &xattr_name(name)?, MAX_XATTR_BYTES) {
        Ok(value) => Ok(value),
        Err(Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(io(format!("reading the attribute {name}"), errno)),
    }
}

pub fn identity(file: &File) -> Result<FileIdentity> {
    let metadata = file.metadata().map_err(|e| Error::io("reading what a file is", e))?;
    let generation = match sys::generation(file.as_fd()) {
        Ok(generation) => generation,
        Err(Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::ENOSYS) => 0,
        Err(errno) => return Err(io("reading a file's generation".to_owned(), errno)),
    };
    Ok(FileIdentity { device: device_number(metadata.dev())?, inode: metadata.ino(), generation })
}

/// What the file occupies, in bytes. Blocks shared with clones are counted in each.
pub fn allocated_bytes(file: &File) -> Result<u64> {
    Ok(file.metadata().map_err(|e| Error::io("reading what a file occupies", e))?.blocks() * STAT_BLOCK)
}

/// Reads a device's number out of a `dev_t`.
pub(super) fn device_number(dev: u64) -> Result<DeviceNumber> {
    let part = |n: u64| u32::try_from(n).map_err(|_| Error::internal(format!("device number {dev:#x}")));
    Ok(DeviceNumber { major: part(nix::sys::stat::major(dev))?, minor: part(nix::sys::stat::minor(dev))? })
}

/// From f_type of statfs(2).
pub fn filesystem_of(dir: &Dir) -> Result<FileSystemKind> {
    let stat = fstatfs(dir).map_err(|errno| dir.failed("asking for the file system of", ".", errno))?;
    // The field is wider than the magic numbers, which have 32 bits.
    Ok(match u32::try_from(stat.filesystem_type().0 & 0xffff_ffff).unwrap_or(0) {
        0xef53 => FileSystemKind::Ext4,
        0x5846_5342 => FileSystemKind::Xfs,
        0x9123_683e => FileSystemKind::Btrfs,
        0x0102_1994 => FileSystemKind::Other("tmpfs"),
        0x794c_7630 => FileSystemKind::Other("overlay"),
        0xf2f5_2010 => FileSystemKind::Other("f2fs"),
        0x2fc1_2fc1 => FileSystemKind::Other("zfs"),
        0xca45_1a4e => FileSystemKind::Other("bcachefs"),
        0x6969 => FileSystemKind::Network("nfs"),
        0x517b | 0xfe53_4d42 | 0xff53_4d42 => FileSystemKind::Network("smb"),
        0x00c3_6400 => FileSystemKind::Network("ceph"),
        0x6573_5546 => FileSystemKind::Network("fuse"),
        0x0102_1997 => FileSystemKind::Network("9p"),
        0x0116_1970 => FileSystemKind::Network("gfs2"),
        0x7461_636f => FileSystemKind::Network("ocfs2"),
        0x0bd0_0bd0 => FileSystemKind::Network("lustre"),
        _ => FileSystemKind::Network("unknown"),
    })
}

/// Whether files here can be cloned, found out by cloning one of 4 KiB that never has a name.
pub fn probe_reflink(dir: &Dir) -> Result<bool> {
    let source = dir.unnamed_file()?;
    source.file().write_all_at(&[0x5a; 4096], 0).map_err(|e| Error::io("writing a file to clone", e))?;
    let target = dir.unnamed_file()?;
    match clone_file(source.file(), target.file(), &Effects::default()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}

pub fn space(dir: &Dir) -> Result<Space> {
    let stat = fstatvfs(dir).map_err(|errno| dir.failed("asking for the space of", ".", errno))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    Ok(Space {
        total_bytes: bytes(stat.blocks()),
        available_bytes: bytes(stat.blocks_available()),
        read_only: stat.flags().contains(FsFlags::ST_RDONLY),
    })
}

fn xattr_name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::internal(format!("attribute name {name:?}")))
}

fn signed(offset: u64) -> Result<i64> {
    i64::try_from(offset)
        .map_err(|_| Error::new(ErrorKind::OutOfRange, format!("{offset} bytes is more than a file can have")))
}

fn unsigned(offset: i64) -> Result<u64> {
    u64::try_from(offset).map_err(|_| Error::internal(format!("a negative file offset {offset}")))
}
