//! Space kept back for the day on which the pool is full.
//!
//! Thin volumes can fill a pool to the last block. A fence, a detach and even a deletion have to write a record first,
//! and must not fail then. So each directory of records has a file `.ballast` that is cut when a record finds no space,
//! and grows back when there is some.

use crate::Pool;
use host::file::{Access, Dir, allocate, allocated_bytes};
use volume::{Error, ErrorKind, Result};

const NAME: &str = ".ballast";
/// Hundreds of records; directories and metadata of the file system need some of it too.
const BYTES: u64 = 4 << 20;

impl Pool {
    /// Where there is room above the reserve; else later.
    pub(crate) fn restore_ballast(&self) -> Result<()> {
        for parent in [&self.volumes, &self.snapshots, &self.groups, &self.nodes] {
            if self.has_room()? {
                fill(parent)?;
            }
        }
        Ok(())
    }
}

/// Runs `work`, and once more with the ballast of `parent` given up when the pool is full.
pub(crate) fn with_ballast<T>(parent: &Dir, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    match work() {
        Err(error) if error.kind() == ErrorKind::Exhausted && release(parent)? => {
            tracing::error!(pool = %parent.path().display(), "the pool is full to the last block; free some space");
            work()
        }
        done => done,
    }
}

fn fill(parent: &Dir) -> Result<()> {
    parent.publish(NAME, b"")?;
    let file = parent.open_file(NAME, Access::ReadWrite)?;
    if allocated_bytes(&file)? < BYTES {
        allocate(&file, 0..BYTES, parent.effects())?;
        file.sync_all().map_err(|e| Error::io("making the ballast durable", e))?;
    }
    Ok(())
}

/// Whether there was any. Cut and not removed, because some file systems free what is removed later.
fn release(parent: &Dir) -> Result<bool> {
    if !parent.contains(NAME)? {
        return Ok(false);
    }
    let file = parent.open_file(NAME, Access::ReadWrite)?;
    let had_any = allocated_bytes(&file)? > 0;
    let cut = file.set_len(0).and_then(|()| file.sync_all());
    cut.map_err(|e| Error::io("giving up the ballast of a full pool", e))?;
    parent.effects().done("release-ballast");
    Ok(had_any)
}
