//! ControllerExpandVolume.

use crate::core::Core;
use crate::reply;
use csi_proto::csi::{ControllerExpandVolumeRequest, ControllerExpandVolumeResponse};
use rpc::{Trace, parse};
use std::sync::Arc;
use volume::{Backend, Error, ErrorKind, Result, SizeRange, VolumeCapability, VolumeGuard, VolumeId};

pub(crate) struct Grow {
    guard: VolumeGuard,
    backend: Arc<dyn Backend>,
    id: VolumeId,
    size: SizeRange,
    capability: Option<VolumeCapability>,
}

pub(crate) fn prepare(core: &Core, request: ControllerExpandVolumeRequest) -> Result<Grow> {
    parse::required(&[("volume_id", &request.volume_id)])?;
    let size = parse::size(request.capacity_range.as_ref())?;
    if size == SizeRange::default() {
        return Err(Error::invalid("capacity_range is missing: no size to grow to is given"));
    }
    let capability = request.volume_capability.as_ref().map(|wire| parse::capability(Some(wire))).transpose()?;
    let id = VolumeId::parse(&request.volume_id)?;
    let backend = core.of_id(id.backend(), id.as_str())?;
    let guard = core.locks.try_lock([id.as_str()])?;
    Ok(Grow { guard, backend, id, size, capability })
}

pub(crate) fn run(_: &Core, grow: Grow, trace: &mut Trace) -> Result<ControllerExpandVolumeResponse> {
    let Grow { guard, backend, id, size, capability } = grow;
    let context = |error: Error| error.context(format!("expand volume {id}"));
    trace.step("find");
    let volume = backend.find_volume(&id).map_err(context)?;
    let volume = volume.ok_or_else(|| Error::not_found(format!("volume {id} does not exist")))?;
    if let Some(capability) = &capability {
        volume.kind.check(capability).map_err(context)?;
    }
    let expand = backend.expand().ok_or_else(|| {
        let message = format!("expand volume {id}: volumes of backend {} cannot grow", backend.name());
        Error::new(ErrorKind::Unsupported, message)
    })?;
    trace.step("expand");
    let (size_bytes, node_expansion_required) = expand.expand(&guard, &id, size).map_err(context)?;
    Ok(ControllerExpandVolumeResponse { capacity_bytes: reply::bytes(size_bytes), node_expansion_required })
}
