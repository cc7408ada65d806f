//! Mutable parameters: a compare-and-swap of the record. The volume's node sees the change and applies it.

use crate::Pool;
use crate::attach::no_volume;
use crate::model::VolumeRecord;
use crate::record::RecordDir;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use volume::{Modify, MutableChange, Result, VolumeGuard, VolumeId};

/// Two changes within one tick of the clock that file systems use (10 ms at most) can leave the same time.
const SETTLES_AFTER: Duration = Duration::from_secs(1);

impl Modify for Pool {
    fn modify(&self, guard: &VolumeGuard, id: &VolumeId, change: &MutableChange) -> Result<()> {
        guard.check(id.as_str())?;
        self.check_reachable()?;
        let state = RecordDir::<VolumeRecord>::change(&self.volumes, id.as_str(), |state| {
            let record = state.record();
            if record.deleting {
                return Err(no_volume(id));
            }
            let mutable = change.apply_to(record.mutable);
            mutable.check_kind(record.kind)?;
            Ok((mutable != record.mutable).then(|| VolumeRecord { mutable, ..record.clone() }))
        })?;
        state.map(drop).ok_or_else(|| no_volume(id))
    }
}

impl Pool {
    /// When a name last came or went in the volume's directory: each generation of its record is one. One stat(2).
    pub(crate) fn mark_of(&self, id: &VolumeId) -> Result<Option<u64>> {
        let changed = self.volumes.changed_at(id.as_str())?.ok_or_else(|| no_volume(id))?;
        Ok(mark(changed, SystemTime::now()))
    }
}

/// `None` while another change could still get the same time.
fn mark(changed: SystemTime, now: SystemTime) -> Option<u64> {
    let age = now.duration_since(changed).ok()?;
    let since = changed.duration_since(UNIX_EPOCH).ok()?;
    (age >= SETTLES_AFTER).then(|| u64::try_from(since.as_nanos()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_given_once_the_time_has_settled() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ago = |ms| mark(now - Duration::from_millis(ms), now);
        assert_eq!((ago(0), ago(999)), (None, None));
        assert!(ago(1000).is_some() && ago(1000) != ago(1001));
        assert_eq!(mark(now + Duration::from_secs(5), now), None, "the clock of whoever wrote it is ahead");
    }
}
