//! CSI's Node service over any [`volume::Connector`] and [`host::Host`]: staging, publishing, growing, statistics, the
//! node's lives and what to do after a crash. What is true is observed each time; see `docs/architecture.md`.
#![forbid(unsafe_code)]

mod content;
mod crew;
mod expand;
mod grant;
mod health;
mod info;
mod lease;
mod looks;
mod node;
mod observe;
mod ownership;
mod publish;
mod reconcile;
mod register;
mod service;
mod stage;
mod stats;
mod target;
#[cfg(test)]
mod tests;
mod tune;
mod tuner;
mod unpublish;
mod unstage;

pub use reconcile::Reconciled;

use csi_proto::csi::node_server::NodeServer;
use host::file::Dir;
use host::{Effects, Host};
use journal::Journal;
use node::{Life, Node};
use rpc::{Profile, Runtime};
use service::Service;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tuner::Tuner;
use volume::{Attacher, BackendName, Connector, LockTable, NodeId, NodeIdentity, Result};

/// What a node service is made of.
pub struct NodeConfig {
    pub node_id: NodeId,
    /// By the name that volume ids begin with.
    pub connectors: Vec<(BackendName, Arc<dyn Connector>)>,
    pub host: Arc<dyn Host>,
    pub locks: LockTable,
    pub profile: Profile,
    /// Who takes grants for this node.
    pub attacher: Attacher,
    /// Exists, and is kept across restarts of the plugin: the node's identity, its journal, its own staging paths.
    pub state_dir: PathBuf,
    pub effects: Effects,
    /// The cgroups below which workloads run, relative to the root of the hierarchy that has the I/O controller.
    pub io_limit_cgroups: Vec<PathBuf>,
    pub runtime: Runtime,
    /// For one volume at start-up and one backend's registration; calls have the runtime's deadline.
    pub step_deadline: Duration,
}

/// The node service. Clones share everything.
#[derive(Clone)]
pub struct NodeService {
    node: Arc<Node>,
    profile: Profile,
    runtime: Runtime,
}

impl NodeService {
    pub fn new(config: NodeConfig) -> Result<Self> {
        let state = Dir::open(&config.state_dir, config.effects)?;
        let journal = Journal::new(state.ensure_child("journal")?);
        state.create_dir("staging")?;
        let staging_dir = config.host.resolve_parents(&config.state_dir.join("staging"))?;
        let tuner = Tuner::open(state.ensure_child("tuned")?, config.host.as_ref(), config.io_limit_cgroups)?;
        let stage = csi_proto::csi::node_service_capability::rpc::Type::StageUnstageVolume;
        let node = Node {
            id: config.node_id,
            connectors: config.connectors.into_iter().map(|(name, c)| (name.as_str().to_owned(), c)).collect(),
            host: config.host,
            locks: config.locks,
            journal,
            attacher: config.attacher,
            tuner,
            leases: lease::Leases::default(),
            state,
            is_staged_by_caller: config.profile.allows_node(stage),
            staging_dir,
            life: Mutex::new(Life::Starting("it has only just started".to_owned())),
            registering: Mutex::new(()),
            looks: health::looks(),
            step_deadline_ms: u64::try_from(config.step_deadline.as_millis()).unwrap_or(u64::MAX),
        };
        Ok(Self { node: Arc::new(node), profile: config.profile, runtime: config.runtime })
    }

    /// Makes this node known to every backend, and when it was fenced takes away all it had and begins a new life.
    /// Blocks. To be called before serving and then every second or so: a thawed node must notice that it was fenced.
    /// An error is to be logged and tried again; [`NodeService::ready`] says whether the node can serve meanwhile, as
    /// when one of several backends is away.
    pub fn register(&self) -> Result<()> {
        self.node.register()
    }

    /// Leaves a sign of life in one backend, for whoever watches this node from elsewhere; nothing before it is registered.
    /// Blocks for as long as the backend hangs, so each has its own thread for it, and no call waits for that.
    pub fn show_life(&self, backend: &BackendName) -> Result<()> {
        let Ok(identity) = self.node.identity_for_cleaning() else { return Ok(()) };
        let Some(connector) = self.node.connectors.get(backend.as_str()) else { return Ok(()) };
        connector.show_life(&identity)?;
        self.node.leases.renew(backend);
        Ok(())
    }

    /// Stops what is written here to a storage in which no sign of life could be left for as long as its lease is
    /// ([`Connector::lease`]). Blocks. To be called every quarter second, on a thread of its own; `now` is the present.
    pub fn check_leases(&self, now: Instant) {
        self.node.check_leases(now);
    }

    /// Finishes or undoes what an earlier process had begun. Blocks. To be called once, when the node is first
    /// [`NodeService::ready`].
    pub fn reconcile(&self) -> Result<Reconciled> {
        self.node.reconcile()
    }

    /// Applies what has changed of the mutable parameters of the volumes that are connected here, and what new cgroups
    /// need. Blocks. To be called every second or so; what it cannot do is logged once and tried again.
    pub fn tune(&self) {
        self.node.tune();
    }

    /// Whether volumes can be staged and published here; if not, why, and what will change that.
    pub fn ready(&self) -> Result<()> {
        self.node.identity().map(drop)
    }

    /// Who this node is in its present life; the error says why it is nobody.
    pub fn identity(&self) -> Result<NodeIdentity> {
        self.node.identity()
    }

    /// Who this node is or was when it was fenced, and why it does not serve then; the error says why it is nobody.
    pub fn life(&self) -> Result<(NodeIdentity, Option<String>)> {
        let identity = self.node.identity_for_cleaning()?;
        Ok((identity, self.node.identity().err().map(|error| error.chain())))
    }

    pub fn server(&self) -> NodeServer<impl csi_proto::csi::node_server::Node> {
        NodeServer::new(Service { node: self.node.clone(), profile: self.profile, runtime: self.runtime.clone() })
    }
}

impl std::fmt::Debug for NodeService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeService").field("node", &self.node.id).finish_non_exhaustive()
    }
}
