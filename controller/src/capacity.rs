//! GetCapacity.

use crate::core::Core;
use crate::{place, reply};
use csi_proto::csi::{GetCapacityRequest, GetCapacityResponse};
use rpc::{Trace, parse};
use std::sync::Arc;
use volume::{Backend, Capacity, CapacityQuery, Result, VolumeKind};

pub(crate) struct Ask {
    /// In the order in which CreateVolume would try them.
    backends: Vec<Arc<dyn Backend>>,
    query: CapacityQuery,
}

/// A volume that CreateVolume would make from the same arguments is asked about.
pub(crate) fn prepare(core: &Core, request: GetCapacityRequest) -> Result<Ask> {
    let parameters = parse::capacity_parameters(&request.parameters)?;
    let kind = if request.volume_capabilities.is_empty() {
        None
    } else {
        let capabilities = parse::capabilities(&request.volume_capabilities)?;
        Some(VolumeKind::for_capabilities(&capabilities, parameters.fs_type)?)
    };
    let topology = request.accessible_topology.as_ref().map(parse::segments);
    let topology = topology.filter(|place| core.profile.has_topology() && !place.0.is_empty());
    let backends = match &parameters.backend {
        Some(name) => vec![core.of_parameter(name)?],
        None => place::reachable_from(core, topology.as_ref())?,
    };
    Ok(Ask { backends, query: CapacityQuery { kind, thick: parameters.thick, topology } })
}

pub(crate) fn run(_: &Core, ask: Ask, trace: &mut Trace) -> Result<GetCapacityResponse> {
    trace.step("capacity");
    let capacity = first(&ask)?;
    Ok(GetCapacityResponse {
        available_capacity: reply::bytes(capacity.available_bytes),
        maximum_volume_size: Some(reply::bytes(capacity.maximum_volume_bytes)),
        minimum_volume_size: Some(reply::bytes(capacity.minimum_volume_bytes)),
    })
}

/// Of the first backend that can be reached.
fn first(ask: &Ask) -> Result<Capacity> {
    let (last, others) = ask.backends.split_last().ok_or_else(place::none)?;
    for backend in others {
        match backend.capacity(&ask.query) {
            Err(error) if place::is_of_this_backend_alone(error.kind()) => {}
            answered => return answered,
        }
    }
    last.capacity(&ask.query)
}
