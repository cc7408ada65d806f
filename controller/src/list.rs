//! ListVolumes and ControllerGetVolume.

use crate::core::Core;
use crate::{paging, reply};
use csi_proto::csi::list_volumes_response::{Entry, VolumeStatus};
use csi_proto::csi::{
    ControllerGetVolumeRequest, ControllerGetVolumeResponse, ListVolumesRequest, ListVolumesResponse,
    controller_get_volume_response,
};
use rpc::{Trace, parse};
use std::sync::Arc;
use volume::{Backend, Error, PageRequest, Result, Volume, VolumeId};

pub(crate) fn prepare(_: &Core, request: ListVolumesRequest) -> Result<PageRequest> {
    paging::request(request.max_entries, request.starting_token)
}

pub(crate) fn run(core: &Core, request: PageRequest, trace: &mut Trace) -> Result<ListVolumesResponse> {
    trace.step("list");
    // A part would be taken for the whole: external-attacher would believe that what is missing is detached.
    core.complete("list volumes")?;
    let page = paging::across(core, &request, |backend, page| backend.list_volumes(page))?;
    let entry = |volume: &Volume| Entry {
        volume: Some(reply::volume(volume, core.profile)),
        status: Some(VolumeStatus { published_node_ids: reply::published_nodes(volume) }),
    };
    Ok(ListVolumesResponse {
        entries: page.entries.iter().map(entry).collect(),
        next_token: page.next_token.unwrap_or_default(),
    })
}

pub(crate) struct Get {
    backend: Arc<dyn Backend>,
    id: VolumeId,
}

pub(crate) fn prepare_get(core: &Core, request: ControllerGetVolumeRequest) -> Result<Get> {
    parse::required(&[("volume_id", &request.volume_id)])?;
    let id = VolumeId::parse(&request.volume_id)?;
    let backend = core.of_id(id.backend(), id.as_str())?;
    Ok(Get { backend, id })
}

pub(crate) fn run_get(core: &Core, get: Get, trace: &mut Trace) -> Result<ControllerGetVolumeResponse> {
    let Get { backend, id } = get;
    trace.step("find");
    let volume = backend.find_volume(&id)?.ok_or_else(|| Error::not_found(format!("volume {id} does not exist")))?;
    Ok(ControllerGetVolumeResponse {
        volume: Some(reply::volume(&volume, core.profile)),
        status: Some(controller_get_volume_response::VolumeStatus {
            published_node_ids: reply::published_nodes(&volume),
        }),
    })
}
