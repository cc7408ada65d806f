//! Services that are there but that no backend has capabilities for yet: not advertised, and answered honestly.

use csi_proto::csi::group_controller_server::GroupController;
use csi_proto::csi::snapshot_metadata_server::SnapshotMetadata;
use csi_proto::csi::*;
use rpc::{Rpc, Runtime};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// Snapshots of several volumes at one instant.
pub struct GroupControllerService {
    runtime: Runtime,
}

/// Allocated and changed blocks of snapshots.
pub struct SnapshotMetadataService {
    runtime: Runtime,
}

impl GroupControllerService {
    pub fn new(runtime: Runtime) -> Self {
        Self { runtime }
    }
}

impl SnapshotMetadataService {
    pub fn new(runtime: Runtime) -> Self {
        Self { runtime }
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

#[tonic::async_trait]
impl SnapshotMetadata for SnapshotMetadataService {
    type GetMetadataAllocatedStream = BoxStream<GetMetadataAllocatedResponse>;
    type GetMetadataDeltaStream = BoxStream<GetMetadataDeltaResponse>;

    async fn get_metadata_allocated(
        &self,
        _: Request<GetMetadataAllocatedRequest>,
    ) -> Answer<Self::GetMetadataAllocatedStream> {
        Err(self.runtime.unimplemented(Rpc::GetMetadataAllocated))
    }

    async fn get_metadata_delta(&self, _: Request<GetMetadataDeltaRequest>) -> Answer<Self::GetMetadataDeltaStream> {
        Err(self.runtime.unimplemented(Rpc::GetMetadataDelta))
    }
}
