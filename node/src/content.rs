//! What is on a connected device: whether it may be mounted, and whether its file system fills it.

use host::{FileSystemCheck, Host, MountRequest, Probe};
use std::path::Path;
use volume::{Error, ErrorKind, FsType, Result, VolumeId};

/// Less than this at a device's end is what a file system's own granularity leaves unused.
const GROW_FROM_BYTES: u64 = 1 << 20;

/// Makes sure that the device holds what the volume's record says, unharmed; the file system's size in bytes.
/// Whatever else is there is never formatted: that happens at creation alone, before anybody could write.
pub(crate) fn check_content(host: &dyn Host, id: &VolumeId, device: &Path, wanted: FsType) -> Result<u64> {
    let found = match host.probe(device)? {
        Probe::FileSystem { fs, size_bytes, errors, .. } if fs == wanted => {
            if errors {
                check_for_repair(host, id, device, wanted)?;
            }
            return Ok(size_bytes);
        }
        Probe::FileSystem { fs, .. } => format!("holds {fs}"),
        Probe::Blank => "reads as zeros".to_owned(),
        Probe::Other(what) => format!("holds {what}"),
        Probe::Damaged { fs, reason } => format!("has a {fs} superblock that does not verify ({reason})"),
    };
    Err(Error::new(
        ErrorKind::Corrupt,
        format!(
            "volume {id} should hold {wanted} but {found}; it was not mounted and nothing was written to it. \
             Look at its image (hawser volume inspect {id}); if its content is lost, restore it from a snapshot"
        ),
    ))
}

/// After a restore into a larger volume, or an expansion while nothing was mounted. It runs on the mounted file system
/// because mounting replays the journal, which growing offline would refuse; where the kernel forbids that (ext4
/// without CAP_SYS_RESOURCE) the now clean file system is grown between an unmount and another mount.
pub(crate) fn grow_if_smaller(host: &dyn Host, mount: &MountRequest<'_>, fs_bytes: u64) -> Result<()> {
    if host.device_size(mount.device)? < fs_bytes.saturating_add(GROW_FROM_BYTES) {
        return Ok(());
    }
    match host.grow_filesystem(mount.device, mount.fs, Some(mount.target)) {
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            host.unmount(mount.target)?;
            host.grow_filesystem(mount.device, mount.fs, None)?;
            host.mount(mount)
        }
        other => other,
    }
}

fn check_for_repair(host: &dyn Host, id: &VolumeId, device: &Path, fs: FsType) -> Result<()> {
    let command = match fs {
        FsType::Ext4 => "e2fsck -f",
        FsType::Xfs => "xfs_repair",
        FsType::Btrfs => "btrfs check",
    };
    match host.check_filesystem(device, fs)? {
        FileSystemCheck::Clean => Ok(()),
        FileSystemCheck::NeedsRepair(report) => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the {fs} of volume {id} is damaged and is not repaired automatically, since that can lose data; nothing was changed. \
                 Take a snapshot of the volume, then run '{command}' on its image (hawser volume inspect {id}) while it is unstaged. \
                 The checker said: {report}"
            ),
        )),
    }
}
