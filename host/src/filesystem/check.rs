//! Checks that look and never repair.

use super::probe::probe_storage;
use super::storage::Storage;
use crate::command::{Command, Output, run};
use crate::{FileSystemCheck, Probe};
use std::path::Path;
use std::time::Duration;
use volume::{Error, ErrorKind, FsType, Result};

const DEADLINE: Duration = Duration::from_secs(30 * 60);
/// How much of a checker's output goes into a message.
const SHOWN_BYTES: usize = 2000;

/// Checks the unmounted file system on `device` where its superblock's error flag asks for it, else says Clean at once.
/// Never changes anything. `Corrupt` when the superblock is not one of a sound `fs`.
pub fn check(device: &Path, fs: FsType) -> Result<FileSystemCheck> {
    let storage = Storage::open(device)?;
    match probe_storage(&storage)? {
        Probe::FileSystem { fs: found, errors: false, .. } if found == fs => Ok(FileSystemCheck::Clean),
        Probe::FileSystem { fs: found, errors: true, .. } if found == fs => check_fully(&storage, fs),
        found => Err(Error::new(ErrorKind::Corrupt, format!("{} holds no sound {fs}: {found:?}", device.display()))),
    }
}

pub(super) fn check_fully(storage: &Storage, fs: FsType) -> Result<FileSystemCheck> {
    let device = storage.path_for_child();
    let output = run(&match fs {
        // e2fsck(8): 4 is "errors left uncorrected", all there can be with -n; 8 is added where they made it give up.
        FsType::Ext4 => Command::new("e2fsck", DEADLINE).args(["-f", "-n"]).arg(device).accept(&[4, 12]),
        // xfs_repair(8): with -n, 1 is "corruption was detected"; 2 is a dirty log, and what is flagged for repair cannot
        // be mounted to replay it.
        FsType::Xfs => Command::new("xfs_repair", DEADLINE).arg("-n").arg(device).accept(&[1, 2]),
        FsType::Btrfs => Command::new("btrfs", DEADLINE).args(["check", "--readonly"]).arg(device).accept(&[1]),
    })?;
    Ok(if output.exit_code == 0 { FileSystemCheck::Clean } else { FileSystemCheck::NeedsRepair(said(&output)) })
}

/// The end of what the checker said, where it sums up.
fn said(output: &Output) -> String {
    let all = format!("{}\n{}", output.stdout.trim(), output.stderr.trim());
    let from = all.char_indices().map(|(at, _)| at).find(|at| all.len() - at <= SHOWN_BYTES).unwrap_or(0);
    all.get(from..).unwrap_or_default().trim().to_owned()
}
