//! ValidateVolumeCapabilities: whether an existing volume can be used as described.

use crate::core::Core;
use csi_proto::csi::validate_volume_capabilities_response::Confirmed;
use csi_proto::csi::{ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse};
use rpc::{Trace, parse};
use std::sync::Arc;
use volume::{Backend, Error, MutableChange, Result, Volume, VolumeId};

pub(crate) struct Validate {
    backend: Arc<dyn Backend>,
    id: VolumeId,
    request: ValidateVolumeCapabilitiesRequest,
}

pub(crate) fn prepare(core: &Core, request: ValidateVolumeCapabilitiesRequest) -> Result<Validate> {
    parse::required(&[("volume_id", &request.volume_id)])?;
    let capabilities = &request.volume_capabilities;
    if capabilities.is_empty() {
        return Err(Error::invalid("volume_capabilities is empty"));
    }
    if capabilities.iter().any(|c| c.access_mode.is_none() || c.access_type.is_none()) {
        return Err(Error::invalid("a volume capability needs an access_mode, and an access_type of block or mount"));
    }
    let id = VolumeId::parse(&request.volume_id)?;
    let backend = core.of_id(id.backend(), id.as_str())?;
    Ok(Validate { backend, id, request })
}

pub(crate) fn run(_: &Core, validate: Validate, trace: &mut Trace) -> Result<ValidateVolumeCapabilitiesResponse> {
    let Validate { backend, id, request } = validate;
    trace.step("find");
    let volume = backend.find_volume(&id)?.ok_or_else(|| Error::not_found(format!("volume {id} does not exist")))?;
    Ok(match check(&*backend, &volume, &request) {
        // Nomad compares what is confirmed with what it asked for, so all of it is given back.
        Ok(()) => ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        },
        Err(reason) => ValidateVolumeCapabilitiesResponse { confirmed: None, message: reason.chain() },
    })
}

/// `Ok` when the volume answers everything that the request describes, else why not.
fn check(backend: &dyn Backend, volume: &Volume, request: &ValidateVolumeCapabilitiesRequest) -> Result<()> {
    for capability in parse::capabilities(&request.volume_capabilities)? {
        volume.kind.check(&capability)?;
    }
    let context = parse::volume_context(&request.volume_context)?.to_volume_context();
    let own = volume.parameters.to_volume_context();
    if let Some((key, value)) = context.iter().find(|(key, value)| own.get(*key) != Some(value)) {
        let found = own.get(key).map_or("not set", String::as_str);
        return Err(Error::invalid(format!("volume_context {key} is {value:?}; of this volume it is {found}")));
    }
    if !request.parameters.is_empty() && parse::parameters(&request.parameters)? != volume.parameters {
        return Err(Error::invalid("the volume was made with other parameters"));
    }
    // Whether the volume could have them: that is what a caller asks whose modification was refused.
    let mutable = parse::mutable_parameters(&request.mutable_parameters)?;
    if mutable != MutableChange::default() && backend.modify().is_none() {
        return Err(Error::invalid(format!("nothing of volumes of backend {} can change", backend.name())));
    }
    mutable.apply_to(volume.mutable).check_kind(volume.kind)
}
