//! Growing a file system to the size of its device.

use super::check::check_fully;
use super::ext4::{self, Superblock};
use super::storage::Storage;
use crate::FileSystemCheck;
use crate::command::{Command, run};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;
use volume::{Error, ErrorKind, FsType, Result};

const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Grows the file system on `device`, mounted at `mounted_at` or unmounted, to the device's size; fine when it has it.
///
/// `Unsupported` for an unmounted xfs or btrfs, which grow only while mounted. `PermissionDenied` for a mounted ext4
/// without CAP_SYS_RESOURCE. `FailedPrecondition` for an unmounted ext4 that a check finds damaged: it is not repaired.
pub fn grow(device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<()> {
    let storage = Storage::open(device)?;
    match (fs, mounted_at) {
        (FsType::Ext4, Some(mounted_at)) => ext4_mounted(&storage, mounted_at),
        (FsType::Ext4, None) => ext4_unmounted(&storage),
        (FsType::Xfs, Some(mounted_at)) => xfs_mounted(&storage, mounted_at),
        (FsType::Btrfs, Some(mounted_at)) => btrfs_mounted(&storage, mounted_at),
        (FsType::Xfs | FsType::Btrfs, None) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the {fs} on {} grows only while it is mounted", device.display()),
        )),
    }
}

mod ioctls {
    nix::ioctl_write_ptr!(ext4_resize_fs, b'f', 16, u64);
    nix::ioctl_read!(xfs_geometry, b'X', 100, XfsGeometry);
    nix::ioctl_write_ptr!(xfs_grow_data, b'X', 110, XfsGrowData);
    nix::ioctl_write_ptr!(btrfs_resize, 0x94, 3, BtrfsVolumeArguments);

    /// struct xfs_fsop_geom_v1 (fs/xfs/libxfs/xfs_fs.h).
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct XfsGeometry {
        pub(super) block_size: u32,
        pub(super) rt_extent_size: u32,
        pub(super) ag_blocks: u32,
        pub(super) ag_count: u32,
        pub(super) log_blocks: u32,
        pub(super) sector_size: u32,
        pub(super) inode_size: u32,
        pub(super) inodes_max_percent: u32,
        pub(super) data_blocks: u64,
        pub(super) rest: [u64; 9],
    }

    /// struct xfs_growfs_data.
    #[repr(C)]
    pub(super) struct XfsGrowData {
        pub(super) new_blocks: u64,
        pub(super) inodes_max_percent: u32,
    }

    /// struct btrfs_ioctl_vol_args.
    #[repr(C)]
    pub(super) struct BtrfsVolumeArguments {
        pub(super) fd: i64,
        pub(super) name: [u8; 4088],
    }
}

/// ext4 keeps its superblock in the device's own cache, so what is read here is what the kernel works with.
fn ext4_blocks(storage: &Storage) -> Result<(Superblock, u64)> {
    let superblock = ext4::read_sound(storage)?;
    let wanted = storage.size_bytes() / superblock.block_size();
    Ok((superblock, wanted))
}

fn ext4_mounted(storage: &Storage, mounted_at: &Path) -> Result<()> {
    let (superblock, wanted) = ext4_blocks(storage)?;
    if superblock.blocks() >= wanted {
        return Ok(());
    }
    let root = open_root(mounted_at)?;
    // SAFETY: an open descriptor and a pointer to a u64 that outlives the call.
    match unsafe { ioctls::ext4_resize_fs(root.as_raw_fd(), &wanted) } {
        Ok(_) => {}
        Err(Errno::EPERM) => {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!(
                    "the kernel grows the ext4 mounted at {} only for a process with CAP_SYS_RESOURCE; give the driver \
                     that capability, or unmount the volume everywhere: it is grown before its next mount",
                    mounted_at.display()
                ),
            ));
        }
        Err(errno) => return Err(grow_failed(mounted_at, errno)),
    }
    let (superblock, wanted) = ext4_blocks(storage)?;
    if superblock.blocks() >= wanted {
        return Ok(());
    }
    let (blocks, at) = (superblock.blocks(), mounted_at.display());
    Err(Error::internal(format!("the ext4 mounted at {at} has {blocks} blocks after growing to {wanted}")))
}

/// resize2fs(8) wants a full check of what was mounted since the last one. `e2fsck -p -f` would do, but it also repairs.
/// So the journal is replayed as a mount would do it, a check that changes nothing must find nothing, and resize2fs is
/// told that it need not ask.
fn ext4_unmounted(storage: &Storage) -> Result<()> {
    let (superblock, wanted) = ext4_blocks(storage)?;
    if superblock.blocks() >= wanted {
        return Ok(());
    }
    let refuse = |what: &str| {
        Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("the ext4 on {} is not grown: {what}", storage.path().display()),
        ))
    };
    let flagged = "its error flag is set; check it with e2fsck -n, and repair it by hand";
    if superblock.wants_check() {
        return refuse(flagged);
    }
    let mut resize = Command::new("resize2fs", DEADLINE);
    if !superblock.is_checked_since_mounted() {
        if superblock.needs_recovery() {
            ext4::replay_journal(storage)?;
            // An error that the kernel noted in the journal stands in the superblock now.
            if ext4::read_sound(storage)?.wants_check() {
                return refuse(flagged);
            }
        }
        if let FileSystemCheck::NeedsRepair(said) = check_fully(storage, FsType::Ext4)? {
            return refuse(&format!("e2fsck -n finds it damaged, repair it by hand: {said}"));
        }
        resize = resize.arg("-f");
    }
    run(&resize.arg(storage.path_for_child()))?;
    let (superblock, wanted) = ext4_blocks(storage)?;
    // resize2fs leaves a rest off that is too short for a block group's own tables.
    if wanted.saturating_sub(superblock.blocks()) > superblock.blocks_per_group() {
        let (blocks, path) = (superblock.blocks(), storage.path().display());
        return Err(Error::internal(format!("the ext4 on {path} has {blocks} blocks after growing to {wanted}")));
    }
    Ok(())
}

/// Asks the kernel for the size: xfs does not use the device's cache, so its superblock may read stale there.
fn xfs_mounted(storage: &Storage, mounted_at: &Path) -> Result<()> {
    let root = open_root(mounted_at)?;
    let mut geometry = ioctls::XfsGeometry::default();
    // SAFETY: an open descriptor and a pointer to a structure of the kernel's layout that outlives the call.
    unsafe { ioctls::xfs_geometry(root.as_raw_fd(), &mut geometry) }.map_err(|errno| grow_failed(mounted_at, errno))?;
    let new_blocks = storage.size_bytes() / u64::from(geometry.block_size.max(1));
    if new_blocks <= geometry.data_blocks {
        return Ok(());
    }
    let grow = ioctls::XfsGrowData { new_blocks, inodes_max_percent: geometry.inodes_max_percent };
    // SAFETY: as above.
    unsafe { ioctls::xfs_grow_data(root.as_raw_fd(), &grow) }.map_err(|errno| grow_failed(mounted_at, errno))?;
    Ok(())
}

fn btrfs_mounted(storage: &Storage, mounted_at: &Path) -> Result<()> {
    let root = open_root(mounted_at)?;
    let mut arguments = ioctls::BtrfsVolumeArguments { fd: 0, name: [0; 4088] };
    for (place, byte) in arguments.name.iter_mut().zip(b"max") {
        *place = *byte;
    }
    // SAFETY: as above; the name ends with a zero.
    match unsafe { ioctls::btrfs_resize(root.as_raw_fd(), &arguments) } {
        Ok(0) => Ok(()),
        // BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS
        Ok(_) => Err(Error::new(
            ErrorKind::Busy,
            format!("another operation on the btrfs on {} is under way; retry", storage.path().display()),
        )),
        Err(errno) => Err(grow_failed(mounted_at, errno)),
    }
}

fn open_root(mounted_at: &Path) -> Result<File> {
    File::open(mounted_at).map_err(|e| Error::io(format!("open {}", mounted_at.display()), e))
}

fn grow_failed(mounted_at: &Path, errno: Errno) -> Error {
    let message = format!("grow the file system mounted at {}", mounted_at.display());
    match errno {
        Errno::EBUSY | Errno::EAGAIN => Error::with_source(ErrorKind::Busy, message, errno),
        Errno::EROFS => Error::with_source(ErrorKind::FailedPrecondition, message, errno),
        Errno::EPERM => Error::with_source(ErrorKind::PermissionDenied, message, errno),
        errno => Error::io(message, errno.into()),
    }
}
