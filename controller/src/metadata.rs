//! The SnapshotMetadata service: allocated and changed blocks of snapshots, as streams.

use crate::core::Core;
use csi_proto::csi::snapshot_metadata_server::SnapshotMetadata;
use csi_proto::csi::*;
use rpc::{Rpc, Runtime};
use std::sync::Arc;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

pub struct SnapshotMetadataService {
    #[expect(dead_code, reason = "no backend knows changed blocks yet")]
    core: Arc<Core>,
    runtime: Runtime,
}

impl SnapshotMetadataService {
    pub(crate) fn new(core: Arc<Core>, runtime: Runtime) -> Self {
        Self { core, runtime }
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
