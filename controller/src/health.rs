//! ControllerListVolumeHealth and ControllerGetVolumeHealth: what the storage itself knows.
//!
//! A pool that cannot be reached makes both calls fail (UNAVAILABLE): its volumes cannot be told, and CSI lets a
//! condition go only when it is known to be over.

use crate::core::Core;
use crate::paging;
use csi_proto::csi::{
    ControllerGetVolumeHealthRequest, ControllerGetVolumeHealthResponse, ControllerListVolumeHealthRequest,
    ControllerListVolumeHealthResponse,
};
use rpc::{Trace, parse};
use std::sync::Arc;
use volume::{Backend, Error, ErrorKind, Page, PageRequest, Result, VolumeId};

pub(crate) fn prepare_list(_: &Core, request: ControllerListVolumeHealthRequest) -> Result<PageRequest> {
    paging::request(request.max_entries, request.starting_token)
}

pub(crate) fn run_list(
    core: &Core,
    request: PageRequest,
    trace: &mut Trace,
) -> Result<ControllerListVolumeHealthResponse> {
    trace.step("look");
    // What is missing from a part would be taken for healthy.
    core.complete("list unhealthy volumes")?;
    let page = paging::across(core, &request, |backend, page| match backend.health() {
        Some(health) => health.list_unhealthy(page),
        None => Ok(Page { entries: Vec::new(), next_token: None }),
    })?;
    Ok(ControllerListVolumeHealthResponse {
        entries: page.entries.into_iter().map(rpc::health::volume).collect(),
        next_token: page.next_token.unwrap_or_default(),
    })
}

pub(crate) struct Get {
    backend: Arc<dyn Backend>,
    id: VolumeId,
}

pub(crate) fn prepare_get(core: &Core, request: ControllerGetVolumeHealthRequest) -> Result<Get> {
    parse::required(&[("volume_id", &request.volume_id)])?;
    let id = VolumeId::parse(&request.volume_id)?;
    let backend = core.of_id(id.backend(), id.as_str())?;
    Ok(Get { backend, id })
}

pub(crate) fn run_get(_: &Core, get: Get, trace: &mut Trace) -> Result<ControllerGetVolumeHealthResponse> {
    let Get { backend, id } = get;
    trace.step("look");
    let Some(health) = backend.health() else {
        let message = format!("backend {} does not know how its volumes are", backend.name());
        return Err(Error::new(ErrorKind::Unsupported, message));
    };
    Ok(ControllerGetVolumeHealthResponse { volume_health: Some(rpc::health::volume(health.volume_health(&id)?)) })
}
