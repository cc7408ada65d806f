//! Targets on disk: a fake host that serves a real orchestrator, or a suite that looks at its paths, makes and removes
//! the empty directory or file that a real one would. What is mounted there stays in memory.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;
use volume::{Error, Result};

pub(super) fn directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(format!("making the directory {}", path.display()), e))
}

pub(super) fn file(path: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("making the file {}", path.display()), e);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    OpenOptions::new().create(true).append(true).open(path).map(drop).map_err(failed)
}

/// Only what is empty, as the model did.
pub(super) fn remove(path: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("removing {}", path.display()), e);
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir(path),
        Ok(found) if found.is_file() && found.len() == 0 => fs::remove_file(path),
        Ok(_) => return Ok(()),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}
