//! Group snapshots: all members are taken in one go while all that is mounted from their volumes stands still.

use crate::copies::FREEZE_MS;
use crate::state::{GroupRecord, Image, State};
use crate::{MemoryBackend, now_ms};
use host::{Host, LoopDevice};
use volume::{
    DeviceNumber, Error, ErrorKind, GroupSnapshot, GroupSnapshotId, GroupSnapshots, Result, SnapshotId, VolumeGuard,
    VolumeId, VolumeKind, VolumeName,
};

impl GroupSnapshots for MemoryBackend {
    fn ensure_group_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &GroupSnapshotId,
        name: &VolumeName,
        sources: &[VolumeId],
    ) -> Result<GroupSnapshot> {
        guard.check(id.as_str())?;
        let mut wanted = Vec::new();
        for source in sources {
            let member = SnapshotId::of_member(id, source);
            guard.check(member.as_str())?;
            guard.check(source.as_str())?;
            wanted.push((member, source));
        }
        wanted.sort();
        if wanted.is_empty() || wanted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid("a group snapshot is of one volume at least, each named once"));
        }
        let devices = {
            let state = self.storage.state();
            if let Some(existing) = state.groups.get(id) {
                return existing_group(&state, existing, name, &wanted);
            }
            self.devices(&state, &wanted)?
        };
        let mut taken = Err(Error::internal(format!("group {id} was not taken")));
        self.storage.host.with_all_frozen(&devices, FREEZE_MS, &mut |_| {
            taken = self.take(id, name, &wanted);
            Ok(())
        })?;
        taken
    }

    fn find_group_snapshot(&self, id: &GroupSnapshotId) -> Result<Option<GroupSnapshot>> {
        let state = self.storage.state();
        Ok(state.groups.get(id).map(|record| to_group(&state, record)))
    }

    fn delete_group_snapshot(&self, guard: &VolumeGuard, id: &GroupSnapshotId) -> Result<()> {
        guard.check(id.as_str())?;
        let mut state = self.storage.state();
        for member in state.groups.remove(id).into_iter().flat_map(|group| group.members) {
            state.snapshots.remove(&member);
            self.storage.host.remove_all(&self.storage.directory(member.as_str()));
        }
        Ok(())
    }
}

impl MemoryBackend {
    /// What has to stand still, in the order of the devices' numbers. `FailedPrecondition` when two raw devices would.
    fn devices(&self, state: &State, wanted: &[(SnapshotId, &VolumeId)]) -> Result<Vec<DeviceNumber>> {
        let loops = self.storage.host.loops()?;
        let of = |image: &Image| -> Vec<&LoopDevice> {
            loops.iter().filter(|device| device.backing_inode == image.identity.inode).collect()
        };
        let (mut devices, mut raw) = (Vec::new(), Vec::new());
        for (_, source) in wanted {
            let record = state.volume(source)?;
            let image = record.image.as_ref();
            let image =
                image.ok_or_else(|| Error::invalid(format!("volume {source} is a directory and has no snapshots")))?;
            match record.volume.kind {
                VolumeKind::Block if !of(image).is_empty() => raw.push(source),
                _ => devices.extend(of(image).into_iter().map(|device| device.number)),
            }
        }
        if raw.len() > 1 {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("{} and {} are raw block volumes in use, and nothing stops both; detach one", raw[0], raw[1]),
            ));
        }
        devices.sort();
        Ok(devices)
    }

    fn take(
        &self,
        id: &GroupSnapshotId,
        name: &VolumeName,
        wanted: &[(SnapshotId, &VolumeId)],
    ) -> Result<GroupSnapshot> {
        // One hold of the records: nobody sees some of the members.
        let mut state = self.storage.state();
        if let Some(existing) = state.groups.get(id) {
            return existing_group(&state, existing, name, wanted);
        }
        for (n, (member, source)) in wanted.iter().enumerate() {
            if let Err(error) = self.storage.take_snapshot(&mut state, member, name, source, Some(id)) {
                for (member, _) in &wanted[..n] {
                    state.snapshots.remove(member);
                    self.storage.host.remove_all(&self.storage.directory(member.as_str()));
                }
                return Err(error);
            }
        }
        let members = wanted.iter().map(|(member, _)| member.clone()).collect();
        let record = GroupRecord { id: id.clone(), name: name.clone(), members, created_at_ms: now_ms() };
        let group = to_group(&state, &record);
        state.groups.insert(id.clone(), record);
        Ok(group)
    }
}

fn existing_group(
    state: &State,
    record: &GroupRecord,
    name: &VolumeName,
    wanted: &[(SnapshotId, &VolumeId)],
) -> Result<GroupSnapshot> {
    if record.name == *name && record.members.iter().eq(wanted.iter().map(|(member, _)| member)) {
        return Ok(to_group(state, record));
    }
    let message = format!("group snapshot {:?} exists and is of other volumes", name.as_str());
    Err(Error::new(ErrorKind::AlreadyExists, message))
}

fn to_group(state: &State, record: &GroupRecord) -> GroupSnapshot {
    let snapshots = record.members.iter().filter_map(|id| state.snapshots.get(id));
    GroupSnapshot {
        id: record.id.clone(),
        name: record.name.clone(),
        snapshots: snapshots.map(|record| record.snapshot.clone()).collect(),
        created_at_ms: record.created_at_ms,
        ready: true,
    }
}
