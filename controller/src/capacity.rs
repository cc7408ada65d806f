//! GetCapacity.

use crate::core::Core;
use crate::reply;
use csi_proto::csi::{GetCapacityRequest, GetCapacityResponse};
use rpc::{Trace, parse};
use std::sync::Arc;
use volume::{Backend, CapacityQuery, Error, Result, VolumeKind};

pub(crate) struct Ask {
    backend: Arc<dyn Backend>,
    query: CapacityQuery,
}

/// A volume that CreateVolume would make from the same arguments is asked about.
pub(crate) fn prepare(core: &Core, request: GetCapacityRequest) -> Result<Ask> {
    let parameters = parse::parameters(&request.parameters)?;
    let kind = if request.volume_capabilities.is_empty() {
        None
    } else {
        let capabilities = parse::capabilities(&request.volume_capabilities)?;
        Some(VolumeKind::for_capabilities(&capabilities, parameters.fs_type)?)
    };
    let backend = match &parameters.backend {
        None => core.default_backend(),
        Some(name) => core.named(name).ok_or_else(|| {
            Error::invalid(format!("parameter backend is {name:?}; this driver has {}", core.names()))
        })?,
    };
    let topology = request.accessible_topology.as_ref().map(parse::segments);
    let topology = topology.filter(|place| core.profile.has_topology() && !place.0.is_empty());
    Ok(Ask { backend: backend.clone(), query: CapacityQuery { kind, thick: parameters.thick, topology } })
}

pub(crate) fn run(_: &Core, ask: Ask, trace: &mut Trace) -> Result<GetCapacityResponse> {
    trace.step("capacity");
    let capacity = ask.backend.capacity(&ask.query)?;
    Ok(GetCapacityResponse {
        available_capacity: reply::bytes(capacity.available_bytes),
        maximum_volume_size: Some(reply::bytes(capacity.maximum_volume_bytes)),
        minimum_volume_size: Some(reply::bytes(capacity.minimum_volume_bytes)),
    })
}
