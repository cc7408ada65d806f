//! The GroupController service: snapshots of several volumes at one instant.

use crate::call::call;
use crate::core::Core;
use crate::group_snapshot as verb;
use csi_proto::csi::group_controller_server::GroupController;
use csi_proto::csi::group_controller_service_capability::rpc::Type as Capability;
use csi_proto::csi::group_controller_service_capability::{Rpc as CapabilityRpc, Type};
use csi_proto::csi::plugin_capability::service::Type as Service;
use csi_proto::csi::*;
use rpc::{Call, Rpc, Runtime};
use std::sync::Arc;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

pub struct GroupControllerService {
    core: Arc<Core>,
    runtime: Runtime,
}

impl GroupControllerService {
    pub(crate) fn new(core: Arc<Core>, runtime: Runtime) -> Self {
        Self { core, runtime }
    }

    /// Whether some backend takes groups; else the call is UNIMPLEMENTED.
    fn check_served(&self, rpc: Rpc) -> Result<(), Status> {
        match self.core.serves(rpc, |backend| backend.group_snapshots().is_some()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.runtime.unimplemented(rpc)),
            Err(unknown) => Err(self.runtime.refuse(&Call::new(rpc), &unknown)),
        }
    }
}

#[tonic::async_trait]
impl GroupController for GroupControllerService {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Answer<GroupControllerGetCapabilitiesResponse> {
        self.runtime.answered(Rpc::GroupControllerGetCapabilities);
        let is_there = self.core.backends().iter().any(|backend| backend.group_snapshots().is_some());
        let can = is_there && self.core.profile.allows_plugin(Service::GroupControllerService);
        let capability = || GroupControllerServiceCapability {
            r#type: Some(Type::Rpc(CapabilityRpc { r#type: Capability::CreateDeleteGetVolumeGroupSnapshot.into() })),
        };
        let capabilities = can.then(capability).into_iter().collect();
        Ok(Response::new(GroupControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Answer<CreateVolumeGroupSnapshotResponse> {
        let rpc = Rpc::CreateVolumeGroupSnapshot;
        self.check_served(rpc)?;
        let about = Call::new(rpc).volume(&request.get_ref().name);
        call(&self.core, &self.runtime, about, request, verb::prepare_create, verb::run_create).await
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Answer<DeleteVolumeGroupSnapshotResponse> {
        let rpc = Rpc::DeleteVolumeGroupSnapshot;
        self.check_served(rpc)?;
        let about = Call::new(rpc).volume(&request.get_ref().group_snapshot_id);
        call(&self.core, &self.runtime, about, request, verb::prepare_delete, verb::run_delete).await
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Answer<GetVolumeGroupSnapshotResponse> {
        let rpc = Rpc::GetVolumeGroupSnapshot;
        self.check_served(rpc)?;
        let about = Call::new(rpc).volume(&request.get_ref().group_snapshot_id);
        call(&self.core, &self.runtime, about, request, verb::prepare_get, verb::run_get).await
    }
}
