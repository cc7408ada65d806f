//! ControllerPublishVolume and ControllerUnpublishVolume: the attachment contract as orchestrators call it.

use crate::core::Core;
use csi_proto::csi::{
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse,
};
use rpc::{Trace, parse};
use std::sync::Arc;
use volume::{
    AccessType, AttachRequest, Backend, Error, ErrorKind, NodeId, Result, VolumeCapability, VolumeGuard, VolumeId,
    VolumeKind,
};

pub(crate) struct Publish {
    guard: VolumeGuard,
    backend: Arc<dyn Backend>,
    id: VolumeId,
    node: NodeId,
    capability: VolumeCapability,
    read_only: bool,
}

pub(crate) fn prepare(core: &Core, request: ControllerPublishVolumeRequest) -> Result<Publish> {
    parse::required(&[("volume_id", &request.volume_id), ("node_id", &request.node_id)])?;
    let capability = parse::capability(request.volume_capability.as_ref())?;
    parse::volume_context(&request.volume_context)?;
    let id = VolumeId::parse(&request.volume_id)?;
    // An id that no node can have is the id of no node.
    let node = NodeId::parse(&request.node_id).map_err(|error| Error::not_found(error.to_string()))?;
    let backend = core.of_id(id.backend(), id.as_str())?;
    let read_only = request.readonly || capability.access_mode.is_read_only();
    let guard = core.locks.try_lock([id.as_str()])?;
    Ok(Publish { guard, backend, id, node, capability, read_only })
}

pub(crate) fn run(core: &Core, publish: Publish, trace: &mut Trace) -> Result<ControllerPublishVolumeResponse> {
    let Publish { guard, backend, id, node, capability, read_only } = publish;
    let context = |error: Error| error.context(format!("publish volume {id} to node {node}"));
    trace.step("find");
    let volume = backend.find_volume(&id).map_err(context)?;
    let volume = volume.ok_or_else(|| Error::not_found(format!("volume {id} does not exist")))?;
    let forced =
        core.profile.forces_mount_on_publish() && volume.kind == VolumeKind::Block && is_empty_mount(&capability);
    if !forced {
        volume.kind.check(&capability).map_err(context)?;
    }
    let Some(attach) = backend.attach() else { return Ok(ControllerPublishVolumeResponse::default()) };
    trace.step("attach");
    let request = AttachRequest { volume: &id, node: &node, read_only };
    let attached = attach.attach(&guard, &request).map_err(context)?;
    Ok(ControllerPublishVolumeResponse { publish_context: attached.to_map() })
}

pub(crate) struct Unpublish {
    guard: VolumeGuard,
    backend: Arc<dyn Backend>,
    id: VolumeId,
    node: Option<NodeId>,
}

/// `None`: no volume or no node of ours, so nothing is attached, and CSI asks for OK.
pub(crate) fn prepare_unpublish(core: &Core, request: ControllerUnpublishVolumeRequest) -> Result<Option<Unpublish>> {
    let id = match VolumeId::parse(&request.volume_id) {
        Err(foreign) if foreign.kind() == ErrorKind::NotFound => return Ok(None),
        parsed => parsed?,
    };
    let node = match request.node_id.as_str() {
        "" => None,
        node => match NodeId::parse(node) {
            Ok(node) => Some(node),
            Err(_) => return Ok(None),
        },
    };
    let backend = core.of_id_to_release(id.backend(), id.as_str())?;
    let guard = core.locks.try_lock([id.as_str()])?;
    Ok(Some(Unpublish { guard, backend, id, node }))
}

pub(crate) fn run_unpublish(
    _: &Core,
    unpublish: Option<Unpublish>,
    trace: &mut Trace,
) -> Result<ControllerUnpublishVolumeResponse> {
    if let Some(Unpublish { guard, backend, id, node }) = unpublish
        && let Some(attach) = backend.attach()
    {
        trace.step("detach");
        attach.detach(&guard, &id, node.as_ref()).map_err(|error| {
            let node = node.as_ref().map_or("all nodes", NodeId::as_str);
            error.context(format!("unpublish volume {id} from {node}"))
        })?;
    }
    Ok(ControllerUnpublishVolumeResponse {})
}

fn is_empty_mount(capability: &VolumeCapability) -> bool {
    capability.access_type == AccessType::Mount { fs_type: None, mount_flags: Vec::new(), mount_group: None }
}
