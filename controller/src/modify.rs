//! ControllerModifyVolume: what changes of a volume while it is in use. The node that has it connected applies it.

use crate::core::Core;
use csi_proto::csi::{ControllerModifyVolumeRequest, ControllerModifyVolumeResponse};
use rpc::{Trace, parse};
use std::sync::Arc;
use volume::{Backend, Error, ErrorKind, MutableChange, Result, VolumeGuard, VolumeId};

pub(crate) struct Change {
    guard: VolumeGuard,
    backend: Arc<dyn Backend>,
    id: VolumeId,
    change: MutableChange,
}

pub(crate) fn prepare(core: &Core, request: ControllerModifyVolumeRequest) -> Result<Change> {
    parse::required(&[("volume_id", &request.volume_id)])?;
    if request.mutable_parameters.is_empty() {
        return Err(Error::invalid("mutable_parameters is missing: nothing to change is given"));
    }
    let change = parse::mutable_parameters(&request.mutable_parameters)?;
    let id = VolumeId::parse(&request.volume_id)?;
    let backend = core.of_id(id.backend(), id.as_str())?;
    let guard = core.locks.try_lock([id.as_str()])?;
    Ok(Change { guard, backend, id, change })
}

pub(crate) fn run(_: &Core, change: Change, trace: &mut Trace) -> Result<ControllerModifyVolumeResponse> {
    let Change { guard, backend, id, change } = change;
    let modify = backend.modify().ok_or_else(|| {
        let message = format!("modify volume {id}: nothing of volumes of backend {} can change", backend.name());
        Error::new(ErrorKind::Unsupported, message)
    })?;
    trace.step("modify");
    modify.modify(&guard, &id, &change).map_err(|error| error.context(format!("modify volume {id}")))?;
    Ok(ControllerModifyVolumeResponse {})
}
