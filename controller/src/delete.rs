//! DeleteVolume.

use crate::core::Core;
use csi_proto::csi::{DeleteVolumeRequest, DeleteVolumeResponse};
use rpc::Trace;
use std::sync::Arc;
use volume::{Backend, ErrorKind, Result, VolumeGuard, VolumeId};

pub(crate) struct Delete {
    guard: VolumeGuard,
    backend: Arc<dyn Backend>,
    id: VolumeId,
}

/// `None`: the id is no id of this driver, so there is nothing to delete and CSI asks for OK.
pub(crate) fn prepare(core: &Core, request: DeleteVolumeRequest) -> Result<Option<Delete>> {
    let id = match VolumeId::parse(&request.volume_id) {
        Err(foreign) if foreign.kind() == ErrorKind::NotFound => return Ok(None),
        parsed => parsed?,
    };
    let backend = core.of_id_to_release(id.backend(), id.as_str())?;
    let guard = core.locks.try_lock([id.as_str()])?;
    Ok(Some(Delete { guard, backend, id }))
}

pub(crate) fn run(_: &Core, delete: Option<Delete>, trace: &mut Trace) -> Result<DeleteVolumeResponse> {
    if let Some(Delete { guard, backend, id }) = delete {
        trace.step("delete");
        backend.delete_volume(&guard, &id).map_err(|error| error.context(format!("delete volume {id}")))?;
    }
    Ok(DeleteVolumeResponse {})
}
