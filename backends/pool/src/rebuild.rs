//! Records made again from the images, whose attribute `user.hawser` carries the record they were made with.
//!
//! When a pool is opened, a volume with no record at all is rebuilt if that is safe: no loop device of this kernel has
//! one of its images, and no other kernel can have one. A damaged record is rebuilt only when an administrator asks
//! for it, because a record that cannot be read may name a holder that still writes.

use crate::create::DATA;
use crate::image::{description, image_identity, length};
use crate::model::{GroupRecord, SnapshotRecord, VolumeRecord, image_epoch, orphan_epoch};
use crate::record::{Record, RecordDir, Swap, generation_of, is_record};
use crate::snapshot::{IMAGE, snapshots_in};
use crate::{Pool, now_ms};
use host::file::{Access, Dir, identity};
use std::fs::File;
use std::os::fd::AsFd;
use volume::{Epoch, Error, ErrorKind, GroupSnapshotId, Result, SnapshotId, VolumeGuard, VolumeId, VolumeKind};

/// Grants since the last fork left no trace in names, so the epoch skips more than there can have been.
const EPOCHS_SKIPPED: u64 = 1 << 32;

impl Pool {
    /// Makes the record of a volume again when it cannot be read; fine when it can. The caller vouches that no node uses the
    /// volume; what this kernel can see of that is checked.
    pub(crate) fn rebuild_damaged(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        guard.check(id.as_str())?;
        self.check_reachable()?;
        match RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str()) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            // A record that cannot be read just now, or by this driver, may be well and name a holder.
            Err(error) => return Err(error),
        }
        let dir = self.volumes.find_child(id.as_str())?;
        let dir = dir.ok_or_else(|| Error::not_found(format!("there is no volume {id} to rebuild")))?;
        self.rebuild(&dir, id)
    }

    /// Rebuilds what has lost all its records. What cannot be rebuilt stays as it is, is logged, and shows up as the
    /// volume's problem.
    pub(crate) fn rebuild_lost(&self) -> Result<()> {
        for id in self.volume_ids()? {
            if let Some(dir) = self.lost(&self.volumes, id.as_str())? {
                let done = if self.sees_all_loops() {
                    self.rebuild(&dir, &id)
                } else {
                    Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        "other machines may be using it; make sure that none does, then: hawser volume rebuild VOLUME",
                    ))
                };
                match done {
                    Ok(()) => tracing::warn!(volume = %id, "the volume had lost its record; it was rebuilt"),
                    Err(error) => tracing::error!(volume = %id, error = error.chain(), "the volume has no record"),
                }
            }
        }
        self.rebuild_lost_snapshots(&self.snapshots)?;
        for id in self.group_ids()? {
            let Some(dir) = self.groups.find_child(id.as_str())? else { continue };
            self.rebuild_lost_snapshots(&dir)?;
            if self.lost(&self.groups, id.as_str())?.is_some() {
                match self.rebuild_group(&dir, &id) {
                    Ok(count) => {
                        tracing::warn!(group = %id, members = count, "the group had lost its record; it was rebuilt");
                    }
                    Err(error) => tracing::error!(group = %id, error = error.chain(), "the group has no record"),
                }
            }
        }
        Ok(())
    }

    fn rebuild_lost_snapshots(&self, parent: &Dir) -> Result<()> {
        for id in snapshots_in(parent)? {
            if let Some(dir) = self.lost(parent, id.as_str())? {
                match rebuild_snapshot(parent, &dir, &id) {
                    Ok(()) => tracing::warn!(snapshot = %id, "the snapshot had lost its record; it was rebuilt"),
                    Err(error) => tracing::error!(snapshot = %id, error = error.chain(), "the snapshot has no record"),
                }
            }
        }
        Ok(())
    }

    /// How many members it has: all whose records are there.
    fn rebuild_group(&self, dir: &Dir, id: &GroupSnapshotId) -> Result<usize> {
        let mut found: Option<GroupRecord> = None;
        for member in snapshots_in(dir)? {
            let state = RecordDir::<SnapshotRecord>::find(dir, member.as_str())?;
            let Some(of) = state.map(|state| state.record().clone()) else { continue };
            let SnapshotRecord { name, created_at_ms, source, .. } = of;
            if GroupSnapshotId::of_name(&self.config.name, &name) != *id || SnapshotId::of_member(id, &source) != member
            {
                return Err(nothing(dir, "the group's own snapshots alone"));
            }
            let record = found.get_or_insert_with(|| GroupRecord {
                id: id.clone(),
                name,
                members: Vec::new(),
                created_at_ms,
                deleting: false,
            });
            record.members.push(member);
        }
        let record = found.ok_or_else(|| nothing(dir, "a member with a record"))?;
        let count = record.members.len();
        publish(&self.groups, id.as_str(), dir, record)?;
        Ok(count)
    }

    /// The directory, when there is something in it but no record.
    fn lost(&self, parent: &Dir, name: &str) -> Result<Option<Dir>> {
        let Some(dir) = parent.find_child(name)? else { return Ok(None) };
        let names = dir.names()?;
        let lost = !names.is_empty() && !names.iter().any(|name| is_record(name));
        Ok(lost.then_some(dir))
    }

    fn rebuild(&self, dir: &Dir, id: &VolumeId) -> Result<()> {
        let names = dir.names()?;
        self.refuse_attached(dir, id, &names)?;
        let (described, image) = if names.iter().any(|name| name == DATA) {
            let data = dir.child(DATA)?.as_fd().try_clone_to_owned().map(File::from);
            (description::<VolumeRecord>(&data.map_err(|e| Error::io("holding a directory open", e))?)?, None)
        } else {
            let (described, name, image) = newest_described(dir, &names)?;
            (Some(described), Some((name, image)))
        };
        let described = described.filter(|described| described.id == *id);
        let described = described.ok_or_else(|| nothing(dir, "a description of the volume on its data"))?;
        if (described.kind == VolumeKind::Directory) == image.is_some() {
            return Err(nothing(dir, "data of the kind that its description names"));
        }
        let highest = names.iter().filter_map(|name| image_epoch(name).or_else(|| orphan_epoch(name))).max();
        let epoch = Epoch(highest.unwrap_or_default().0.saturating_add(EPOCHS_SKIPPED));
        let (image, size_bytes) = match image {
            // The image grows before its record does: its length is the volume's size.
            Some((name, file)) => (Some(image_identity(name, &file)?), length(&file)?.max(described.size_bytes)),
            None => (None, described.size_bytes),
        };
        let record = VolumeRecord { size_bytes, epoch, image, staged: true, ..described };
        self.check_data(dir, &record)?;
        publish(&self.volumes, id.as_str(), dir, record)
    }

    fn refuse_attached(&self, dir: &Dir, id: &VolumeId, names: &[String]) -> Result<()> {
        let loops = self.host.loops()?;
        for name in names.iter().filter(|name| image_epoch(name).is_some()) {
            let image = identity(&dir.open_file(name, Access::Read)?)?;
            let same = |device: &&host::LoopDevice| {
                device.backing_device == image.device && device.backing_inode == image.inode
            };
            if let Some(device) = loops.iter().find(same) {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!(
                        "volume {id} is connected here as {}; unmount and detach that first",
                        device.path.display()
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn rebuild_snapshot(parent: &Dir, dir: &Dir, id: &SnapshotId) -> Result<()> {
    let image = dir.open_file(IMAGE, Access::ReadWrite)?;
    let described = description::<SnapshotRecord>(&image)?.filter(|described| described.id == *id);
    let described = described.ok_or_else(|| nothing(dir, "a description of the snapshot on its image"))?;
    let record = SnapshotRecord { image: Some(image_identity(IMAGE, &image)?), ..described };
    publish(parent, id.as_str(), dir, record)
}

/// The newest image that says what it is. A fork does so only once a record has named it, so what an interrupted fence
/// left behind is not taken for the volume.
fn newest_described<'a>(dir: &Dir, names: &'a [String]) -> Result<(VolumeRecord, &'a String, File)> {
    let mut images: Vec<_> = names.iter().filter_map(|name| Some((image_epoch(name)?, name))).collect();
    images.sort_unstable();
    for (_, name) in images.into_iter().rev() {
        let image = dir.open_file(name, Access::ReadWrite)?;
        if let Some(described) = description::<VolumeRecord>(&image)? {
            return Ok((described, name, image));
        }
    }
    Err(nothing(dir, "an image with a description of the volume"))
}

/// A generation above every one that a writer of the lost records could still be about to link.
fn publish<T: Record>(parent: &Dir, name: &str, dir: &Dir, record: T) -> Result<()> {
    let highest = dir.names()?.iter().filter_map(|name| generation_of(name)).max().unwrap_or_default();
    // The clock may have been set back since the record was last rebuilt.
    let generation = now_ms().max(highest.saturating_add(1));
    match RecordDir::restore(parent, name, dir, generation, record)? {
        Swap::Won => Ok(()),
        Swap::Lost => Err(Error::new(ErrorKind::Busy, format!("the record of {name} came back meanwhile; look again"))),
    }
}

fn nothing(dir: &Dir, what: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the record in {} cannot be made again: there is not {what}", dir.path().display()),
    )
}
