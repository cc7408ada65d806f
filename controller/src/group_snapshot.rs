//! CreateVolumeGroupSnapshot, DeleteVolumeGroupSnapshot and GetVolumeGroupSnapshot.

use crate::core::Core;
use crate::reply;
use crate::snapshot::check_parameters;
use csi_proto::csi::{
    CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse, DeleteVolumeGroupSnapshotRequest,
    DeleteVolumeGroupSnapshotResponse, GetVolumeGroupSnapshotRequest, GetVolumeGroupSnapshotResponse,
};
use rpc::{Trace, parse};
use std::collections::BTreeSet;
use std::sync::Arc;
use volume::{
    Backend, Error, ErrorKind, GroupSnapshot, GroupSnapshotId, Result, SnapshotId, VolumeGuard, VolumeId, VolumeName,
};

pub(crate) struct Create {
    guard: VolumeGuard,
    backend: Arc<dyn Backend>,
    id: GroupSnapshotId,
    name: VolumeName,
    sources: Vec<VolumeId>,
}

pub(crate) fn prepare_create(core: &Core, request: CreateVolumeGroupSnapshotRequest) -> Result<Create> {
    parse::required(&[("name", &request.name)])?;
    let name = VolumeName::parse(&request.name)?;
    if request.source_volume_ids.is_empty() {
        return Err(Error::invalid("source_volume_ids is empty"));
    }
    check_parameters(&request.parameters)?;
    let required: Vec<_> = request.source_volume_ids.iter().map(|id| ("source_volume_ids", id.as_str())).collect();
    parse::required(&required)?;
    let mut sources = request.source_volume_ids.iter().map(|id| VolumeId::parse(id)).collect::<Result<Vec<_>>>()?;
    sources.sort();
    if let Some(twice) = sources.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::invalid(format!("source_volume_ids names volume {} twice", twice[0])));
    }
    // One instant is a promise that one storage can make.
    if let Some(pair) = sources.windows(2).find(|pair| pair[0].backend() != pair[1].backend()) {
        return Err(Error::invalid(format!(
            "volumes {} and {} are on different backends; a group snapshot is of volumes of one",
            pair[0], pair[1]
        )));
    }
    let first = sources.first().ok_or_else(|| Error::internal("no source is left"))?;
    let backend = core.of_id(first.backend(), first.as_str())?;
    // As with volumes, a name means one group, whichever backend its sources are on.
    let ids: Vec<_> = core.backends().iter().map(|b| GroupSnapshotId::of_name(b.name(), &name)).collect();
    let id = GroupSnapshotId::of_name(backend.name(), &name);
    let members: Vec<_> = sources.iter().map(|source| SnapshotId::of_member(&id, source)).collect();
    let keys = ids.iter().map(GroupSnapshotId::as_str).chain(members.iter().map(SnapshotId::as_str));
    let guard = core.locks.try_lock(keys.chain(sources.iter().map(VolumeId::as_str)))?;
    Ok(Create { guard, backend, id, name, sources })
}

pub(crate) fn run_create(core: &Core, create: Create, trace: &mut Trace) -> Result<CreateVolumeGroupSnapshotResponse> {
    let Create { guard, backend, id, name, sources } = create;
    trace.step("find");
    let elsewhere = |other: &Arc<dyn Backend>| {
        other.group_snapshots()?.find_group_snapshot(&GroupSnapshotId::of_name(other.name(), &name)).ok().flatten()
    };
    if let Some(other) = core.backends().iter().filter(|b| b.name() != backend.name()).find_map(elsewhere) {
        let message = format!("group snapshot {:?} exists as {}, on another backend", name.as_str(), other.id);
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    let groups = backend.group_snapshots().ok_or_else(|| {
        let message = format!("group snapshot {:?}: backend {} takes none", name.as_str(), backend.name());
        Error::new(ErrorKind::Unsupported, message)
    })?;
    trace.step("snapshot");
    let group = groups
        .ensure_group_snapshot(&guard, &id, &name, &sources)
        .map_err(|error| error.context(format!("snapshot {} volumes as group {:?}", sources.len(), name.as_str())))?;
    Ok(CreateVolumeGroupSnapshotResponse { group_snapshot: Some(reply::group_snapshot(&group, core.profile)) })
}

pub(crate) struct Delete {
    guard: VolumeGuard,
    backend: Arc<dyn Backend>,
    id: GroupSnapshotId,
    named: BTreeSet<String>,
}

/// `None`: the id is no id of this driver, so there is nothing to delete and CSI asks for OK.
pub(crate) fn prepare_delete(core: &Core, request: DeleteVolumeGroupSnapshotRequest) -> Result<Option<Delete>> {
    let id = match GroupSnapshotId::parse(&request.group_snapshot_id) {
        Err(foreign) if foreign.kind() == ErrorKind::NotFound => return Ok(None),
        parsed => parsed?,
    };
    let backend = core.of_id_to_release(id.backend(), id.as_str())?;
    // A member that is being restored just now is locked; the rest of what is named can be no snapshot's.
    let members = request.snapshot_ids.iter().filter(|id| SnapshotId::parse(id).is_ok());
    let guard = core.locks.try_lock(members.map(String::as_str).chain([id.as_str()]))?;
    Ok(Some(Delete { guard, backend, id, named: request.snapshot_ids.into_iter().collect() }))
}

pub(crate) fn run_delete(
    _: &Core,
    delete: Option<Delete>,
    trace: &mut Trace,
) -> Result<DeleteVolumeGroupSnapshotResponse> {
    let Some(Delete { guard, backend, id, named }) = delete else { return Ok(Default::default()) };
    let Some(groups) = backend.group_snapshots() else { return Ok(Default::default()) };
    let context = |error: Error| error.context(format!("delete group snapshot {id}"));
    trace.step("find");
    match groups.find_group_snapshot(&id) {
        Ok(None) => {}
        Ok(Some(group)) => check_members(&group, &named).map_err(context)?,
        // One with a member that is damaged or gone can be deleted: that is how one gets rid of it.
        Err(error) if error.kind() == ErrorKind::Corrupt => {}
        Err(error) => return Err(context(error)),
    }
    trace.step("delete");
    groups.delete_group_snapshot(&guard, &id).map_err(context)?;
    Ok(DeleteVolumeGroupSnapshotResponse {})
}

pub(crate) struct Get {
    backend: Arc<dyn Backend>,
    id: GroupSnapshotId,
    named: BTreeSet<String>,
}

pub(crate) fn prepare_get(core: &Core, request: GetVolumeGroupSnapshotRequest) -> Result<Get> {
    parse::required(&[("group_snapshot_id", &request.group_snapshot_id)])?;
    let id = GroupSnapshotId::parse(&request.group_snapshot_id)?;
    let backend = core.of_id(id.backend(), id.as_str())?;
    Ok(Get { backend, id, named: request.snapshot_ids.into_iter().collect() })
}

pub(crate) fn run_get(core: &Core, get: Get, trace: &mut Trace) -> Result<GetVolumeGroupSnapshotResponse> {
    let Get { backend, id, named } = get;
    trace.step("find");
    let found = backend.group_snapshots().map(|groups| groups.find_group_snapshot(&id)).transpose()?.flatten();
    let group = found.ok_or_else(|| Error::not_found(format!("group snapshot {id} does not exist")))?;
    check_members(&group, &named)?;
    Ok(GetVolumeGroupSnapshotResponse { group_snapshot: Some(reply::group_snapshot(&group, core.profile)) })
}

/// CSI 1.13, "Snapshot list mismatch": INVALID_ARGUMENT unless `snapshot_ids`, which is required, names the members.
fn check_members(group: &GroupSnapshot, named: &BTreeSet<String>) -> Result<()> {
    let members: BTreeSet<&str> = group.snapshots.iter().map(|member| member.id.as_str()).collect();
    if named.iter().map(String::as_str).eq(members.iter().copied()) {
        return Ok(());
    }
    let members: Vec<&str> = members.into_iter().collect();
    Err(Error::invalid(format!("snapshot_ids are not the members of the group, which are {}", members.join(", "))))
}
