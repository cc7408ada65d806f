//! What the driver says of itself, and what of it follows for the load.

use super::steps::Step;
use crate::cli::BenchArgs;
use crate::client::{Client, refused};
use csi_proto::csi;
use csi_proto::csi::controller_service_capability::Type as ControllerType;
use csi_proto::csi::controller_service_capability::rpc::Type as ControllerRpc;
use csi_proto::csi::node_service_capability::Type as NodeType;
use csi_proto::csi::node_service_capability::rpc::Type as NodeRpc;
use csi_proto::csi::plugin_capability::Type as PluginType;
use csi_proto::csi::plugin_capability::service::Type as PluginService;
use std::time::{Duration, Instant};
use volume::{Error, ErrorKind, Result};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// A driver under load.
pub struct Target {
    pub name: String,
    pub version: String,
    pub node_id: String,
    /// The node's, when the driver has volumes that are not everywhere.
    pub topology: Option<csi::Topology>,
    /// The calls that bring a volume up, in their order.
    pub up: Vec<Step>,
}

impl Target {
    pub async fn ask(controller: &Client, node: &Client, args: &BenchArgs) -> Result<Self> {
        for client in [controller, node] {
            wait_ready(client, args).await?;
        }
        let info = plugin(controller).await?;
        let of_node = plugin(node).await?;
        if info.name != of_node.name {
            return Err(Error::invalid(format!(
                "the endpoints are of two drivers: {} and {}; give those of one",
                info.name, of_node.name
            )));
        }
        let services = services(controller).await?;
        let calls = controller_calls(controller).await?;
        if !calls.contains(&ControllerRpc::CreateDeleteVolume) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} does not create volumes (no CREATE_DELETE_VOLUME), so there is nothing to load", info.name),
            ));
        }
        let node_info = node.node().node_get_info(csi::NodeGetInfoRequest {}).await;
        let node_info = node_info.map_err(|status| refused("NodeGetInfo", &status))?.into_inner();
        refuse_too_many(&node_info, args)?;
        let mut up = vec![Step::Create];
        if calls.contains(&ControllerRpc::PublishUnpublishVolume) {
            up.push(Step::ControllerPublish);
        }
        if node_calls(node).await?.contains(&NodeRpc::StageUnstageVolume) {
            up.push(Step::NodeStage);
        }
        up.push(Step::NodePublish);
        let constrained = services.contains(&PluginService::VolumeAccessibilityConstraints);
        Ok(Self {
            name: info.name,
            version: info.vendor_version,
            node_id: node_info.node_id,
            topology: node_info.accessible_topology.filter(|_| constrained),
            up,
        })
    }

    pub fn has(&self, step: Step) -> bool {
        self.up.contains(&step)
    }
}

async fn wait_ready(client: &Client, args: &BenchArgs) -> Result<()> {
    let end = Instant::now() + READY_WITHIN.min(Duration::from_secs(args.timeout_s));
    while !client.is_ready().await {
        if Instant::now() > end {
            // The reason, which is_ready does not give.
            let probed = client.identity().probe(csi::ProbeRequest {}).await;
            let why = probed.err().map_or_else(|| "it is not ready".to_owned(), |status| status.message().to_owned());
            let message = format!("no driver is ready at {}: {why}", args.endpoint);
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn plugin(client: &Client) -> Result<csi::GetPluginInfoResponse> {
    let answer = client.identity().get_plugin_info(csi::GetPluginInfoRequest {}).await;
    Ok(answer.map_err(|status| refused("GetPluginInfo", &status))?.into_inner())
}

async fn services(client: &Client) -> Result<Vec<PluginService>> {
    let answer = client.identity().get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await;
    let answer = answer.map_err(|status| refused("GetPluginCapabilities", &status))?.into_inner();
    let services = answer.capabilities.into_iter().filter_map(|capability| match capability.r#type {
        Some(PluginType::Service(service)) => Some(service.r#type()),
        _ => None,
    });
    Ok(services.collect())
}

async fn controller_calls(client: &Client) -> Result<Vec<ControllerRpc>> {
    let answer = client.controller().controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {}).await;
    let answer = answer.map_err(|status| refused("ControllerGetCapabilities", &status))?.into_inner();
    let calls = answer
        .capabilities
        .into_iter()
        .filter_map(|capability| capability.r#type.map(|ControllerType::Rpc(rpc)| rpc.r#type()));
    Ok(calls.collect())
}

async fn node_calls(client: &Client) -> Result<Vec<NodeRpc>> {
    let answer = client.node().node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await;
    let answer = answer.map_err(|status| refused("NodeGetCapabilities", &status))?.into_inner();
    let calls = answer
        .capabilities
        .into_iter()
        .filter_map(|capability| capability.r#type.map(|NodeType::Rpc(rpc)| rpc.r#type()));
    Ok(calls.collect())
}

/// CSI: `max_volumes_per_node`, 0 or less when there is no limit.
fn refuse_too_many(node: &csi::NodeGetInfoResponse, args: &BenchArgs) -> Result<()> {
    if (1..i64::from(args.volumes)).contains(&node.max_volumes_per_node) {
        return Err(Error::invalid(format!(
            "node {} takes at most {} volumes and {} are asked for",
            node.node_id, node.max_volumes_per_node, args.volumes
        )));
    }
    Ok(())
}
