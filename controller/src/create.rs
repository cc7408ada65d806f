//! CreateVolume.

use crate::core::Core;
use crate::reply;
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
    backend: Arc<dyn Backend>,
    spec: VolumeSpec,
    /// Neither a capability nor the parameters say which file system: a copy takes its source's.
    any_fs: bool,
}

pub(crate) fn prepare(core: &Core, request: CreateVolumeRequest) -> Result<Create> {
    let name = VolumeName::parse(&request.name)?;
    let capabilities = parse::capabilities(&request.volume_capabilities)?;
    let size = parse::size(request.capacity_range.as_ref())?;
    let parameters = parse::parameters(&request.parameters)?;
    let mutable = parse::mutable_parameters(&request.mutable_parameters)?;
    let kind = VolumeKind::for_capabilities(&capabilities, parameters.fs_type)?;
    let source = request.volume_content_source.as_ref().map(source).transpose()?;
    let backend = choose_backend(core, &parameters, source.as_ref())?.clone();
    if let (Some(key), None) = (request.mutable_parameters.keys().next(), backend.modify()) {
        return Err(Error::invalid(format!(
            "mutable parameter {key:?} is given; nothing of volumes of backend {} can change",
            backend.name()
        )));
    }
    // Without topology in the answers, requirements are none that this driver was asked to meet.
    let topology = if core.profile.has_topology() {
        parse::topology_requirement(request.accessibility_requirements.as_ref())
    } else {
        TopologyRequirement::default()
    };
    // A name means one volume, whichever backend it is on: all the ids it could have are locked.
    let ids: Vec<_> = core.backends().iter().map(|b| VolumeId::of_name(b.name(), &name)).collect();
    let keys = ids.iter().map(VolumeId::as_str).chain(source.as_ref().map(source_id));
    let guard = core.locks.try_lock(keys)?;
    let any_fs = parameters.fs_type.is_none() && !capabilities.iter().any(names_fs);
    let id = VolumeId::of_name(backend.name(), &name);
    Ok(Create {
        guard,
        backend,
        spec: VolumeSpec { id, name, size, kind, source, parameters, mutable, topology },
        any_fs,
    })
}

pub(crate) fn run(core: &Core, create: Create, trace: &mut Trace) -> Result<CreateVolumeResponse> {
    let Create { guard, backend, mut spec, any_fs } = create;
    let context = |error: Error| error.context(format!("create volume {:?}", spec_name(&spec)));
    trace.step("find");
    let existing = backend.find_volume(&spec.id).map_err(context)?;
    let kind_to_take = match &existing {
        Some(volume) => Some(volume.kind),
        None => {
            check_name_elsewhere(core, &backend, &spec)?;
            source_kind(&*backend, spec.source.as_ref()).map_err(context)?
        }
    };
    if let (true, Some(_), VolumeKind::FileSystem(_), Some(kind @ VolumeKind::FileSystem(_))) =
        (any_fs, &spec.source, spec.kind, kind_to_take)
    {
        spec.kind = kind;
    }
    trace.step("create");
    let volume = backend
        .ensure_volume(&guard, &spec)
        .map_err(|error| error.context(format!("create volume {:?}", spec_name(&spec))))?;
    Ok(CreateVolumeResponse { volume: Some(reply::volume(&volume, core.profile)) })
}

/// The parameter `backend`, else the source's, else the default.
fn choose_backend<'a>(
    core: &'a Core,
    parameters: &Parameters,
    source: Option<&VolumeSource>,
) -> Result<&'a Arc<dyn Backend>> {
    let of_source = source.map(|source| {
        let (backend, id) = match source {
            VolumeSource::Snapshot(id) => (id.backend(), id.as_str()),
            VolumeSource::Volume(id) => (id.backend(), id.as_str()),
        };
        core.of_id(backend, id)
    });
    let of_source = of_source.transpose()?;
    let Some(name) = &parameters.backend else { return Ok(of_source.unwrap_or(core.default_backend())) };
    let named = core
        .named(name)
        .ok_or_else(|| Error::invalid(format!("parameter backend is {name:?}; this driver has {}", core.names())))?;
    match of_source {
        Some(other) if other.name() != named.name() => Err(Error::invalid(format!(
            "the source is on backend {} and the volume is asked for on {name}; a copy stays on its source's backend",
            other.name()
        ))),
        _ => Ok(named),
    }
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

/// `AlreadyExists` when another backend has a volume of this name. One that cannot tell now does not stop the others.
fn check_name_elsewhere(core: &Core, backend: &Arc<dyn Backend>, spec: &VolumeSpec) -> Result<()> {
    let elsewhere = |other: &Arc<dyn Backend>| -> Option<Volume> {
        other.find_volume(&VolumeId::of_name(other.name(), &spec.name)).ok().flatten()
    };
    match core.backends().iter().filter(|other| other.name() != backend.name()).find_map(elsewhere) {
        Some(other) => Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("volume {:?} exists as {}, on another backend than {}", spec_name(spec), other.id, backend.name()),
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
