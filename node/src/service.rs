//! The Node service of CSI: parses, takes the volume's lock, hands over, replies.

use crate::expand::ExpandRequest;
use crate::health::HealthRequest;
use crate::info::capabilities;
use crate::node::Node;
use crate::publish::PublishRequest;
use crate::stage::StageRequest;
use crate::stats::Usage;
use crate::target::NodePath;
use csi_proto::csi;
use csi_proto::csi::node_service_capability::{Rpc as WireRpc, Type as WireType};
use csi_proto::csi::volume_usage::Unit;
use rpc::{Call, Profile, Rpc, Runtime, Trace, parse};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use volume::{Error, Parameters, Result, VolumeGuard, VolumeId};

type Reply<T> = std::result::Result<Response<T>, Status>;

pub(crate) struct Service {
    pub(crate) node: Arc<Node>,
    pub(crate) profile: Profile,
    pub(crate) runtime: Runtime,
}

impl Service {
    /// Runs `work` under the volume's lock, however its client fares.
    async fn locked<R: Send + 'static, T: Send + 'static>(
        &self,
        call: Call,
        key: impl FnOnce(&R) -> String,
        request: Result<R>,
        work: impl FnOnce(&Node, &VolumeGuard, &R, &mut Trace) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let locked = request.and_then(|request| Ok((self.node.locks.try_lock([key(&request).as_str()])?, request)));
        let (guard, request) = locked.map_err(|error| self.runtime.refuse(&call, &error))?;
        let node = self.node.clone();
        self.runtime
            .run(call, move |trace| {
                let guard = guard;
                work(&node, &guard, &request, trace)
            })
            .await
    }

    fn call(&self, rpc: Rpc, volume_id: &str) -> Call {
        Call::new(rpc).volume(volume_id).node(self.node.id.as_str())
    }
}

#[tonic::async_trait]
impl csi::node_server::Node for Service {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Reply<csi::NodeStageVolumeResponse> {
        let wire = request.into_inner();
        self.runtime.received(Rpc::NodeStageVolume, &wire);
        let call = self.call(Rpc::NodeStageVolume, &wire.volume_id);
        self.locked(call, |r| r.volume.to_string(), stage_request(&wire), Node::stage).await?;
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Reply<csi::NodeUnstageVolumeResponse> {
        let wire = request.into_inner();
        self.runtime.received(Rpc::NodeUnstageVolume, &wire);
        let call = self.call(Rpc::NodeUnstageVolume, &wire.volume_id);
        let parsed = given_back("staging_target_path", &wire.volume_id, &wire.staging_target_path);
        let work = |node: &Node, guard: &VolumeGuard, request: &GivenBack, trace: &mut Trace| match &request.volume {
            Some(id) => node.unstage(guard, id, &request.path, trace),
            None => Ok(()),
        };
        self.locked(call, |request| request.key.clone(), parsed, work).await?;
        Ok(Response::new(csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Reply<csi::NodePublishVolumeResponse> {
        let wire = request.into_inner();
        self.runtime.received(Rpc::NodePublishVolume, &wire);
        let call = self.call(Rpc::NodePublishVolume, &wire.volume_id);
        self.locked(call, |r| r.volume.to_string(), publish_request(&wire), Node::publish).await?;
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Reply<csi::NodeUnpublishVolumeResponse> {
        let wire = request.into_inner();
        self.runtime.received(Rpc::NodeUnpublishVolume, &wire);
        let call = self.call(Rpc::NodeUnpublishVolume, &wire.volume_id);
        let parsed = given_back("target_path", &wire.volume_id, &wire.target_path);
        let work = |node: &Node, guard: &VolumeGuard, request: &GivenBack, trace: &mut Trace| match &request.volume {
            Some(id) => node.unpublish(guard, id, &request.path, trace),
            None => node.remove_unmounted(&request.path.resolve(node.host.as_ref())?),
        };
        self.locked(call, |request| request.key.clone(), parsed, work).await?;
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Reply<csi::NodeGetVolumeStatsResponse> {
        let wire = request.into_inner();
        self.runtime.received(Rpc::NodeGetVolumeStats, &wire);
        let call = self.call(Rpc::NodeGetVolumeStats, &wire.volume_id);
        let parsed = looked_for("volume_path", &wire.volume_id, &wire.volume_path);
        // A lock of its own: statistics hold no mount up, and when a device hangs they do not pile up either.
        let key = |(id, _): &Place| format!("{id}/stats");
        let work =
            |node: &Node, _: &VolumeGuard, (id, path): &Place, trace: &mut Trace| node.volume_stats(id, path, trace);
        let usage = self.locked(call, key, parsed, work).await?;
        Ok(Response::new(csi::NodeGetVolumeStatsResponse { usage: wire_usage(&usage) }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Reply<csi::NodeExpandVolumeResponse> {
        let wire = request.into_inner();
        self.runtime.received(Rpc::NodeExpandVolume, &wire);
        let call = self.call(Rpc::NodeExpandVolume, &wire.volume_id);
        let bytes = self.locked(call, |r| r.volume.to_string(), expand_request(&wire), Node::expand).await?;
        Ok(Response::new(csi::NodeExpandVolumeResponse { capacity_bytes: signed(bytes) }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Reply<csi::NodeGetCapabilitiesResponse> {
        let rpc = |capability| csi::NodeServiceCapability {
            r#type: Some(WireType::Rpc(WireRpc { r#type: i32::from(capability) })),
        };
        self.runtime.answered(Rpc::NodeGetCapabilities);
        let capabilities = capabilities(self.profile).into_iter().map(rpc).collect();
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<csi::NodeGetInfoRequest>) -> Reply<csi::NodeGetInfoResponse> {
        let (node, profile) = (self.node.clone(), self.profile);
        let call = Call::new(Rpc::NodeGetInfo).node(self.node.id.as_str());
        let info = self.runtime.run(call, move |_| node.info(profile)).await?;
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: info.node.to_string(),
            max_volumes_per_node: signed(info.max_volumes.unwrap_or(0)),
            accessible_topology: info.topology.map(|segments| csi::Topology { segments: segments.0 }),
        }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Reply<csi::NodeGetVolumeHealthResponse> {
        let wire = request.into_inner();
        self.runtime.received(Rpc::NodeGetVolumeHealth, &wire);
        let call = self.call(Rpc::NodeGetVolumeHealth, &wire.volume_id);
        let shared = self.node.clone();
        // A lock of its own, as for statistics.
        let key = |request: &HealthRequest| format!("{}/health", request.volume);
        let work = move |_: &Node, _: &VolumeGuard, request: &HealthRequest, trace: &mut Trace| {
            shared.volume_health(request, trace)
        };
        let health = self.locked(call, key, health_request(&wire), work).await?;
        Ok(Response::new(csi::NodeGetVolumeHealthResponse { volume_health: Some(rpc::health::volume(health)) }))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Reply<csi::NodeGetStorageHealthResponse> {
        let node = self.node.clone();
        let call = Call::new(Rpc::NodeGetStorageHealth).node(self.node.id.as_str());
        let problems = self.runtime.run(call, move |trace| Ok(node.storage_health(trace))).await?;
        Ok(Response::new(rpc::health::storage(problems)))
    }
}

/// A volume at a path.
type Place = (VolumeId, NodePath);

// In each request the id comes last: one of another driver is NOT_FOUND, and that may be said only of a request that is
// otherwise complete and right.

fn place(field: &str, volume_id: &str, path: &str) -> Result<Place> {
    parse::required(&[("volume_id", volume_id), (field, path)])?;
    let path = NodePath::parse(field, path)?;
    Ok((VolumeId::parse(volume_id)?, path))
}

/// Where a call looks for a volume that is there already: at a path that none can have there is none (CSI 1.13,
/// NodeGetVolumeStats and NodeExpandVolume: NOT_FOUND is also for a volume that is not at `volume_path`).
fn looked_for(field: &str, volume_id: &str, path: &str) -> Result<Place> {
    parse::required(&[("volume_id", volume_id), (field, path)])?;
    let absent = |error: Error| Error::not_found(format!("the volume is not there: {}", error.chain()));
    let path = NodePath::parse(field, path).map_err(absent)?;
    Ok((VolumeId::parse(volume_id)?, path))
}

/// What NodeUnpublishVolume and NodeUnstageVolume take away.
struct GivenBack {
    /// `None`: an id that this driver cannot have made. Nothing of it can be here, and Swarm and Nomad repeat the call
    /// until it is OK.
    volume: Option<VolumeId>,
    path: NodePath,
    key: String,
}

fn given_back(field: &str, volume_id: &str, path: &str) -> Result<GivenBack> {
    parse::required(&[("volume_id", volume_id), (field, path)])?;
    let path = NodePath::parse(field, path)?;
    Ok(GivenBack { volume: VolumeId::parse(volume_id).ok(), path, key: volume_id.to_owned() })
}

fn stage_request(wire: &csi::NodeStageVolumeRequest) -> Result<StageRequest> {
    let (field, path) = ("staging_target_path", &wire.staging_target_path);
    parse::required(&[("volume_id", &wire.volume_id), (field, path)])?;
    let capability = parse::capability(wire.volume_capability.as_ref())?;
    let context = parse::publish_context(&wire.publish_context)?;
    let parameters = volume_context(&wire.volume_context)?;
    let (volume, staging_target_path) = place(field, &wire.volume_id, path)?;
    Ok(StageRequest { volume, context, staging_target_path, capability, parameters })
}

fn publish_request(wire: &csi::NodePublishVolumeRequest) -> Result<PublishRequest> {
    let (field, path) = ("target_path", &wire.target_path);
    parse::required(&[("volume_id", &wire.volume_id), (field, path)])?;
    let capability = parse::capability(wire.volume_capability.as_ref())?;
    let context = parse::publish_context(&wire.publish_context)?;
    let parameters = volume_context(&wire.volume_context)?;
    let staging_target_path = NodePath::parse_optional("staging_target_path", &wire.staging_target_path)?;
    let (volume, target_path) = place(field, &wire.volume_id, path)?;
    let is_read_only = wire.readonly;
    Ok(PublishRequest { volume, context, staging_target_path, target_path, capability, is_read_only, parameters })
}

fn expand_request(wire: &csi::NodeExpandVolumeRequest) -> Result<ExpandRequest> {
    let (field, path) = ("volume_path", &wire.volume_path);
    parse::required(&[("volume_id", &wire.volume_id), (field, path)])?;
    let size = parse::size(wire.capacity_range.as_ref())?;
    let capability = wire.volume_capability.as_ref().map(|one| parse::capability(Some(one))).transpose()?;
    let staging_target_path = NodePath::parse_optional("staging_target_path", &wire.staging_target_path)?;
    let (volume, volume_path) = looked_for(field, &wire.volume_id, path)?;
    Ok(ExpandRequest { volume, volume_path, staging_target_path, size, capability })
}

fn health_request(wire: &csi::NodeGetVolumeHealthRequest) -> Result<HealthRequest> {
    parse::required(&[("volume_id", &wire.volume_id)])?;
    let volume_publish_path = NodePath::parse_optional("volume_publish_path", &wire.volume_publish_path)?;
    let staging_target_path = NodePath::parse_optional("staging_target_path", &wire.staging_target_path)?;
    Ok(HealthRequest { volume: VolumeId::parse(&wire.volume_id)?, volume_publish_path, staging_target_path })
}

/// Without any of our keys the volume's record says what they would.
fn volume_context(wire: &BTreeMap<String, String>) -> Result<Option<Parameters>> {
    let parsed = parse::volume_context(wire)?;
    Ok((parsed != Parameters::default()).then_some(parsed))
}

fn wire_usage(usage: &Usage) -> Vec<csi::VolumeUsage> {
    let line = |unit: Unit, total, available, used| csi::VolumeUsage {
        unit: i32::from(unit),
        total: signed(total),
        available: signed(available),
        used: signed(used),
    };
    match usage {
        Usage::Block { total_bytes } => vec![line(Unit::Bytes, *total_bytes, 0, 0)],
        Usage::FileSystem(stats) => {
            let mut lines = vec![line(Unit::Bytes, stats.total_bytes, stats.available_bytes, stats.used_bytes)];
            // btrfs makes inodes as they are needed and counts none.
            if stats.total_inodes > 0 {
                lines.push(line(Unit::Inodes, stats.total_inodes, stats.available_inodes, stats.used_inodes));
            }
            lines
        }
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
