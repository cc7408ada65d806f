//! Group snapshots: `groups/<id>/` holds one record and, in a directory for each member, what a snapshot's own directory
//! would hold. It is built where nobody sees it and gets its name in one rename, so all members are there or none; the
//! mark in its record takes all of them away at once. For find, list and restore a member is a snapshot like others.

use crate::Pool;
use crate::model::{GroupRecord, SnapshotRecord};
use crate::record::RecordDir;
use crate::snapshot::to_snapshot;
use host::file::Dir;
use volume::{
    Error, ErrorKind, GroupSnapshot, GroupSnapshotId, GroupSnapshots, Result, Snapshot, SnapshotId, VolumeGuard,
    VolumeId, VolumeName,
};

impl GroupSnapshots for Pool {
    fn ensure_group_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &GroupSnapshotId,
        name: &VolumeName,
        sources: &[VolumeId],
    ) -> Result<GroupSnapshot> {
        guard.check(id.as_str())?;
        let sources = distinct(sources)?;
        let mut members: Vec<SnapshotId> = sources.iter().map(|source| SnapshotId::of_member(id, source)).collect();
        members.sort();
        let ids = sources.iter().map(|source| source.as_str()).chain(members.iter().map(SnapshotId::as_str));
        ids.into_iter().try_for_each(|id| guard.check(id))?;
        self.check_reachable()?;
        if let Some(existing) = self.existing_group(id, name, &members)? {
            return Ok(existing);
        }
        let sources = self.sources_at_rest(id, &sources)?;
        let made = RecordDir::create(&self.groups, id.as_str(), |dir| self.take_group(dir, id, name, &sources))?;
        match made {
            Some(state) => self.to_group(&state),
            None => self
                .existing_group(id, name, &members)?
                .ok_or_else(|| Error::new(ErrorKind::Busy, format!("group {id} came and went meanwhile; retry"))),
        }
    }

    fn find_group_snapshot(&self, id: &GroupSnapshotId) -> Result<Option<GroupSnapshot>> {
        self.check_reachable()?;
        self.find_group(id)?.map(|state| self.to_group(&state)).transpose()
    }

    fn delete_group_snapshot(&self, guard: &VolumeGuard, id: &GroupSnapshotId) -> Result<()> {
        guard.check(id.as_str())?;
        self.check_reachable()?;
        let marked = RecordDir::<GroupRecord>::change(&self.groups, id.as_str(), |state| {
            let record = state.record();
            Ok((!record.deleting).then(|| GroupRecord { deleting: true, ..record.clone() }))
        })?;
        match marked {
            None => Ok(()),
            Some(_) => self.discard(&self.groups, id.as_str()),
        }
    }
}

impl Pool {
    /// The group that a snapshot is a member of, and the snapshot.
    pub(crate) fn find_member(&self, id: &SnapshotId) -> Result<Option<(GroupSnapshotId, RecordDir<SnapshotRecord>)>> {
        for group in self.group_ids()? {
            let Some(dir) = self.groups.find_child(group.as_str())? else { continue };
            if !dir.contains(id.as_str())? {
                continue;
            }
            let Some(state) = self.find_group(&group)? else { continue };
            if state.record().members.contains(id) {
                return Ok(Some((group, member(&state, id)?)));
            }
        }
        Ok(None)
    }

    /// Every member of every group. A group that cannot be read is logged and hides no other.
    pub(crate) fn all_members(&self) -> Result<Vec<Snapshot>> {
        let mut found = Vec::new();
        for id in self.group_ids()? {
            match self.find_group(&id).and_then(|state| state.map(|state| self.to_group(&state)).transpose()) {
                Ok(group) => found.extend(group.into_iter().flat_map(|group| group.snapshots)),
                Err(error) => tracing::error!(group = %id, error = error.chain(), "a group snapshot cannot be read"),
            }
        }
        Ok(found)
    }

    pub(crate) fn group_ids(&self) -> Result<Vec<GroupSnapshotId>> {
        let names = self.groups.names()?;
        Ok(names.iter().filter_map(|name| GroupSnapshotId::parse(name).ok()).collect())
    }

    fn find_group(&self, id: &GroupSnapshotId) -> Result<Option<RecordDir<GroupRecord>>> {
        let state = RecordDir::<GroupRecord>::find(&self.groups, id.as_str())?;
        Ok(state.filter(|state| !state.record().deleting))
    }

    fn existing_group(
        &self,
        id: &GroupSnapshotId,
        name: &VolumeName,
        members: &[SnapshotId],
    ) -> Result<Option<GroupSnapshot>> {
        let Some(state) = RecordDir::<GroupRecord>::find(&self.groups, id.as_str())? else { return Ok(None) };
        let record = state.record();
        if record.deleting {
            self.discard(&self.groups, id.as_str())?;
            return Ok(None);
        }
        // A member's id follows from the group's and its source's.
        if record.name != *name || record.members != members {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("group snapshot {:?} exists as {id} but is of other volumes", record.name.as_str()),
            ));
        }
        self.to_group(&state).map(Some)
    }

    fn to_group(&self, state: &RecordDir<GroupRecord>) -> Result<GroupSnapshot> {
        let record = state.record();
        let snapshot = |id| Ok(to_snapshot(self, member(state, id)?.record(), Some(&record.id)));
        Ok(GroupSnapshot {
            id: record.id.clone(),
            name: record.name.clone(),
            snapshots: record.members.iter().map(snapshot).collect::<Result<_>>()?,
            created_at_ms: record.created_at_ms,
            ready: true,
        })
    }
}

fn member(state: &RecordDir<GroupRecord>, id: &SnapshotId) -> Result<RecordDir<SnapshotRecord>> {
    RecordDir::find(state.dir(), id.as_str())?.ok_or_else(|| lost_member(state.dir(), id))
}

fn lost_member(group: &Dir, id: &SnapshotId) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the member {id} of the group in {} is gone; restore it, or delete the group", group.path().display()),
    )
}

/// In order, and none twice.
fn distinct(sources: &[VolumeId]) -> Result<Vec<&VolumeId>> {
    let mut sorted: Vec<&VolumeId> = sources.iter().collect();
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(twice) => Err(Error::invalid(format!("volume {} is named twice for one group snapshot", twice[0]))),
        None if sorted.is_empty() => Err(Error::invalid("a group snapshot needs at least one volume")),
        None => Ok(sorted),
    }
}
