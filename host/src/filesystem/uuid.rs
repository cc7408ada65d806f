//! A new identity for a copied file system.

use super::storage::Storage;
use super::{Found, btrfs, ext4, xfs};
use crate::command::{Command, run};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;
use volume::{Error, ErrorKind, FsType, Result};

/// Gives the unmounted file system on `path` the UUID; durable once the caller has synced the file. Fine when it has it.
///
/// ext4 and btrfs: in process, superblocks only. A dirty ext4 journal is replayed first, by e2fsck. xfs: by xfs_admin,
/// which refuses while the log is dirty: a copy of a frozen or crashed xfs is mounted once (`nouuid`) before.
/// `Unsupported` for an ext4 whose checksums depend on the UUID. `Corrupt` when the file system is not sound.
pub fn set_uuid(path: &Path, fs: FsType, uuid: [u8; 16]) -> Result<()> {
    let storage = Storage::open_writable(path)?;
    match fs {
        FsType::Ext4 => ext4::set_uuid(&storage, uuid),
        FsType::Btrfs => btrfs::set_uuid(&storage, uuid),
        FsType::Xfs => match xfs::find(&storage)? {
            Found::Sound { uuid: old, .. } if old == uuid => Ok(()),
            Found::Sound { errors: false, .. } => {
                let uuid = Uuid::from_bytes(uuid).to_string();
                let change = Command::new("xfs_admin", Duration::from_secs(60)).arg("-U").arg(uuid);
                run(&change.arg(storage.path_for_child())).map(drop)
            }
            found => Err(Error::new(ErrorKind::Corrupt, format!("{} holds no sound xfs: {found:?}", path.display()))),
        },
    }
}
