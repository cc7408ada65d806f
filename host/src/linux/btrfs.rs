//! btrfs gives its files device numbers that belong to no device; what it is made of stands in /sys/fs/btrfs.

use super::os;
use crate::sys;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use volume::{DeviceNumber, Error, ErrorKind, Result};

const SYSFS: &str = "/sys/fs/btrfs";

/// The one device of the btrfs that `file` is on; `FailedPrecondition` when it has several.
pub(super) fn device_of(file: impl AsFd) -> Result<DeviceNumber> {
    let fsid = fsid_of(file)?;
    match devices(&Path::new(SYSFS).join(&fsid))?[..] {
        [device] => Ok(device),
        ref several => Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("btrfs {fsid} is made of {} devices; a volume has one", several.len()),
        )),
    }
}

/// The id, as /sys writes it, of the mounted btrfs that `device` belongs to.
pub(super) fn fsid_with(device: DeviceNumber) -> Result<Option<String>> {
    let entries = match std::fs::read_dir(SYSFS) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("listing {SYSFS}"), e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(format!("listing {SYSFS}"), e))?;
        // `features` and what else is no file system has no devices; a file system may vanish while it is looked at.
        if let Ok(devices) = devices(&entry.path())
            && devices.contains(&device)
        {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// The id of the btrfs that `file` is on.
pub(super) fn fsid_of(file: impl AsFd) -> Result<String> {
    let fsid = sys::inode::btrfs_fsid(file).map_err(|errno| os::error("asking btrfs for its id", errno))?;
    Ok(uuid::Uuid::from_bytes(fsid).to_string())
}

fn devices(file_system: &Path) -> Result<Vec<DeviceNumber>> {
    let directory = file_system.join("devices");
    let failed = |e| Error::io(format!("listing {}", directory.display()), e);
    let names: Vec<PathBuf> = std::fs::read_dir(&directory)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .map_err(failed)?;
    names
        .iter()
        .map(|path| {
            let line = os::read_line(&path.join("dev"))?;
            os::parse_device_number(&line)
                .ok_or_else(|| Error::internal(format!("{}/dev says {line:?}", path.display())))
        })
        .collect()
}
