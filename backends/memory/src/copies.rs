//! Snapshots.

use crate::state::{SnapshotRecord, State};
use crate::{MemoryBackend, Storage, now_ms};
use host::Host;
use volume::{
    Error, ErrorKind, GroupSnapshotId, Page, PageRequest, Result, Snapshot, SnapshotFilter, SnapshotId, Snapshots,
    VolumeGuard, VolumeId, VolumeName,
};

pub(crate) const FREEZE_MS: u64 = 5_000;

impl Snapshots for MemoryBackend {
    fn ensure_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &SnapshotId,
        name: &VolumeName,
        source: &VolumeId,
    ) -> Result<Snapshot> {
        guard.check(id.as_str())?;
        guard.check(source.as_str())?;
        let image = {
            let state = self.storage.state();
            if let Some(existing) = state.snapshots.get(id) {
                return same(&existing.snapshot, name, source);
            }
            let image = state.volume(source)?.image.clone();
            image.ok_or_else(|| Error::invalid(format!("volume {source} is a directory and has no snapshots")))?
        };
        let mut taken = Err(Error::internal(format!("snapshot {id} was not taken")));
        let mut take = || {
            taken = self.storage.take_snapshot(&mut self.storage.state(), id, name, source, None);
            Ok(())
        };
        // The file system that is mounted from the image stands still meanwhile.
        let loops = self.storage.host.loops()?;
        match loops.iter().find(|device| device.backing_inode == image.identity.inode) {
            Some(device) => self.storage.host.with_frozen(device.number, FREEZE_MS, &mut take)?,
            None => take()?,
        }
        taken
    }

    fn find_snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>> {
        Ok(self.storage.state().snapshots.get(id).map(|record| record.snapshot.clone()))
    }

    fn delete_snapshot(&self, guard: &VolumeGuard, id: &SnapshotId) -> Result<()> {
        guard.check(id.as_str())?;
        let mut state = self.storage.state();
        if let Some(group) = state.snapshots.get(id).and_then(|record| record.snapshot.group.as_ref()) {
            return Err(Error::invalid(format!("snapshot {id} is part of group {group}; delete the group")));
        }
        state.snapshots.remove(id);
        self.storage.host.remove_all(&self.storage.directory(id.as_str()));
        Ok(())
    }

    fn list_snapshots(&self, filter: &SnapshotFilter, page: &PageRequest) -> Result<Page<Snapshot>> {
        let is_wanted = |snapshot: &Snapshot| {
            filter.id.as_ref().is_none_or(|id| *id == snapshot.id)
                && filter.source.as_ref().is_none_or(|source| *source == snapshot.source)
        };
        let state = self.storage.state();
        let all = state.snapshots.values().map(|record| &record.snapshot).filter(|s| is_wanted(s)).cloned().collect();
        let is_own = |token: &str| SnapshotId::parse(token).is_ok_and(|id| id.backend() == self.storage.name.as_str());
        Page::cut(all, page, |snapshot| snapshot.id.as_str(), is_own)
    }
}

impl Storage {
    pub(crate) fn take_snapshot(
        &self,
        state: &mut State,
        id: &SnapshotId,
        name: &VolumeName,
        source: &VolumeId,
        group: Option<&GroupSnapshotId>,
    ) -> Result<Snapshot> {
        if let Some(existing) = state.snapshots.get(id) {
            return same(&existing.snapshot, name, source);
        }
        let record = state.volume(source)?;
        let image = record.image.as_ref().ok_or_else(|| Error::internal(format!("volume {source} lost its image")))?;
        let path = self.directory(id.as_str()).join("image");
        self.host.clone_image(&image.path, &path)?;
        let snapshot = Snapshot {
            id: id.clone(),
            name: name.clone(),
            source: source.clone(),
            size_bytes: record.volume.size_bytes,
            kind: record.volume.kind,
            created_at_ms: now_ms(),
            ready: true,
            group: group.cloned(),
            accessible_topology: Vec::new(),
        };
        state.snapshots.insert(id.clone(), SnapshotRecord { snapshot: snapshot.clone(), path });
        Ok(snapshot)
    }
}

fn same(existing: &Snapshot, name: &VolumeName, source: &VolumeId) -> Result<Snapshot> {
    if existing.source == *source && existing.name == *name {
        return Ok(existing.clone());
    }
    Err(Error::new(
        ErrorKind::AlreadyExists,
        format!("snapshot {:?} exists and is of volume {}, not of {source}", name.as_str(), existing.source),
    ))
}
