//! Per-volume locks. Contention is an answer (`Busy`, CSI's ABORTED), never a wait.

use crate::{Error, ErrorKind, Result};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The locks of one service. Ids of volumes and snapshots share the keyspace; their forms differ.
#[derive(Debug, Clone, Default)]
pub struct LockTable {
    held: Arc<Mutex<HashSet<String>>>,
}

/// Proof that the operations of its ids are this caller's alone, until it is dropped. Mutating functions take one by
/// reference. It is owned by the spawned task that does the work, so a client that goes away does not release it.
#[derive(Debug)]
pub struct VolumeGuard {
    table: LockTable,
    keys: Vec<String>,
}

impl LockTable {
    /// Locks all of `ids` or none. `Busy` names the first that another operation holds.
    pub fn try_lock<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Result<VolumeGuard> {
        let mut keys: Vec<String> = ids.into_iter().map(str::to_owned).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut held = self.held();
        if let Some(busy) = keys.iter().find(|key| held.contains(*key)) {
            return Err(Error::new(ErrorKind::Busy, format!("another operation on {busy} is under way; retry")));
        }
        held.extend(keys.iter().cloned());
        drop(held);
        Ok(VolumeGuard { table: self.clone(), keys })
    }

    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        // A panic cannot leave the set half changed: every section under the lock is a plain insert or remove.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VolumeGuard {
    /// `Internal` unless this guard holds `id`: catches a caller that locked the wrong volume.
    pub fn check(&self, id: &str) -> Result<()> {
        if self.keys.iter().any(|key| key == id) {
            Ok(())
        } else {
            Err(Error::internal(format!("the operation on {id} runs under a lock of {}", self.keys.join(", "))))
        }
    }
}

impl Drop for VolumeGuard {
    fn drop(&mut self) {
        let mut held = self.table.held();
        for key in &self.keys {
            held.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_none() {
        let table = LockTable::default();
        let first = table.try_lock(["a", "b", "a"]).unwrap();
        assert_eq!(table.try_lock(["c", "b"]).unwrap_err().kind(), ErrorKind::Busy);
        let other = table.try_lock(["c"]).unwrap();
        assert!(first.check("a").is_ok() && first.check("c").is_err());
        drop(first);
        assert!(table.try_lock(["a", "b"]).is_ok());
        drop(other);
    }
}
