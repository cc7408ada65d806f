//! The agents of pools in this process: the one that serves this node's, and the connections to those of others.

use crate::config::{AgentSettings, Config, Mode};
use crate::storage::Storage;
use agent::{AgentConfig, AgentServer, Agents, Credentials, Life, LifeState, Role};
use kubernetes::{Names, NodeCertificate};
use node::NodeService;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use rpc::{Metrics, Runtime};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use volume::{Error, Result};

/// Where the agent's address is taken, say.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// A controller's connections, when it is one and agents are configured or to be found.
pub fn connect(config: &Config, storage: &Storage, metrics: &Metrics) -> Result<Option<Arc<Agents>>> {
    let Some(settings) = &config.agent else { return Ok(None) };
    let names = config.kubernetes.clone();
    if config.mode == Mode::Node || (config.agents.is_empty() && names.is_none()) {
        return Ok(None);
    }
    let credentials = match (&settings.files, &names) {
        (None, Some(names)) => Credentials::awaited(&format!("the Secret {} is to be read", names.authority())),
        _ => given(config, settings)?,
    };
    let handle = tokio::runtime::Handle::current();
    let local = storage.shared_backends();
    let agents =
        Arc::new(Agents::new(local, Arc::clone(&credentials), settings.heartbeat, config.rpc_deadline, handle));
    match names {
        None => agents.follow(&config.agents),
        Some(names) => discover(names, settings, credentials, &agents)?,
    }
    let gauge = Connected(Arc::downgrade(&agents));
    metrics.register(|registry| registry.register_collector(Box::new(gauge)));
    Ok(Some(agents))
}

/// Agents are the pods of nodes; without files of its own the controller is also who signs certificates.
fn discover(names: Names, settings: &AgentSettings, credentials: Arc<Credentials>, agents: &Arc<Agents>) -> Result<()> {
    let client = kubernetes::connect()?;
    agents.expect(vec!["the list of this installation's pods".to_owned()]);
    if settings.files.is_none() {
        let (send, signers) = watch::channel(None);
        tokio::spawn(kubernetes::sign_requests(client.clone(), names.clone(), signers));
        tokio::spawn(kubernetes::keep_authority(client.clone(), names.clone(), credentials, send));
    }
    tokio::spawn(kubernetes::follow_pods(client, names, Arc::downgrade(agents)));
    Ok(())
}

/// Serves this node's backends, when it is to listen. The node is known and reconciled by now. Where its certificate is
/// yet to come, that is waited for beside everything else: the node's own volumes need none.
pub async fn serve(
    config: &Config,
    storage: &Storage,
    node: Option<&NodeService>,
    runtime: &Runtime,
    stopping: watch::Receiver<bool>,
) -> Result<Option<JoinHandle<()>>> {
    let (Some(settings), Some(node)) = (&config.agent, node.cloned()) else { return Ok(None) };
    let Some(listen) = settings.listen else { return Ok(None) };
    let (node_id, heartbeat, backends, runtime) =
        (config.node_id.clone(), settings.heartbeat, storage.shared_backends(), runtime.clone());
    let doubted = Arc::new(Notify::new());
    let heard = Arc::clone(&doubted);
    let bind = move |credentials| {
        let node = node.clone();
        AgentServer::bind(AgentConfig {
            node: node_id.clone(),
            listen,
            heartbeat,
            credentials,
            backends: backends.clone(),
            identify: Arc::new(move || life(&node)),
            runtime: runtime.clone(),
            doubted: Arc::clone(&doubted),
        })
    };
    let (None, Some(names)) = (&settings.files, config.kubernetes.clone()) else {
        let server = bind(given(config, settings)?).await?;
        return Ok(Some(tokio::spawn(run(server, stopping))));
    };
    let certificate = NodeCertificate::new(names, config.node_id.clone(), &config.state_dir);
    let own = [Role::Node(config.node_id.clone())];
    let files = certificate.files().clone();
    let kept = certificate.kept();
    let (send, is_there) = watch::channel(kept.is_ok());
    tokio::spawn(certificate.keep(send, heard));
    if kept.is_ok() {
        let server = bind(Credentials::load(files, &own)?).await?;
        return Ok(Some(tokio::spawn(run(server, stopping))));
    }
    Ok(Some(tokio::spawn(async move {
        let (mut is_there, mut stop) = (is_there, stopping.clone());
        tokio::select! {
            _ = is_there.wait_for(|is_there| *is_there) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        loop {
            let bound = match Credentials::load(files.clone(), &own) {
                Ok(credentials) => bind(credentials).await,
                Err(error) => Err(error),
            };
            match bound {
                Ok(server) => return run(server, stopping).await,
                Err(error) => tracing::error!(error = error.chain(), "the agent cannot be served; trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(LISTEN_AGAIN) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    })))
}

/// A node that was fenced begins its next life as soon as nothing is left, so it never waits to be let in.
fn life(node: &NodeService) -> Result<Life> {
    let (identity, problem) = node.life()?;
    let state = if problem.is_none() { LifeState::Running } else { LifeState::CleaningUp };
    Ok(Life { identity, state, problem })
}

async fn run(server: AgentServer, stopping: watch::Receiver<bool>) {
    if let Ok(address) = server.address() {
        tracing::info!(%address, "serving this node's backends to controllers over mutual TLS");
    }
    if let Err(error) = server.serve(stopping).await {
        tracing::error!(error = error.chain(), "the agent failed");
    }
}

/// Of all that this process is, in the files that are configured.
fn given(config: &Config, settings: &AgentSettings) -> Result<Arc<Credentials>> {
    let node = settings.listen.map(|_| Role::Node(config.node_id.clone()));
    let is_controller = config.mode != Mode::Node && (!config.agents.is_empty() || config.kubernetes.is_some());
    let roles: Vec<Role> = node.into_iter().chain(is_controller.then_some(Role::Controller)).collect();
    let files = settings.files.clone().ok_or_else(|| Error::internal("no files of certificates are configured"))?;
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
