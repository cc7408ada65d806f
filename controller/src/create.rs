//! CreateVolume.

use crate::core::Core;
use crate::{place, reply};
use csi_proto::csi::volume_content_source::Type;
use csi_proto::csi::{CreateVolumeRequest, CreateVolumeResponse, VolumeContentSource};
use rpc::{Trace, parse};
use std::sync::Arc;
use volume::{
    AccessType, Backend, Error, ErrorKind, Parameters, Result, SnapshotId, TopologyRequirement, Volume,
    VolumeCapability, VolumeGuard, VolumeId, VolumeKind, VolumeName, VolumeSource, VolumeSpec,
};

pub(crate) struct Create {
    guard: VolumeGuard,
    /// The preferred one first; never empty.
    candidates: Vec<Arc<dyn Backend>>,
    /// With the id that the volume would have on the first of them.
    spec: VolumeSpec,
    /// Neither a capability nor the parameters say which file system: a copy takes its source's.
    any_fs: bool,
}

/// A backend, and the volume of the name that is asked for where it has one.
type Choice = (Arc<dyn Backend>, Option<Volume>);

pub(crate) fn prepare(core: &Core, request: CreateVolumeRequest) -> Result<Create> {
    let name = VolumeName::parse(&request.name)?;
    let capabilities = parse::capabilities(&request.volume_capabilities)?;
    let size = parse::size(request.capacity_range.as_ref())?;
    let parameters = parse::parameters(&request.parameters)?;
    let mutable = parse::mutable_parameters(&request.mutable_parameters)?;
    let kind = VolumeKind::for_capabilities(&capabilities, parameters.fs_type)?;
    let source = request.volume_content_source.as_ref().map(source).transpose()?;
    // Without topology in the answers, requirements are none that this driver was asked to meet.
    let topology = if core.profile.has_topology() {
        parse::topology_requirement(request.accessibility_requirements.as_ref())
    } else {
        TopologyRequirement::default()
    };
    let candidates = candidates(core, &parameters, source.as_ref(), &topology)?;
    let candidates = match request.mutable_parameters.keys().next() {
        Some(key) => able_to_change(candidates, key)?,
        None => candidates,
    };
    // A name means one volume, whichever backend it is on: all the ids it could have are locked.
    let ids: Vec<_> = core.backends().iter().map(|b| VolumeId::of_name(b.name(), &name)).collect();
    let keys = ids.iter().map(VolumeId::as_str).chain(source.as_ref().map(source_id));
    let guard = core.locks.try_lock(keys)?;
    let any_fs = parameters.fs_type.is_none() && !capabilities.iter().any(names_fs);
    let id = VolumeId::of_name(candidates.first().ok_or_else(place::none)?.name(), &name);
    Ok(Create {
        guard,
        candidates,
        spec: VolumeSpec { id, name, size, kind, source, parameters, mutable, topology },
        any_fs,
    })
}

pub(crate) fn run(core: &Core, create: Create, trace: &mut Trace) -> Result<CreateVolumeResponse> {
    let Create { guard, candidates, spec, any_fs } = create;
    let context = |error: Error| error.context(format!("create volume {:?}", spec_name(&spec)));
    trace.step("find");
    let candidates = unless_unsettled(core, candidates, &spec);
    let mut choices = choices(&candidates, &spec).map_err(context)?;
    if choices.iter().all(|(_, existing)| existing.is_none()) {
        check_name_elsewhere(core, &candidates, &spec)?;
    }
    let mut refused = None;
    choices.reverse();
    while let Some((backend, existing)) = choices.pop() {
        let made = make(&*backend, existing, &guard, spec.clone(), any_fs, trace);
        note_unsettled(core, &*backend, &spec, &made);
        match made {
            // The preferred one's reason is told when all are full.
            Err(full) if full.kind() == ErrorKind::Exhausted => drop(refused.get_or_insert(full)),
            Err(error) => return Err(context(error)),
            Ok(volume) => return Ok(CreateVolumeResponse { volume: Some(reply::volume(&volume, core.profile)) }),
        }
    }
    Err(context(refused.unwrap_or_else(place::none)))
}

/// Where an earlier attempt may have made the volume, only that backend: a second one elsewhere would leave the first
/// behind, which nobody would ever delete.
fn unless_unsettled(core: &Core, candidates: Vec<Arc<dyn Backend>>, spec: &VolumeSpec) -> Vec<Arc<dyn Backend>> {
    let unsettled = core.unsettled().get(&spec.name).cloned();
    let there = candidates.iter().find(|backend| Some(backend.name()) == unsettled.as_ref()).cloned();
    there.map_or(candidates, |backend| vec![backend])
}

fn note_unsettled(core: &Core, backend: &dyn Backend, spec: &VolumeSpec, made: &Result<Volume>) {
    let is_unsettled = made.as_ref().err().is_some_and(|error| {
        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Busy | ErrorKind::Internal)
    });
    if is_unsettled {
        core.unsettled().insert(spec.name.clone(), backend.name().clone());
    } else {
        core.unsettled().remove(&spec.name);
    }
}

/// The candidates that can take the volume, in order, or the one that has it already. One that cannot be reached is
/// passed over where another one will do; what it may have of this name shows when it is back.
fn choices(candidates: &[Arc<dyn Backend>], spec: &VolumeSpec) -> Result<Vec<Choice>> {
    let (mut open, mut away) = (Vec::new(), None);
    for backend in candidates {
        match backend.find_volume(&VolumeId::of_name(backend.name(), &spec.name)) {
            Ok(Some(volume)) => return Ok(vec![(backend.clone(), Some(volume))]),
            Ok(None) => open.push((backend.clone(), None)),
            Err(error) if place::is_of_this_backend_alone(error.kind()) => {
                tracing::debug!(backend = %backend.name(), error = error.chain(), "passed over for a new volume");
                away.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    if open.is_empty() { Err(away.unwrap_or_else(place::none)) } else { Ok(open) }
}

fn make(
    backend: &dyn Backend,
    existing: Option<Volume>,
    guard: &VolumeGuard,
    mut spec: VolumeSpec,
    any_fs: bool,
    trace: &mut Trace,
) -> Result<Volume> {
    spec.id = VolumeId::of_name(backend.name(), &spec.name);
    let kind_to_take = match &existing {
        Some(volume) => Some(volume.kind),
        None => source_kind(backend, spec.source.as_ref())?,
    };
    if let (true, Some(_), VolumeKind::FileSystem(_), Some(kind @ VolumeKind::FileSystem(_))) =
        (any_fs, &spec.source, spec.kind, kind_to_take)
    {
        spec.kind = kind;
    }
    trace.step("create");
    backend.ensure_volume(guard, &spec)
}

/// The parameter `backend`, else the source's, else those that can be reached from where the volume is asked for.
fn candidates(
    core: &Core,
    parameters: &Parameters,
    source: Option<&VolumeSource>,
    topology: &TopologyRequirement,
) -> Result<Vec<Arc<dyn Backend>>> {
    let Some(source) = source else { return place::candidates(core, parameters, topology) };
    let (backend, id) = match source {
        VolumeSource::Snapshot(id) => (id.backend(), id.as_str()),
        VolumeSource::Volume(id) => (id.backend(), id.as_str()),
    };
    let of_source = core.of_id(backend, id)?;
    match &parameters.backend {
        Some(name) if core.of_parameter(name)?.name() != of_source.name() => Err(Error::invalid(format!(
            "the source is on backend {} and the volume is asked for on {name}; a copy stays on its source's backend",
            of_source.name()
        ))),
        _ => Ok(vec![of_source]),
    }
}

/// Those on which `key`, a mutable parameter, is one; `InvalidArgument` when it is none on any.
fn able_to_change(candidates: Vec<Arc<dyn Backend>>, key: &str) -> Result<Vec<Arc<dyn Backend>>> {
    let (able, unable): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|backend| backend.modify().is_some());
    if able.is_empty() && !unable.is_empty() {
        let names: Vec<_> = unable.iter().map(|backend| backend.name().as_str()).collect();
        return Err(Error::invalid(format!(
            "mutable parameter {key:?} is given; nothing of volumes of backend {} can change",
            names.join(", ")
        )));
    }
    Ok(able)
}

fn source(wire: &VolumeContentSource) -> Result<VolumeSource> {
    match &wire.r#type {
        Some(Type::Snapshot(from)) => Ok(VolumeSource::Snapshot(SnapshotId::parse(&from.snapshot_id)?)),
        Some(Type::Volume(from)) => Ok(VolumeSource::Volume(VolumeId::parse(&from.volume_id)?)),
        // Empty, or of a sort that this protocol version does not know: making an empty volume would lose data.
        None => Err(Error::invalid("volume_content_source names neither a snapshot nor a volume")),
    }
}

fn source_id(source: &VolumeSource) -> &str {
    match source {
        VolumeSource::Snapshot(id) => id.as_str(),
        VolumeSource::Volume(id) => id.as_str(),
    }
}

/// The kind of what is copied; `NotFound` when it is not there. Kinds and sizes are compared by the backend.
fn source_kind(backend: &dyn Backend, source: Option<&VolumeSource>) -> Result<Option<VolumeKind>> {
    let unsupported = |what| {
        let message = format!("backend {} cannot make volumes from {what}", backend.name());
        Error::new(ErrorKind::Unsupported, message)
    };
    let gone = |id: &str| Error::not_found(format!("the source {id} does not exist"));
    match source {
        None => Ok(None),
        Some(VolumeSource::Snapshot(id)) => {
            let snapshots = backend.snapshots().ok_or_else(|| unsupported("snapshots"))?;
            Ok(Some(snapshots.find_snapshot(id)?.ok_or_else(|| gone(id.as_str()))?.kind))
        }
        Some(VolumeSource::Volume(id)) => {
            if !backend.can_clone() {
                return Err(unsupported("volumes"));
            }
            Ok(Some(backend.find_volume(id)?.ok_or_else(|| gone(id.as_str()))?.kind))
        }
    }
}

/// `AlreadyExists` when another backend has a volume of this name. One that cannot tell now does not stop the others, and
/// one from elsewhere than where the volume is asked for is not asked: no repetition of this request gets there.
fn check_name_elsewhere(core: &Core, asked: &[Arc<dyn Backend>], spec: &VolumeSpec) -> Result<()> {
    let is_asked = |other: &Arc<dyn Backend>| asked.iter().any(|backend| backend.name() == other.name());
    let elsewhere = |other: &Arc<dyn Backend>| -> Option<Volume> {
        other.find_volume(&VolumeId::of_name(other.name(), &spec.name)).ok().flatten()
    };
    let others = core.backends().into_iter().filter(|other| !is_asked(other) && place::meets(&**other, &spec.topology));
    match others.into_iter().find_map(|other| elsewhere(&other)) {
        Some(other) => Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("volume {:?} exists as {}, on another backend than is asked for", spec_name(spec), other.id),
        )),
        None => Ok(()),
    }
}

fn names_fs(capability: &VolumeCapability) -> bool {
    matches!(capability.access_type, AccessType::Mount { fs_type: Some(_), .. })
}

fn spec_name(spec: &VolumeSpec) -> &str {
    spec.name.as_str()
}
