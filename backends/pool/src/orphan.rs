//! What forks leave behind: the images of fenced holders, and forks that no record ever named.
//!
//! The number in an image's name only grows: a fork's is above the current image's and above the epoch. So a name tells
//! what a file is, even to somebody whose view of the record is old: lower than the current image's it was one once;
//! up to the epoch it is a fork whose swap can no longer succeed; above, a fencer may be about to record it.

use crate::Pool;
use crate::attach::no_volume;
use crate::image::description;
use crate::model::{VolumeRecord, image_epoch, orphan_epoch, orphan_name};
use crate::now_ms;
use crate::record::RecordDir;
use host::file::{Access, Dir, allocated_bytes, identity};
use std::os::unix::fs::MetadataExt;
use volume::{Error, ErrorKind, ImageIdentity, Orphan, Result, VolumeId};

/// What an `image.*` file is to a record.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    Current,
    /// A fenced holder's.
    Former,
    /// Of a fence that was cut short or lost.
    Abandoned,
    /// Perhaps of a fence that is under way.
    Unknown,
}

impl Pool {
    /// Tidies up after a swap to a fork. Whatever fails is done by a later fence or look at orphans.
    pub(crate) fn settle_logged(&self, state: &RecordDir<VolumeRecord>) {
        if let Err(error) = self.settle(state) {
            tracing::warn!(volume = %state.record().id, error = error.chain(), "tidying up after a fence; done later");
        }
    }

    /// Describes the current image for a rebuild, names former ones orphans, removes abandoned forks.
    pub(crate) fn settle(&self, state: &RecordDir<VolumeRecord>) -> Result<()> {
        let (dir, record) = (state.dir(), state.record());
        let Some(current) = &record.image else { return Ok(()) };
        for name in dir.names()? {
            match role(&name, current, record) {
                None | Some(Role::Unknown) => {}
                Some(Role::Current) => self.describe_current(state)?,
                Some(Role::Former) => {
                    if let Some(orphan) = orphan_name(&name) {
                        match dir.rename_noreplace(&name, dir, &orphan) {
                            Ok(_) => {}
                            // Another one tidies up too.
                            Err(error) if error.kind() == ErrorKind::NotFound => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                Some(Role::Abandoned) => {
                    dir.remove_file(&name)?;
                }
            }
        }
        Ok(())
    }

    /// Writes on the current image what it is, where that is missing: on a fork. Until then a rebuild takes the image
    /// that it was made from for the volume, so nobody may write to it before.
    pub(crate) fn describe_current(&self, state: &RecordDir<VolumeRecord>) -> Result<()> {
        let (dir, record) = (state.dir(), state.record());
        let Some(current) = &record.image else { return Ok(()) };
        let file = self.open_image(dir, current)?;
        if description::<VolumeRecord>(&file)?.is_some() {
            return Ok(());
        }
        // That the record names this image has to last at least as long as the description does.
        dir.sync()?;
        let free = VolumeRecord { attachment: None, former: Vec::new(), ..record.clone() };
        self.describe_volume(&file, &free)?;
        file.sync_all().map_err(|e| Error::io("making an image's description durable", e))
    }

    pub(crate) fn all_orphans(&self) -> Result<Vec<Orphan>> {
        self.check_reachable()?;
        let mut orphans = Vec::new();
        for id in self.volume_ids()? {
            match self.orphans_of(&id) {
                Ok(more) => orphans.extend(more),
                Err(error) => tracing::warn!(volume = %id, error = error.chain(), "its orphans cannot be listed"),
            }
        }
        Ok(orphans)
    }

    /// Those older than the keeping time, or all of one volume. One that a loop device has stays.
    pub(crate) fn remove_old_orphans(&self, volume: Option<&VolumeId>) -> Result<Vec<Orphan>> {
        self.check_reachable()?;
        let oldest_kept = now_ms().saturating_sub(self.config.orphan_keep_ms);
        let mut removed = Vec::new();
        let ids = match volume {
            Some(id) => vec![id.clone()],
            None => self.volume_ids()?,
        };
        for id in ids {
            let Some(state) = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())? else {
                if volume.is_some() {
                    return Err(no_volume(&id));
                }
                continue;
            };
            self.settle(&state)?;
            for orphan in self.orphans_of(&id)? {
                let wanted = volume.is_some() || orphan.created_at_ms < oldest_kept;
                if wanted && self.remove_orphan(state.dir(), state.record(), &orphan)? {
                    removed.push(orphan);
                }
            }
        }
        Ok(removed)
    }

    /// Whether it went.
    fn remove_orphan(&self, dir: &Dir, record: &VolumeRecord, orphan: &Orphan) -> Result<bool> {
        let is_current = record.image.as_ref().is_some_and(|current| current.inode == orphan.image.inode);
        let in_use = self.loops_of_image(dir, &orphan.image)?;
        if is_current || orphan_epoch(&orphan.image.name).is_none() {
            return Ok(false);
        }
        if let Some(device) = in_use.first() {
            tracing::info!(
                volume = %orphan.volume, orphan = %orphan.image.name, device = %device.path.display(),
                "an orphan stays: a fenced node still has it"
            );
            return Ok(false);
        }
        dir.remove_file(&orphan.image.name)
    }

    fn orphans_of(&self, id: &VolumeId) -> Result<Vec<Orphan>> {
        let Some(state) = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())? else { return Ok(Vec::new()) };
        let (dir, record) = (state.dir(), state.record());
        let Some(current) = &record.image else { return Ok(Vec::new()) };
        let mut orphans = Vec::new();
        for name in dir.names()? {
            let is_former = role(&name, current, record) == Some(Role::Former);
            if !is_former && orphan_epoch(&name).is_none() {
                continue;
            }
            match describe(dir, id, &name) {
                Ok(orphan) => orphans.push(orphan),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(orphans)
    }
}

/// `None` for what is no image.
fn role(name: &str, current: &ImageIdentity, record: &VolumeRecord) -> Option<Role> {
    let number = image_epoch(name)?;
    let of_current = image_epoch(&current.name)?;
    Some(if name == current.name {
        Role::Current
    } else if number < of_current {
        Role::Former
    } else if number <= of_current.max(record.epoch) {
        Role::Abandoned
    } else {
        Role::Unknown
    })
}

fn describe(dir: &Dir, id: &VolumeId, name: &str) -> Result<Orphan> {
    let file = dir.open_file(name, Access::Read)?;
    let found = identity(&file)?;
    let metadata = file.metadata().map_err(|e| Error::io(format!("reading what {name} is"), e))?;
    Ok(Orphan {
        volume: id.clone(),
        image: ImageIdentity { name: name.to_owned(), inode: found.inode, generation: found.generation },
        allocated_bytes: allocated_bytes(&file)?,
        // Its last change is the rename that made it one.
        created_at_ms: u64::try_from(metadata.ctime()).unwrap_or(0) * 1000,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{fork_name, image_name};
    use crate::testing::record;
    use volume::Epoch;

    #[test]
    fn an_old_view_never_takes_a_later_image_for_garbage() {
        let mut record = record("v");
        record.epoch = Epoch(5);
        let current = ImageIdentity { name: fork_name(Epoch(3)), inode: 1, generation: 0 };
        let of = |name: &str| role(name, &current, &record);
        assert_eq!(of(&current.name), Some(Role::Current));
        assert_eq!(of(&image_name(Epoch(0))), Some(Role::Former));
        assert_eq!(of(&fork_name(Epoch(3))), Some(Role::Abandoned));
        assert_eq!(of(&fork_name(Epoch(5))), Some(Role::Abandoned));
        // What a fence of this state, or of any later one, makes.
        assert_eq!(of(&fork_name(Epoch(6))), Some(Role::Unknown));
        assert_eq!(of("orphan.0000000000000000"), None);
    }
}
