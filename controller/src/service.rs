//! The gRPC face: each call is logged, prepared, run and answered.

use crate::core::Core;
use crate::{GroupControllerService, SnapshotMetadataService};
use crate::{capabilities, capacity, create, delete, expand, health, list, modify, publish, snapshot, validate};
use csi_proto::csi::controller_server::Controller;
use csi_proto::csi::*;
use rpc::{Call, Profile, Rpc, Runtime, Trace};
use std::fmt::Debug;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use volume::{Attacher, Backend, Backends, Result};

type Answer<T> = std::result::Result<Response<T>, Status>;

pub struct ControllerService {
    core: Arc<Core>,
    runtime: Runtime,
    attacher: Attacher,
}

impl ControllerService {
    /// The first backend is the one for volumes whose parameters name none. `InvalidArgument` when two share a name.
    pub fn new(backends: Vec<Arc<dyn Backend>>, profile: Profile, runtime: Runtime) -> Result<Self> {
        Ok(Self { core: Arc::new(Core::new(backends, profile)?), runtime, attacher: Attacher::Controller })
    }

    /// Over backends that come and go.
    pub fn over(backends: Arc<dyn Backends>, profile: Profile, runtime: Runtime) -> Self {
        Self { core: Arc::new(Core::over(backends, profile)), runtime, attacher: Attacher::Controller }
    }

    /// Who takes grants: what is advertised follows from it.
    #[must_use]
    pub fn attached_by(self, attacher: Attacher) -> Self {
        Self { attacher, ..self }
    }

    /// The GroupController service over the same backends and locks.
    pub fn group(&self) -> GroupControllerService {
        GroupControllerService::new(self.core.clone(), self.runtime.clone())
    }

    /// The SnapshotMetadata service over the same backends.
    pub fn metadata(&self) -> SnapshotMetadataService {
        SnapshotMetadataService::new(self.core.clone(), self.runtime.clone())
    }

    async fn call<Q, P, R>(
        &self,
        call: Call,
        request: Request<Q>,
        prepare: impl FnOnce(&Core, Q) -> Result<P>,
        run: impl FnOnce(&Core, P, &mut Trace) -> Result<R> + Send + 'static,
    ) -> Answer<R>
    where
        Q: Debug,
        P: Send + 'static,
        R: Send + 'static,
    {
        crate::call::call(&self.core, &self.runtime, call, request, prepare, run).await
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<CreateVolumeResponse> {
        let call = Call::new(Rpc::CreateVolume).volume(&request.get_ref().name);
        self.call(call, request, create::prepare, create::run).await
    }

    async fn delete_volume(&self, request: Request<DeleteVolumeRequest>) -> Answer<DeleteVolumeResponse> {
        let call = Call::new(Rpc::DeleteVolume).volume(&request.get_ref().volume_id);
        self.call(call, request, delete::prepare, delete::run).await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Answer<ControllerPublishVolumeResponse> {
        let asked = request.get_ref();
        let call = Call::new(Rpc::ControllerPublishVolume).volume(&asked.volume_id).node(&asked.node_id);
        self.call(call, request, publish::prepare, publish::run).await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Answer<ControllerUnpublishVolumeResponse> {
        let asked = request.get_ref();
        let call = Call::new(Rpc::ControllerUnpublishVolume).volume(&asked.volume_id).node(&asked.node_id);
        self.call(call, request, publish::prepare_unpublish, publish::run_unpublish).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<ValidateVolumeCapabilitiesResponse> {
        let call = Call::new(Rpc::ValidateVolumeCapabilities).volume(&request.get_ref().volume_id);
        self.call(call, request, validate::prepare, validate::run).await
    }

    async fn list_volumes(&self, request: Request<ListVolumesRequest>) -> Answer<ListVolumesResponse> {
        self.call(Call::new(Rpc::ListVolumes), request, list::prepare, list::run).await
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Answer<ControllerGetVolumeResponse> {
        let call = Call::new(Rpc::ControllerGetVolume).volume(&request.get_ref().volume_id);
        self.call(call, request, list::prepare_get, list::run_get).await
    }

    async fn get_capacity(&self, request: Request<GetCapacityRequest>) -> Answer<GetCapacityResponse> {
        self.call(Call::new(Rpc::GetCapacity), request, capacity::prepare, capacity::run).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Answer<ControllerGetCapabilitiesResponse> {
        self.runtime.answered(Rpc::ControllerGetCapabilities);
        Ok(Response::new(capabilities::of(&self.core, self.attacher)))
    }

    async fn create_snapshot(&self, request: Request<CreateSnapshotRequest>) -> Answer<CreateSnapshotResponse> {
        let call = Call::new(Rpc::CreateSnapshot).volume(&request.get_ref().source_volume_id);
        self.call(call, request, snapshot::prepare_create, snapshot::run_create).await
    }

    async fn delete_snapshot(&self, request: Request<DeleteSnapshotRequest>) -> Answer<DeleteSnapshotResponse> {
        let call = Call::new(Rpc::DeleteSnapshot).volume(&request.get_ref().snapshot_id);
        self.call(call, request, snapshot::prepare_delete, snapshot::run_delete).await
    }

    async fn list_snapshots(&self, request: Request<ListSnapshotsRequest>) -> Answer<ListSnapshotsResponse> {
        self.call(Call::new(Rpc::ListSnapshots), request, snapshot::prepare_list, snapshot::run_list).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Answer<ControllerExpandVolumeResponse> {
        let call = Call::new(Rpc::ControllerExpandVolume).volume(&request.get_ref().volume_id);
        self.call(call, request, expand::prepare, expand::run).await
    }

    async fn get_snapshot(&self, request: Request<GetSnapshotRequest>) -> Answer<GetSnapshotResponse> {
        let call = Call::new(Rpc::GetSnapshot).volume(&request.get_ref().snapshot_id);
        self.call(call, request, snapshot::prepare_get, snapshot::run_get).await
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Answer<ControllerModifyVolumeResponse> {
        let call = Call::new(Rpc::ControllerModifyVolume).volume(&request.get_ref().volume_id);
        self.call(call, request, modify::prepare, modify::run).await
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<ControllerListVolumeHealthRequest>,
    ) -> Answer<ControllerListVolumeHealthResponse> {
        let call = Call::new(Rpc::ControllerListVolumeHealth);
        self.call(call, request, health::prepare_list, health::run_list).await
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<ControllerGetVolumeHealthRequest>,
    ) -> Answer<ControllerGetVolumeHealthResponse> {
        let call = Call::new(Rpc::ControllerGetVolumeHealth).volume(&request.get_ref().volume_id);
        self.call(call, request, health::prepare_get, health::run_get).await
    }
}
