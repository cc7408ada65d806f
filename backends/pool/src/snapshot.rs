//! Snapshots: an image of the volume at one instant, in a directory of its own that shares nothing with the volume's
//! but blocks. They outlive it, and copies outlive them.
//!
//! A mounted file system is frozen meanwhile. Raw block has nothing to freeze: its snapshot is what the device would
//! hold after a power loss at that instant, as far as the kernel clones a file under direct I/O in one step.

use crate::delete::holder;
use crate::image::image_identity;
use crate::model::{SnapshotRecord, VolumeRecord};
use crate::record::RecordDir;
use crate::{Pool, now_ms};
use host::file::{Access, Dir, allocated_bytes};
use volume::{
    Error, ErrorKind, GroupSnapshotId, ImageIdentity, Page, PageRequest, Result, Snapshot, SnapshotFilter, SnapshotId,
    Snapshots, VolumeGuard, VolumeId, VolumeKind, VolumeName,
};

pub(crate) const IMAGE: &str = "image";

impl Snapshots for Pool {
    fn ensure_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &SnapshotId,
        name: &VolumeName,
        source: &VolumeId,
    ) -> Result<Snapshot> {
        guard.check(id.as_str())?;
        guard.check(source.as_str())?;
        self.check_reachable()?;
        if let Some(existing) = self.existing_snapshot(id, name, source)? {
            return Ok(existing);
        }
        let volume = RecordDir::<VolumeRecord>::find(&self.volumes, source.as_str())?
            .filter(|state| !state.record().deleting)
            .ok_or_else(|| Error::not_found(format!("there is no volume {source} to take a snapshot of")))?;
        let made = RecordDir::create(&self.snapshots, id.as_str(), |dir| self.take(dir, &volume, id, name))?;
        match made {
            Some(state) => Ok(to_snapshot(self, state.record(), None)),
            None => self
                .existing_snapshot(id, name, source)?
                .ok_or_else(|| Error::new(ErrorKind::Busy, format!("snapshot {id} came and went meanwhile; retry"))),
        }
    }

    fn find_snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>> {
        let found = self.find_snapshot_state(id)?;
        Ok(found.map(|(state, group)| to_snapshot(self, state.record(), group.as_ref())))
    }

    fn delete_snapshot(&self, guard: &VolumeGuard, id: &SnapshotId) -> Result<()> {
        guard.check(id.as_str())?;
        self.check_reachable()?;
        let marked = RecordDir::<SnapshotRecord>::change(&self.snapshots, id.as_str(), |state| {
            let record = state.record();
            Ok((!record.deleting).then(|| SnapshotRecord { deleting: true, ..record.clone() }))
        })?;
        match marked {
            None => match self.find_member(id)? {
                // CSI 1.13, DeleteSnapshot: INVALID_ARGUMENT for a snapshot that is part of a group.
                Some((group, _)) => Err(Error::invalid(format!(
                    "snapshot {id} is part of the group snapshot {group}, which is deleted as a whole; delete the group"
                ))),
                None => Ok(()),
            },
            Some(_) => self.discard(&self.snapshots, id.as_str()),
        }
    }

    fn list_snapshots(&self, filter: &SnapshotFilter, page: &PageRequest) -> Result<Page<Snapshot>> {
        self.check_reachable()?;
        let mut found = match &filter.id {
            Some(_) => Vec::new(),
            None => self.all_members()?,
        };
        let wanted = filter.id.as_ref().map_or_else(|| snapshots_in(&self.snapshots), |id| Ok(vec![id.clone()]))?;
        for id in wanted {
            match self.find_snapshot(&id) {
                Ok(snapshot) => found.extend(snapshot),
                // One damaged record hides no other; `Snapshot` has no field to tell of it.
                Err(error) => tracing::error!(snapshot = %id, error = error.chain(), "a snapshot cannot be read"),
            }
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found.retain(|snapshot| filter.source.as_ref().is_none_or(|source| *source == snapshot.source));
        Page::cut(found, page, |snapshot| snapshot.id.as_str(), |token| SnapshotId::parse(token).is_ok())
    }
}

impl Pool {
    /// A snapshot, be it one of its own or a member of a group; then also which group.
    pub(crate) fn find_snapshot_state(
        &self,
        id: &SnapshotId,
    ) -> Result<Option<(RecordDir<SnapshotRecord>, Option<GroupSnapshotId>)>> {
        match RecordDir::<SnapshotRecord>::find(&self.snapshots, id.as_str())? {
            Some(state) => Ok(Some((state, None)).filter(|(state, _)| !state.record().deleting)),
            None => Ok(self.find_member(id)?.map(|(group, state)| (state, Some(group)))),
        }
    }

    fn existing_snapshot(&self, id: &SnapshotId, name: &VolumeName, source: &VolumeId) -> Result<Option<Snapshot>> {
        let Some(state) = RecordDir::<SnapshotRecord>::find(&self.snapshots, id.as_str())? else { return Ok(None) };
        let record = state.record();
        if record.deleting {
            self.discard(&self.snapshots, id.as_str())?;
            return Ok(None);
        }
        if record.source != *source || record.name != *name {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("snapshot {:?} exists as {id} but is of volume {}", record.name.as_str(), record.source),
            ));
        }
        Ok(Some(to_snapshot(self, record, None)))
    }

    fn take(
        &self,
        dir: &Dir,
        volume: &RecordDir<VolumeRecord>,
        id: &SnapshotId,
        name: &VolumeName,
    ) -> Result<SnapshotRecord> {
        let of = volume.record();
        let identity = self.copyable(volume)?;
        let source = self.open_whole(volume.dir(), identity, of.size_bytes)?;
        let taken_now = if self.reflink { 0 } else { allocated_bytes(&source)? };
        self.check_room(taken_now, &format!("snapshot {:?}", name.as_str()))?;
        dir.publish(IMAGE, b"")?;
        let image = dir.open_file(IMAGE, Access::ReadWrite)?;
        self.copy_at_rest(of.kind, &source, &image)?;
        let now = RecordDir::<VolumeRecord>::find(&self.volumes, of.id.as_str())?;
        if now.is_none_or(|now| now.record().image.as_ref() != Some(identity)) {
            let message = format!("volume {} changed hands while the snapshot was taken; retry", of.id);
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let record = SnapshotRecord {
            id: id.clone(),
            name: name.clone(),
            source: of.id.clone(),
            size_bytes: of.size_bytes,
            kind: of.kind,
            created_at_ms: now_ms(),
            image: Some(image_identity(IMAGE, &image)?),
            deleting: false,
        };
        self.describe_snapshot(&image, &record)?;
        image.sync_all().map_err(|e| Error::io(format!("making snapshot {id} durable"), e))?;
        Ok(record)
    }

    /// The image of a volume that a snapshot or a clone can be taken of now.
    pub(crate) fn copyable<'a>(&self, state: &'a RecordDir<VolumeRecord>) -> Result<&'a ImageIdentity> {
        let record = state.record();
        if record.kind == VolumeKind::Directory {
            return Err(Error::invalid(format!(
                "volume {} is a directory that several nodes may be writing to; snapshots and clones are of volumes \
                 for one node",
                record.id
            )));
        }
        if !self.reflink && !self.sees_all_loops() && holder(record).is_some() {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "volume {} is in use and this pool's file system cannot clone files: a copy would mix several \
                     instants; detach the volume first",
                    record.id
                ),
            ));
        }
        record
            .image
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("the record of volume {} names no image", record.id)))
    }

    /// Opens an image that holds at least what its record says.
    pub(crate) fn open_whole(&self, dir: &Dir, image: &ImageIdentity, size_bytes: u64) -> Result<std::fs::File> {
        self.look_at_image(dir, image, size_bytes)?.map_err(|fault| fault.into_error(dir, image))
    }
}

pub(crate) fn to_snapshot(pool: &Pool, record: &SnapshotRecord, group: Option<&GroupSnapshotId>) -> Snapshot {
    Snapshot {
        id: record.id.clone(),
        name: record.name.clone(),
        source: record.source.clone(),
        size_bytes: record.size_bytes,
        kind: record.kind,
        created_at_ms: record.created_at_ms,
        ready: true,
        group: group.cloned(),
        accessible_topology: pool.own_topology(),
    }
}

/// The snapshots that have a directory in `parent`, in order.
pub(crate) fn snapshots_in(parent: &Dir) -> Result<Vec<SnapshotId>> {
    let names = parent.names()?;
    Ok(names.iter().filter_map(|name| SnapshotId::parse(name).ok()).collect())
}
