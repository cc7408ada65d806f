//! The node's state directory, which belongs to one process at a time: a second one would take what the first has just
//! begun for what a crash left behind, and undo it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;
use volume::{Error, ErrorKind, Result};

const LOCK_FILE: &str = "lock";
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);
/// Of what a lock file says of its holder.
const MAX_HOLDER_BYTES: u64 = 512;

/// Ours until it is dropped, or the process ends however it does.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Makes the directory, for this user alone, and takes it; waits a moment for a process that is just ending.
/// `FailedPrecondition` names the process that has it.
pub fn claim(directory: &Path, endpoint: &str) -> Result<StateLock> {
    let shown = directory.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| Error::io(format!("cannot make the state directory {shown}"), error))?;
    let failed = |error| Error::io(format!("cannot lock the state directory {shown}"), error);
    let path = directory.join(LOCK_FILE);
    let options = OpenOptions::new().read(true).write(true).create(true).mode(0o600).clone();
    let mut file = options.open(&path).map_err(failed)?;
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).map_err(failed)?;
                write!(file, "pid {}, endpoint {endpoint:?}", std::process::id()).map_err(failed)?;
                return Ok(StateLock { _file: file });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN_TRIES),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    let mut holder = Vec::new();
    file.take(MAX_HOLDER_BYTES).read_to_end(&mut holder).map_err(failed)?;
    let holder = String::from_utf8_lossy(&holder);
    Err(Error::new(
        ErrorKind::FailedPrecondition,
        format!(
            "the state directory {shown} is in use by another hawser ({holder}); stop that one first, or give this one a \
             state_dir and a node_id of its own"
        ),
    ))
}
