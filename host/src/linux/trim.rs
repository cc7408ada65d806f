//! Discarding the free space of a file system, wherever it is mounted.

use super::{freeze, os};
use crate::{Effects, sys};
use nix::errno::Errno;
use volume::{DeviceNumber, Error, ErrorKind, Result};

pub(super) fn trim(effects: &Effects, device: DeviceNumber) -> Result<Option<u64>> {
    let Some(mounted) = freeze::find_mounted(device)? else { return Ok(None) };
    let what = || format!("trimming the file system on device {}:{}", device.major, device.minor);
    // What was deleted counts as free once the journal has it.
    nix::unistd::syncfs(&mounted).map_err(|errno| os::error(what(), errno))?;
    match sys::inode::trim(&mounted) {
        Ok(bytes) => {
            effects.done("trim");
            Ok(Some(bytes))
        }
        Err(errno @ (Errno::EOPNOTSUPP | Errno::ENOTTY)) => Err(Error::with_source(
            ErrorKind::Unsupported,
            format!("{}: the file system or the pool below it cannot discard", what()),
            std::io::Error::from(errno),
        )),
        Err(errno) => Err(os::error(what(), errno)),
    }
}
