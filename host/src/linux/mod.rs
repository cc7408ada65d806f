//! The host as Linux is: each verb is a few system calls, verified on descriptors.

mod btrfs;
mod loops;
mod mount;
mod mountinfo;
mod options;
mod os;
mod paths;

use crate::{Effects, FileSystemStats, LoopDevice, LoopRequest, MountEntry, MountRequest, PathState};
use std::path::Path;
use volume::{ImageIdentity, Result};

/// The machine this process runs on. Stateless: everything is asked of the kernel each time.
#[derive(Clone)]
pub struct LinuxHost {
    effects: Effects,
}

impl LinuxHost {
    pub fn new(effects: Effects) -> Self {
        Self { effects }
    }
}
