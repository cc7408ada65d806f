//! What the host's verbs take and give.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use volume::{DeviceNumber, FsType, ImageIdentity};

/// What is at a path, without following a final symlink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathState {
    Absent,
    Directory {
        is_empty: bool,
    },
    File {
        size_bytes: u64,
    },
    BlockDevice(DeviceNumber),
    Symlink,
    /// A socket, a character device, a FIFO.
    Other,
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    pub mounted_at: PathBuf,
    /// The directory (or file) inside the file system that forms the root of this mount.
    pub root: PathBuf,
    pub device: DeviceNumber,
    pub fs_type: String,
    pub source: String,
    /// Of this mount or of the whole file system.
    pub read_only: bool,
    /// Of this mount alone, whatever the file system is.
    pub own_read_only: bool,
    /// Superblock options, for comparing with what is asked for.
    pub options: BTreeSet<String>,
    /// `mnt_id`: grows with each mount.
    pub id: u64,
}

impl MountEntry {
    /// What the kernel's options say of the whole file system: mounted read-write, it is not written to any more.
    pub fn went_read_only(&self) -> bool {
        // ext4 stops at an error, with errors=remount-ro, and since Linux 6.15 says so by an option of its own.
        self.options.contains("emergency_ro") || (!self.own_read_only && self.options.contains("ro"))
    }
}

/// How a mounted file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountState {
    Sound,
    /// It was mounted read-write, and has become read-only because of an error.
    WentReadOnly,
    /// It answers nothing but input/output errors.
    ShutDown,
    /// ext4 has noted so many errors since it was last checked.
    Errors(u64),
}

#[derive(Debug, Clone)]
pub struct MountRequest<'a> {
    pub device: &'a Path,
    /// The device must have this number when it is mounted; a symlink or a reused name is refused.
    pub number: DeviceNumber,
    pub fs: FsType,
    pub target: &'a Path,
    pub read_only: bool,
    /// Each checked against the file system's allowlist and passed as a key of its own.
    pub flags: &'a [String],
}

/// What the first and last sectors of a device say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// All probed regions read as zeros.
    Blank,
    FileSystem {
        fs: FsType,
        uuid: [u8; 16],
        size_bytes: u64,
        /// The superblock's error flag, or what else asks for a check before mounting.
        errors: bool,
    },
    /// Something else is there (another file system, a partition table, LUKS, LVM, unknown data); its usual name.
    Other(String),
    /// It claims to be this file system, but its superblock does not verify.
    Damaged { fs: FsType, reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSystemCheck {
    Clean,
    /// Needs a repair that could lose data: never done by the driver. What the checker said.
    NeedsRepair(String),
}

/// Bytes and inodes, as statfs(2) gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystemStats {
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub total_inodes: u64,
    pub available_inodes: u64,
    pub used_inodes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
}

#[derive(Debug, Clone)]
pub struct LoopRequest<'a> {
    /// Path of the image; opened once without following symlinks, then checked against `identity`.
    pub image: &'a Path,
    pub identity: &'a ImageIdentity,
    /// At most 63 bytes in the loop's lo_file_name: `<volume id>@<epoch>`.
    pub label: &'a str,
    pub read_only: bool,
}

/// A configured loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    pub path: PathBuf,
    pub number: DeviceNumber,
    /// The backing file's device and inode (LOOP_GET_STATUS64).
    pub backing_device: DeviceNumber,
    pub backing_inode: u64,
    pub label: String,
    pub read_only: bool,
    pub size_limit_bytes: u64,
}

/// Evidence that a loop device was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    pub device: DeviceNumber,
    /// As read back after the fence.
    pub size_limit_bytes: u64,
    /// Whether a file system was frozen around it; else the raw procedure ran.
    pub froze: bool,
}

/// A cgroup in which I/O can be limited.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct IoCgroup {
    pub path: PathBuf,
    /// Its inode: another one of the same name has none of its limits.
    pub id: u64,
    pub version: CgroupVersion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CgroupVersion {
    /// A limit is of one cgroup alone, and of direct I/O and reads alone.
    V1,
    /// A limit is of all below it together.
    V2,
}
