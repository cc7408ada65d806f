//! What the Controller service advertises: what at least one backend can do and the orchestrator may be told.

use crate::core::Core;
use csi_proto::csi::controller_service_capability::rpc::Type as Capability;
use csi_proto::csi::controller_service_capability::{Rpc, Type};
use csi_proto::csi::{ControllerGetCapabilitiesResponse, ControllerServiceCapability};
use volume::{Attacher, Backend};

pub(crate) fn of(core: &Core, attacher: Attacher) -> ControllerGetCapabilitiesResponse {
    let any = |can: fn(&dyn Backend) -> bool| core.backends().iter().any(|backend| can(&**backend));
    let grants = any(|b| b.attach().is_some());
    let publishes = grants && attacher == Attacher::Controller;
    let snapshots = any(|b| b.snapshots().is_some());
    let health = any(|b| b.health().is_some());
    let capabilities = [
        (Capability::CreateDeleteVolume, true),
        (Capability::PublishUnpublishVolume, publishes),
        (Capability::ListVolumes, true),
        (Capability::GetCapacity, true),
        (Capability::CreateDeleteSnapshot, snapshots),
        (Capability::ListSnapshots, snapshots),
        (Capability::CloneVolume, any(|b| b.can_clone())),
        // Of a call that is not offered, nothing is said.
        (Capability::PublishReadonly, publishes),
        (Capability::ExpandVolume, any(|b| b.expand().is_some())),
        (Capability::ListVolumesPublishedNodes, grants),
        (Capability::GetVolume, true),
        (Capability::SingleNodeMultiWriter, true),
        (Capability::ModifyVolume, any(|b| b.modify().is_some())),
        (Capability::GetSnapshot, snapshots),
        (Capability::GetVolumeHealth, health),
        (Capability::ListVolumeHealth, health),
    ];
    let capabilities = capabilities
        .into_iter()
        .filter(|&(capability, can)| can && core.profile.allows_controller(capability))
        .map(|(capability, _)| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: capability.into() })),
        })
        .collect();
    ControllerGetCapabilitiesResponse { capabilities }
}
