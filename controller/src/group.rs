//! The GroupController service: snapshots of several volumes at one instant.

use crate::core::Core;
use csi_proto::csi::group_controller_server::GroupController;
use csi_proto::csi::*;
use rpc::{Rpc, Runtime};
use std::sync::Arc;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

pub struct GroupControllerService {
    #[expect(dead_code, reason = "no backend takes group snapshots yet")]
    core: Arc<Core>,
    runtime: Runtime,
}

impl GroupControllerService {
    pub(crate) fn new(core: Arc<Core>, runtime: Runtime) -> Self {
        Self { core, runtime }
    }
}

#[tonic::async_trait]
impl GroupController for GroupControllerService {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Answer<GroupControllerGetCapabilitiesResponse> {
        self.runtime.answered(Rpc::GroupControllerGetCapabilities);
        Ok(Response::new(GroupControllerGetCapabilitiesResponse { capabilities: Vec::new() }))
    }

    async fn create_volume_group_snapshot(
        &self,
        _: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Answer<CreateVolumeGroupSnapshotResponse> {
        Err(self.runtime.unimplemented(Rpc::CreateVolumeGroupSnapshot))
    }

    async fn delete_volume_group_snapshot(
        &self,
        _: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Answer<DeleteVolumeGroupSnapshotResponse> {
        Err(self.runtime.unimplemented(Rpc::DeleteVolumeGroupSnapshot))
    }

    async fn get_volume_group_snapshot(
        &self,
        _: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Answer<GetVolumeGroupSnapshotResponse> {
        Err(self.runtime.unimplemented(Rpc::GetVolumeGroupSnapshot))
    }
}
