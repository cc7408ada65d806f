//! Who owns a volume's root directory.
//!
//! `uid`, `gid` and `mode` are for a volume's first use: they are applied for as long as root owns the directory, as a
//! new file system's does. That needs no note of "first", so a crash at any point cannot lose it, and an owner that a
//! workload set is left alone. A `volume_mount_group` belongs to the request and is applied each time.

use host::{Host, Owner};
use std::path::Path;
use volume::{AccessType, Parameters, Result, VolumeCapability};

/// Read, write and search for the group, and new entries belong to it (CSI 1.13, volume_mount_group).
const GROUP_BITS: u32 = 0o2070;

pub(crate) fn apply(
    host: &dyn Host,
    root: &Path,
    parameters: &Parameters,
    capability: &VolumeCapability,
) -> Result<()> {
    let group = match &capability.access_type {
        AccessType::Mount { mount_group, .. } => *mount_group,
        AccessType::Block => None,
    };
    if group.or(parameters.uid).or(parameters.gid).or(parameters.mode).is_none() {
        return Ok(());
    }
    let now = host.owner(root)?;
    let mut wanted = now;
    if now.uid == 0 && now.gid == 0 {
        wanted.uid = parameters.uid.unwrap_or(now.uid);
        wanted.gid = parameters.gid.unwrap_or(now.gid);
        wanted.mode = parameters.mode.unwrap_or(now.mode);
    }
    if let Some(group) = group {
        wanted.gid = group;
        wanted.mode |= GROUP_BITS;
    }
    if wanted == now {
        return Ok(());
    }
    let Owner { uid, gid, mode } = wanted;
    host.set_owner(root, Some(uid), Some(gid), Some(mode))
}
