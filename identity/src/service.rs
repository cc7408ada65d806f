//! Who the plugin is, what it can do, whether it is ready.

use crate::{NAME, Readiness, VERSION};
use csi_proto::csi::identity_server::Identity;
use csi_proto::csi::plugin_capability::service::Type as ServiceType;
use csi_proto::csi::plugin_capability::volume_expansion::Type as ExpansionType;
use csi_proto::csi::plugin_capability::{Service, Type, VolumeExpansion};
use csi_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};
use rpc::{Profile, Rpc, Runtime};
use std::sync::Arc;
use tonic::{Request, Response, Status};
use volume::Backend;

/// What this process serves and its storage can do; the plugin's capabilities follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plugin {
    pub profile: Profile,
    /// Whether the Controller service is served anywhere under this name.
    pub has_controller: bool,
    /// Whether some volumes can be reached from some nodes only.
    pub has_topology: bool,
    pub can_expand: bool,
    pub has_snapshots: bool,
    pub has_groups: bool,
    /// Whether the SnapshotMetadata service answers for some storage.
    pub has_changed_blocks: bool,
}

impl Plugin {
    pub fn of(profile: Profile, has_controller: bool, backends: &[Arc<dyn Backend>]) -> Self {
        Self {
            profile,
            has_controller,
            // A backend that cannot tell now is taken for one with topology: too strict harms nobody.
            has_topology: backends.iter().any(|b| b.topology().map_or(true, |places| !places.is_empty())),
            can_expand: backends.iter().any(|b| b.expand().is_some()),
            has_snapshots: backends.iter().any(|b| b.snapshots().is_some()),
            has_groups: backends.iter().any(|b| b.group_snapshots().is_some()),
            has_changed_blocks: has_controller && backends.iter().any(|b| b.changed_blocks().is_some()),
        }
    }

    pub fn capabilities(&self) -> Vec<PluginCapability> {
        let services = [
            (ServiceType::ControllerService, self.has_controller),
            (ServiceType::VolumeAccessibilityConstraints, self.has_topology),
            (ServiceType::GroupControllerService, self.has_controller && self.has_groups),
            (ServiceType::SnapshotAccessibilityConstraints, self.has_topology && self.has_snapshots),
            (ServiceType::SnapshotMetadataService, self.has_changed_blocks),
        ];
        let services = services
            .into_iter()
            .filter(|&(service, there)| there && self.profile.allows_plugin(service))
            .map(|(service, _)| Type::Service(Service { r#type: service.into() }));
        // ONLINE: a volume in use is grown; one that is not in use as well.
        let expansion = (self.can_expand && self.profile.allows_expansion())
            .then(|| Type::VolumeExpansion(VolumeExpansion { r#type: ExpansionType::Online.into() }));
        services.chain(expansion).map(|r#type| PluginCapability { r#type: Some(r#type) }).collect()
    }
}

pub struct IdentityService {
    plugin: Box<dyn Fn() -> Plugin + Send + Sync>,
    readiness: Readiness,
    runtime: Runtime,
}

impl IdentityService {
    pub fn new(plugin: Plugin, readiness: Readiness, runtime: Runtime) -> Self {
        Self::following(move || plugin, readiness, runtime)
    }

    /// `plugin` is asked anew for every answer: backends of agents are known only once these have answered.
    pub fn following(
        plugin: impl Fn() -> Plugin + Send + Sync + 'static,
        readiness: Readiness,
        runtime: Runtime,
    ) -> Self {
        Self { plugin: Box::new(plugin), readiness, runtime }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        self.runtime.answered(Rpc::GetPluginInfo);
        Ok(Response::new(GetPluginInfoResponse {
            name: NAME.to_owned(),
            vendor_version: VERSION.to_owned(),
            manifest: [("orchestrator".to_owned(), (self.plugin)().profile.to_string())].into(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        self.runtime.answered(Rpc::GetPluginCapabilities);
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities: (self.plugin)().capabilities() }))
    }

    /// Not ready is an answer, never an error: Swarm's client stays broken after a failed first Probe.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let ready = self.readiness.observe().await.is_ok();
        self.runtime.answered(Rpc::Probe);
        Ok(Response::new(ProbeResponse { ready: Some(ready) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use csi_proto::csi::identity_client::IdentityClient;
    use csi_proto::csi::identity_server::IdentityServer;
    use rpc::Metrics;
    use std::time::Duration;
    use tonic::transport::{Endpoint, Server};
    use volume::Error;

    fn service(plugin: Plugin, check: impl Fn() -> volume::Result<()> + Send + Sync + 'static) -> IdentityService {
        let readiness = Readiness::new(Arc::new(check), Duration::from_millis(500));
        IdentityService::new(plugin, readiness, Runtime::new(Metrics::new(), Runtime::DEFAULT_DEADLINE))
    }

    const FULL: Plugin = Plugin {
        profile: Profile::Kubernetes,
        has_controller: true,
        has_topology: true,
        can_expand: true,
        has_snapshots: true,
        has_groups: true,
        has_changed_blocks: true,
    };

    #[test]
    fn capabilities_follow() {
        let names = |plugin: Plugin| {
            let name = |capability: PluginCapability| match capability.r#type.unwrap() {
                Type::Service(service) => service.r#type().as_str_name(),
                Type::VolumeExpansion(expansion) => expansion.r#type().as_str_name(),
            };
            plugin.capabilities().into_iter().map(name).collect::<Vec<_>>()
        };
        let all = [
            "CONTROLLER_SERVICE",
            "VOLUME_ACCESSIBILITY_CONSTRAINTS",
            "GROUP_CONTROLLER_SERVICE",
            "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS",
            "SNAPSHOT_METADATA_SERVICE",
            "ONLINE",
        ];
        let all_but = |missing: &[&str]| all.into_iter().filter(|name| !missing.contains(name)).collect::<Vec<_>>();
        assert_eq!(names(FULL), all);
        assert_eq!(names(Plugin { profile: Profile::Nomad, ..FULL }), all_but(&[all[2], all[3], all[4]]));
        assert_eq!(names(Plugin { has_groups: false, ..FULL }), all_but(&[all[2]]));
        assert_eq!(names(Plugin { has_changed_blocks: false, ..FULL }), all_but(&[all[4]]));
        assert_eq!(names(Plugin { has_snapshots: false, has_groups: false, ..FULL }), all_but(&[all[2], all[3]]));
        assert_eq!(names(Plugin { profile: Profile::Swarm, ..FULL }), all[..1]);
        let (has_controller, has_topology, can_expand, has_changed_blocks) = (false, false, false, false);
        let bare = Plugin { has_controller, has_topology, can_expand, has_changed_blocks, ..FULL };
        assert!(names(bare).is_empty());
    }

    #[tokio::test]
    async fn probe_never_fails() {
        let healthy = service(FULL, || Ok(()));
        let probed = healthy.probe(Request::new(ProbeRequest {})).await.unwrap().into_inner();
        assert_eq!(probed.ready, Some(true));
        let broken = service(FULL, || Err(Error::internal("the pool is gone")));
        let probed = broken.probe(Request::new(ProbeRequest {})).await.unwrap().into_inner();
        assert_eq!(probed.ready, Some(false));
    }

    #[tokio::test]
    async fn over_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let (incoming, _file) = rpc::bind(&path).await.unwrap();
        let server = Server::builder().add_service(IdentityServer::new(service(FULL, || Ok(()))));
        let serving = tokio::spawn(server.serve_with_incoming(incoming));
        let channel = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap();
        let mut client = IdentityClient::new(channel);
        let info = client.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.name, "csi.hawser.dev");
        assert!(!info.vendor_version.is_empty());
        assert_eq!(client.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
        serving.abort();
    }
}
