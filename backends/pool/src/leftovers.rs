//! What crashes leave in a pool, and what of it may go.
//!
//! A volume, snapshot or template is built in a directory `.new-<random>` and renamed into place when it is whole and
//! durable. Its builder holds flock(2) on that directory as long as it lives, so whoever opens the pool can tell what
//! was left behind from what another controller is working on. Where directories have no flock (NFS), and for
//! temporary files, only what nobody has changed for a day is removed.

use crate::Pool;
use crate::model::{GroupRecord, SnapshotRecord, VolumeRecord};
use crate::record::{Record, RecordDir, is_entry, is_unfinished};
use host::file::{Access, Dir, is_temporary};
use std::fs::{File, TryLockError};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};
use volume::{Error, ErrorKind, Result};

const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

impl Pool {
    /// Removes what crashes left behind and finishes what they interrupted. Nothing here keeps the pool from being
    /// used: what fails is logged and tried again when the pool is opened next.
    pub(crate) fn clean(&self) -> Result<()> {
        for parent in [&self.dir, &self.volumes, &self.snapshots, &self.groups, &self.nodes, &self.templates] {
            remove_abandoned(parent)?;
        }
        for name in self.trash.names()? {
            logged("emptying the trash", self.trash.remove_tree(&name));
        }
        for name in self.volumes.names()?.iter().filter(|name| is_entry(name)) {
            logged("finishing a deletion", self.finish::<VolumeRecord>(&self.volumes, name, |record| record.deleting));
        }
        for name in self.snapshots.names()?.iter().filter(|name| is_entry(name)) {
            logged(
                "finishing a deletion",
                self.finish::<SnapshotRecord>(&self.snapshots, name, |record| record.deleting),
            );
        }
        for name in self.groups.names()?.iter().filter(|name| is_entry(name)) {
            logged("finishing a deletion", self.finish::<GroupRecord>(&self.groups, name, |record| record.deleting));
        }
        Ok(())
    }

    fn finish<T: Record>(&self, parent: &Dir, name: &str, is_deleting: impl Fn(&T) -> bool) -> Result<()> {
        if let Some(dir) = parent.find_child(name)? {
            remove_abandoned(&dir)?;
        }
        match RecordDir::<T>::find(parent, name) {
            Ok(Some(found)) if is_deleting(found.record()) => self.discard(parent, name),
            // A damaged record is shown where the volume is listed, and stops nothing here.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Marks the directory as being worked on until the last descriptor of it is closed, which a crash does too. `Busy`
/// when somebody who opens the pool just now is removing it.
pub(crate) fn claim(dir: &Dir) -> Result<()> {
    match descriptor(dir)?.try_lock() {
        // The lock belongs to the open directory, which `dir` shares with the descriptor that is dropped here.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            Err(Error::new(ErrorKind::Busy, format!("{} is being cleaned up; retry", dir.path().display())))
        }
    }
}

/// Removes what dead builders left in `parent`.
fn remove_abandoned(parent: &Dir) -> Result<()> {
    for name in parent.names()?.iter().filter(|name| is_unfinished(name)) {
        logged("removing what a crash left behind", remove_if_abandoned(parent, name));
    }
    Ok(())
}

fn remove_if_abandoned(parent: &Dir, name: &str) -> Result<()> {
    if is_temporary(name) {
        let old = is_old(&parent.open_file(name, Access::Read)?);
        return if old { parent.remove_file(name).map(drop) } else { Ok(()) };
    }
    let Some(dir) = parent.find_child(name)? else { return Ok(()) };
    let lock = descriptor(&dir)?;
    let abandoned = match lock.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => is_old(&lock),
    };
    if abandoned { parent.remove_tree(name) } else { Ok(()) }
}

fn is_old(file: &File) -> bool {
    let changed = file.metadata().and_then(|metadata| metadata.modified());
    changed.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > ABANDONED_AFTER))
}

fn descriptor(dir: &Dir) -> Result<File> {
    let fd = dir.as_fd().try_clone_to_owned();
    fd.map(File::from).map_err(|e| Error::io(format!("holding {} open", dir.path().display()), e))
}

fn logged(what: &str, done: Result<()>) {
    if let Err(error) = done
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(error = error.chain(), "{what} failed; it is tried again when the pool is opened next");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::Effects;

    #[test]
    fn what_is_being_built_stays_and_what_is_left_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let parent = Dir::open(scratch.path(), Effects::default()).unwrap();
        for name in [".new-left", ".new-alive", "volume"] {
            parent.ensure_child(name).unwrap().publish("image", b"data").unwrap();
        }
        let alive = parent.child(".new-alive").unwrap();
        claim(&alive).unwrap();
        assert_eq!(claim(&parent.child(".new-alive").unwrap()).unwrap_err().kind(), ErrorKind::Busy);
        remove_abandoned(&parent).unwrap();
        assert_eq!(parent.names().unwrap(), [".new-alive", "volume"]);
        drop(alive);
        // A program that another test starts shares the lock from its fork to its exec.
        for _ in 0..100 {
            remove_abandoned(&parent).unwrap();
            if parent.names().unwrap() == ["volume"] {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("left over are {:?}", parent.names().unwrap());
    }
}
