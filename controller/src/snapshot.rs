//! CreateSnapshot, DeleteSnapshot, GetSnapshot and ListSnapshots.

use crate::core::Core;
use crate::{paging, reply};
use csi_proto::csi::list_snapshots_response::Entry;
use csi_proto::csi::{
    CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, GetSnapshotRequest,
    GetSnapshotResponse, ListSnapshotsRequest, ListSnapshotsResponse,
};
use rpc::{Trace, parse};
use std::collections::BTreeMap;
use std::sync::Arc;
use volume::{
    Backend, Error, ErrorKind, Page, PageRequest, Result, Snapshot, SnapshotFilter, SnapshotId, TopologyRequirement,
    VolumeGuard, VolumeId, VolumeName,
};

/// What the official csi-snapshotter adds with `--extra-create-metadata`: `…/volumesnapshot/name` and the like.
const ORCHESTRATOR_PARAMETERS: &str = "csi.storage.k8s.io/";

pub(crate) struct Create {
    guard: VolumeGuard,
    backend: Arc<dyn Backend>,
    id: SnapshotId,
    name: VolumeName,
    source: VolumeId,
    topology: TopologyRequirement,
}

pub(crate) fn prepare_create(core: &Core, request: CreateSnapshotRequest) -> Result<Create> {
    parse::required(&[("name", &request.name), ("source_volume_id", &request.source_volume_id)])?;
    let name = VolumeName::parse(&request.name)?;
    check_parameters(&request.parameters)?;
    let source = VolumeId::parse(&request.source_volume_id)?;
    let backend = core.of_id(source.backend(), source.as_str())?;
    // As with volumes, a name means one snapshot, whichever backend its source is on.
    let ids: Vec<_> = core.backends().iter().map(|b| SnapshotId::of_name(b.name(), &name)).collect();
    let guard = core.locks.try_lock(ids.iter().map(SnapshotId::as_str).chain([source.as_str()]))?;
    let id = SnapshotId::of_name(backend.name(), &name);
    // As for volumes: without topology in the answers, requirements are none that this driver was asked to meet.
    let topology = if core.profile.has_snapshot_topology() {
        parse::topology_requirement(request.accessibility_requirements.as_ref())
    } else {
        TopologyRequirement::default()
    };
    Ok(Create { guard, backend, id, name, source, topology })
}

pub(crate) fn check_parameters(parameters: &BTreeMap<String, String>) -> Result<()> {
    match parameters.keys().find(|key| !key.starts_with(ORCHESTRATOR_PARAMETERS)) {
        Some(key) => Err(Error::invalid(format!("unknown parameter {key:?}; snapshots of this driver have none"))),
        None => Ok(()),
    }
}

pub(crate) fn run_create(core: &Core, create: Create, trace: &mut Trace) -> Result<CreateSnapshotResponse> {
    let Create { guard, backend, id, name, source, topology } = create;
    trace.step("find");
    let elsewhere = |other: &Arc<dyn Backend>| {
        other.snapshots()?.find_snapshot(&SnapshotId::of_name(other.name(), &name)).ok().flatten()
    };
    if let Some(other) = core.backends().iter().filter(|b| b.name() != backend.name()).find_map(elsewhere) {
        let message = format!("snapshot {:?} exists as {}, of volume {}", name.as_str(), other.id, other.source);
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    let snapshots = backend.snapshots().ok_or_else(|| {
        let message = format!("snapshot volume {source}: backend {} takes no snapshots", backend.name());
        Error::new(ErrorKind::Unsupported, message)
    })?;
    let context = |error: Error| error.context(format!("snapshot volume {source} as {:?}", name.as_str()));
    // A snapshot is usable from where its backend can be reached: a volume made from it is there too.
    if topology != TopologyRequirement::default() {
        topology.check(&backend.topology().map_err(context)?).map_err(context)?;
    }
    trace.step("snapshot");
    let snapshot = snapshots.ensure_snapshot(&guard, &id, &name, &source).map_err(context)?;
    Ok(CreateSnapshotResponse { snapshot: Some(reply::snapshot(&snapshot, core.profile)) })
}

pub(crate) struct Get {
    backend: Arc<dyn Backend>,
    id: SnapshotId,
}

pub(crate) fn prepare_get(core: &Core, request: GetSnapshotRequest) -> Result<Get> {
    parse::required(&[("snapshot_id", &request.snapshot_id)])?;
    let id = SnapshotId::parse(&request.snapshot_id)?;
    let backend = core.of_id(id.backend(), id.as_str())?;
    Ok(Get { backend, id })
}

pub(crate) fn run_get(core: &Core, get: Get, trace: &mut Trace) -> Result<GetSnapshotResponse> {
    let Get { backend, id } = get;
    trace.step("find");
    let found = backend.snapshots().map(|snapshots| snapshots.find_snapshot(&id)).transpose()?.flatten();
    let snapshot = found.ok_or_else(|| Error::not_found(format!("snapshot {id} does not exist")))?;
    Ok(GetSnapshotResponse { snapshot: Some(reply::snapshot(&snapshot, core.profile)) })
}

pub(crate) struct Delete {
    guard: VolumeGuard,
    backend: Arc<dyn Backend>,
    id: SnapshotId,
}

/// `None`: the id is no id of this driver, so there is nothing to delete and CSI asks for OK.
pub(crate) fn prepare_delete(core: &Core, request: DeleteSnapshotRequest) -> Result<Option<Delete>> {
    let id = match SnapshotId::parse(&request.snapshot_id) {
        Err(foreign) if foreign.kind() == ErrorKind::NotFound => return Ok(None),
        parsed => parsed?,
    };
    let backend = core.of_id_to_release(id.backend(), id.as_str())?;
    let guard = core.locks.try_lock([id.as_str()])?;
    Ok(Some(Delete { guard, backend, id }))
}

pub(crate) fn run_delete(_: &Core, delete: Option<Delete>, trace: &mut Trace) -> Result<DeleteSnapshotResponse> {
    if let Some(Delete { guard, backend, id }) = delete
        && let Some(snapshots) = backend.snapshots()
    {
        trace.step("delete");
        snapshots.delete_snapshot(&guard, &id).map_err(|error| error.context(format!("delete snapshot {id}")))?;
    }
    Ok(DeleteSnapshotResponse {})
}

pub(crate) struct List {
    page: PageRequest,
    /// `None`: an id is asked for that no snapshot or volume of this driver can have.
    filter: Option<SnapshotFilter>,
}

pub(crate) fn prepare_list(_: &Core, request: ListSnapshotsRequest) -> Result<List> {
    let page = paging::request(request.max_entries, request.starting_token)?;
    let id = optional(&request.snapshot_id, SnapshotId::parse)?;
    let source = optional(&request.source_volume_id, VolumeId::parse)?;
    let filter = match (id, source) {
        (Wanted::Foreign, _) | (_, Wanted::Foreign) => None,
        (id, source) => Some(SnapshotFilter { id: id.known(), source: source.known() }),
    };
    Ok(List { page, filter })
}

pub(crate) fn run_list(core: &Core, list: List, trace: &mut Trace) -> Result<ListSnapshotsResponse> {
    let Some(filter) = list.filter else { return Ok(ListSnapshotsResponse::default()) };
    trace.step("list");
    let of = filter.id.as_ref().map(SnapshotId::backend).or(filter.source.as_ref().map(VolumeId::backend));
    if of.is_none_or(|backend| core.named(backend).is_none()) {
        core.complete("list snapshots")?;
    }
    let page = paging::across(core, &list.page, |backend, page| match backend.snapshots() {
        Some(snapshots) if concerns(backend, &filter) => snapshots.list_snapshots(&filter, page),
        _ => Ok(Page { entries: Vec::new(), next_token: None }),
    })?;
    let entry = |snapshot: &Snapshot| Entry { snapshot: Some(reply::snapshot(snapshot, core.profile)) };
    Ok(ListSnapshotsResponse {
        entries: page.entries.iter().map(entry).collect(),
        next_token: page.next_token.unwrap_or_default(),
    })
}

fn concerns(backend: &dyn Backend, filter: &SnapshotFilter) -> bool {
    let own = backend.name().as_str();
    filter.id.as_ref().is_none_or(|id| id.backend() == own)
        && filter.source.as_ref().is_none_or(|id| id.backend() == own)
}

/// A filter that may be absent, or name what cannot exist here.
enum Wanted<T> {
    Any,
    Known(T),
    Foreign,
}

impl<T> Wanted<T> {
    fn known(self) -> Option<T> {
        match self {
            Self::Known(id) => Some(id),
            Self::Any | Self::Foreign => None,
        }
    }
}

fn optional<T>(text: &str, parse: impl Fn(&str) -> Result<T>) -> Result<Wanted<T>> {
    match parse(text) {
        _ if text.is_empty() => Ok(Wanted::Any),
        Ok(id) => Ok(Wanted::Known(id)),
        Err(foreign) if foreign.kind() == ErrorKind::NotFound => Ok(Wanted::Foreign),
        Err(error) => Err(error),
    }
}
