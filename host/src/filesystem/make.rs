//! Making file systems, on image files alone and only where nothing is.

use super::probe::probe_storage;
use super::storage::Storage;
use crate::Probe;
use crate::command::{Command, run};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;
use volume::{Error, ErrorKind, FsType, Result};

const DEADLINE: Duration = Duration::from_secs(300);

/// The smallest size that [`make`] takes, in bytes.
pub fn minimum_size(fs: FsType) -> u64 {
    const MIB: u64 = 1 << 20;
    match fs {
        // mke2fs leaves the journal out below 2048 blocks, and this is twice that, so that half is free.
        FsType::Ext4 => 16 * MIB,
        // mkfs.xfs(8) since 5.19.
        FsType::Xfs => 300 * MIB,
        // mkfs.btrfs asks for 109 MiB with duplicated metadata.
        FsType::Btrfs => 128 * MIB,
    }
}

/// Makes a file system on the regular file `image`, which must be blank; a shorter file is made `size_bytes` long.
/// Durable when it returns.
///
/// `OutOfRange` below [`minimum_size`], `FailedPrecondition` when anything is in the file or it is longer. What is
/// formatted is the very file that was looked at: the program gets the open descriptor.
pub fn make(image: &Path, fs: FsType, size_bytes: u64, uuid: [u8; 16]) -> Result<()> {
    let path = image.display();
    if size_bytes < minimum_size(fs) {
        return Err(Error::new(
            ErrorKind::OutOfRange,
            format!("{size_bytes} bytes are too few for {fs}; the least is {}", minimum_size(fs)),
        ));
    }
    let mut storage = Storage::open_writable(image)?;
    if !storage.is_regular() {
        return Err(Error::invalid(format!("{path} is not a regular file; file systems are made on images only")));
    }
    match probe_storage(&storage)? {
        Probe::Blank => {}
        found => {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("{path} is not blank ({found:?}), so no {fs} is made on it"),
            ));
        }
    }
    if storage.size_bytes() > size_bytes {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("{path} has {} bytes, more than the {size_bytes} of the {fs} to make", storage.size_bytes()),
        ));
    }
    storage.extend_to(size_bytes)?;
    run(&mkfs(fs, Uuid::from_bytes(uuid)).arg(storage.path_for_child()))?;
    storage.sync()?;
    match probe_storage(&storage)? {
        Probe::FileSystem { fs: made, uuid: has, errors: false, .. } if made == fs && has == uuid => Ok(()),
        found => Err(Error::internal(format!("the {fs} just made on {path} does not verify: {found:?}"))),
    }
}

/// Blocks and sectors of 4096 bytes: loop devices with direct I/O may have that logical block size, and neither ext4
/// with 1024-byte blocks nor xfs with 512-byte sectors mounts there. Never a force flag: the programs refuse by themselves
/// what is not blank.
fn mkfs(fs: FsType, uuid: Uuid) -> Command {
    match fs {
        // The features are all named, so that no mke2fs.conf decides. metadata_csum_seed lets the UUID change without
        // rewriting checksums. `-e remount-ro`: no image makes the host panic.
        FsType::Ext4 => Command::new("mkfs.ext4", DEADLINE)
            .args(["-q", "-b", "4096", "-I", "256", "-m", "0", "-e", "remount-ro", "-O"])
            .arg(
                "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                 large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed",
            )
            .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-U"])
            .arg(uuid.to_string()),
        // `-K`: the image is sparse already.
        FsType::Xfs => Command::new("mkfs.xfs", DEADLINE)
            .args(["-q", "-K", "-s", "size=4096", "-b", "size=4096", "-m"])
            .arg(format!("crc=1,finobt=1,reflink=1,bigtime=1,inobtcount=1,uuid={uuid}")),
        FsType::Btrfs => Command::new("mkfs.btrfs", DEADLINE)
            .args(["-q", "-K", "-s", "4096", "-n", "16384", "-m", "dup", "-d", "single", "-U"])
            .arg(uuid.to_string()),
    }
}
