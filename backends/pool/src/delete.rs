//! Removing volumes and snapshots: a mark in the record, a rename into the trash, and then the blocks.
//!
//! The mark is a compare-and-swap like a grant, so an attach that runs elsewhere at the same time either comes first
//! and is seen, or loses. From the mark on the volume is gone for every reader, and whoever meets it next finishes.

use crate::Pool;
use crate::model::VolumeRecord;
use crate::record::RecordDir;
use host::file::Dir;
use volume::{Error, ErrorKind, Holder, Result, VolumeGuard, VolumeId};

impl Pool {
    pub(crate) fn delete(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        guard.check(id.as_str())?;
        self.check_reachable()?;
        let marked = RecordDir::<VolumeRecord>::change(&self.volumes, id.as_str(), |state| {
            let record = state.record();
            if record.deleting {
                return Ok(None);
            }
            if let Some(held) = holder(record) {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!("volume {id} is held by node {}; detach it there first", held.node),
                ));
            }
            self.refuse_connected(state)?;
            Ok(Some(VolumeRecord { deleting: true, ..record.clone() }))
        })?;
        match marked {
            None => Ok(()),
            Some(_) => self.discard(&self.volumes, id.as_str()),
        }
    }

    /// Moves `name` of `parent` into the trash and removes it there. What cannot be removed now is removed when the
    /// pool is opened next.
    pub(crate) fn discard(&self, parent: &Dir, name: &str) -> Result<()> {
        let trashed = uuid::Uuid::new_v4().simple().to_string();
        match parent.rename_noreplace(name, &self.trash, &trashed) {
            Ok(_) => {}
            // Another controller was faster.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        if let Err(error) = self.trash.remove_tree(&trashed) {
            tracing::warn!(error = error.chain(), name, "the trash is emptied when the pool is opened next");
        }
        if let Err(error) = self.restore_ballast() {
            tracing::warn!(error = error.chain(), "the ballast is made again when the pool is opened next");
        }
        Ok(())
    }

    /// A device of the current image without a grant is a leak; whoever uses it must hear of it first. What fenced
    /// nodes still have of orphans keeps nobody from deleting: those files only lose their names.
    fn refuse_connected(&self, state: &RecordDir<VolumeRecord>) -> Result<()> {
        let record = state.record();
        let Some(image) = &record.image else { return Ok(()) };
        // A volume whose image is gone can be deleted: that is how one gets rid of it.
        if !state.dir().contains(&image.name)? {
            return Ok(());
        }
        match self.loops_of(&self.open_image(state.dir(), image)?)?.first() {
            None => Ok(()),
            Some(device) => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("volume {} is still connected here as {}; unstage it first", record.id, device.path.display()),
            )),
        }
    }
}

/// Who may be writing to the volume: a holder that has not been cut off.
pub(crate) fn holder(record: &VolumeRecord) -> Option<&Holder> {
    record.attachment.as_ref().filter(|held| held.proof.is_none()).map(|held| &held.holder)
}
