//! The agents of pools in this process: the one that serves this node's, and the connections to those of others.

use crate::config::{AgentSettings, Config, Mode};
use crate::storage::Storage;
use agent::{AgentConfig, AgentServer, Agents, Credentials, Life, LifeState, Role};
use node::NodeService;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use rpc::{Metrics, Runtime};
use std::sync::{Arc, Weak};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use volume::Result;

/// A controller's connections, when it is one and agents are configured.
pub fn connect(config: &Config, storage: &Storage, metrics: &Metrics) -> Result<Option<Arc<Agents>>> {
    let Some(settings) = &config.agent else { return Ok(None) };
    if config.mode == Mode::Node || config.agents.is_empty() {
        return Ok(None);
    }
    let credentials = credentials(config, settings)?;
    let handle = tokio::runtime::Handle::current();
    let local = storage.shared_backends();
    let agents = Arc::new(Agents::new(local, credentials, settings.heartbeat, config.rpc_deadline, handle));
    agents.follow(&config.agents);
    let gauge = Connected(Arc::downgrade(&agents));
    metrics.register(|registry| registry.register_collector(Box::new(gauge)));
    Ok(Some(agents))
}

/// Serves this node's backends, when it is to listen. The node is known and reconciled by now.
pub async fn serve(
    config: &Config,
    storage: &Storage,
    node: Option<&NodeService>,
    runtime: &Runtime,
    stopping: watch::Receiver<bool>,
) -> Result<Option<JoinHandle<()>>> {
    let (Some(settings), Some(node)) = (&config.agent, node.cloned()) else { return Ok(None) };
    let Some(listen) = settings.listen else { return Ok(None) };
    let server = AgentServer::bind(AgentConfig {
        node: config.node_id.clone(),
        listen,
        heartbeat: settings.heartbeat,
        credentials: credentials(config, settings)?,
        backends: storage.shared_backends(),
        identify: Arc::new(move || life(&node)),
        runtime: runtime.clone(),
    })
    .await?;
    tracing::info!(address = %server.address()?, "serving this node's backends to controllers over mutual TLS");
    Ok(Some(tokio::spawn(async move {
        if let Err(error) = server.serve(stopping).await {
            tracing::error!(error = error.chain(), "the agent failed");
        }
    })))
}

/// A node that was fenced begins its next life as soon as nothing is left, so it never waits to be let in.
fn life(node: &NodeService) -> Result<Life> {
    let (identity, problem) = node.life()?;
    let state = if problem.is_none() { LifeState::Running } else { LifeState::CleaningUp };
    Ok(Life { identity, state, problem })
}

/// Of all that this process is.
fn credentials(config: &Config, settings: &AgentSettings) -> Result<Arc<Credentials>> {
    let node = settings.listen.map(|_| Role::Node(config.node_id.clone()));
    let controller = (config.mode != Mode::Node && !config.agents.is_empty()).then_some(Role::Controller);
    let roles: Vec<Role> = node.into_iter().chain(controller).collect();
    let files = settings.files.clone().ok_or_else(|| {
        volume::Error::new(
            volume::ErrorKind::Unsupported,
            "certificates from Kubernetes are not there yet; give agent.ca, agent.cert and agent.key",
        )
    })?;
    Credentials::load(files, &roles)
}

/// `hawser_agent_connected`, read when somebody asks.
#[derive(Debug)]
struct Connected(Weak<Agents>);

impl Collector for Connected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let Some(agents) = self.0.upgrade() else { return Ok(()) };
        let help = "1 if the agent of the node is connected";
        let gauge = ConstGauge::new(0i64);
        let mut family = encoder.encode_descriptor("hawser_agent_connected", help, None, gauge.metric_type())?;
        for state in agents.nodes() {
            let labels = [("node", state.node.as_str())];
            let gauge = ConstGauge::new(i64::from(state.is_connected));
            gauge.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
