//! Agents and controllers of one process, over real connections on the loopback address.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic, reason = "helpers of several tests")]

use agent::{AgentAddress, AgentConfig, AgentServer, Agents, Authority, Credentials, NodeState, Role, Validity};
use rpc::{Metrics, Runtime};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use volume::{
    Backend, FsType, Incarnation, NodeId, NodeIdentity, SizeRange, VolumeId, VolumeKind, VolumeName, VolumeSpec,
};

pub const HEARTBEAT: Duration = Duration::from_millis(50);
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn node(id: &str) -> NodeId {
    NodeId::parse(id).unwrap()
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn credentials(dir: &Path, name: &str, roles: &[Role]) -> Arc<Credentials> {
    credentials_valid(dir, name, roles, Validity::days(1))
}

pub fn credentials_valid(dir: &Path, name: &str, roles: &[Role], validity: Validity) -> Arc<Credentials> {
    let files = Authority::ensure(dir).unwrap().issue(dir, name, roles, validity).unwrap();
    Credentials::load(files, &[]).unwrap()
}

/// An agent that serves until it is dropped.
pub struct Served {
    pub address: SocketAddr,
    pub task: tokio::task::JoinHandle<()>,
    /// As [`AgentConfig::doubted`].
    pub doubted: Arc<Notify>,
    stop: watch::Sender<bool>,
}

impl Served {
    pub async fn start(
        id: &str,
        listen: SocketAddr,
        credentials: Arc<Credentials>,
        backends: Vec<Arc<dyn Backend>>,
    ) -> Self {
        Self::start_with_deadline(id, listen, credentials, backends, DEADLINE).await
    }

    pub async fn start_with_deadline(
        id: &str,
        listen: SocketAddr,
        credentials: Arc<Credentials>,
        backends: Vec<Arc<dyn Backend>>,
        deadline: Duration,
    ) -> Self {
        let identity =
            NodeIdentity { id: node(id), incarnation: Incarnation::new_random(), boot_id: "boot".to_owned() };
        let doubted = Arc::new(Notify::new());
        let server = AgentServer::bind(AgentConfig {
            node: node(id),
            listen,
            heartbeat: HEARTBEAT,
            credentials,
            backends,
            identify: Arc::new(move || Ok(identity.clone().into())),
            runtime: Runtime::new(Metrics::new(), deadline),
            doubted: Arc::clone(&doubted),
        })
        .await
        .unwrap();
        let address = server.address().unwrap();
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(async move { server.serve(stopping).await.unwrap() });
        Self { address, task, doubted, stop }
    }

    /// As a killed process: its connections are closed without a word.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        drop(self.stop);
    }

    pub async fn stop(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap();
    }
}

pub fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub fn agents(credentials: Arc<Credentials>, addresses: &[(&str, SocketAddr)]) -> Agents {
    let agents = Agents::new(Vec::new(), credentials, HEARTBEAT, DEADLINE, tokio::runtime::Handle::current());
    let addresses: Vec<_> =
        addresses.iter().map(|(id, address)| AgentAddress { node: node(id), address: address.to_string() }).collect();
    agents.follow(&addresses);
    agents
}

/// Waits until the state of the one agent is as wanted.
pub async fn until(agents: &Agents, id: &str, wanted: impl Fn(&NodeState) -> bool) -> NodeState {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let state = agents.nodes().into_iter().find(|state| state.node.as_str() == id).unwrap();
        if wanted(&state) {
            return state;
        }
        assert!(Instant::now() < deadline, "{state:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A backend whose volumes can be reached from one place, or that takes its time.
struct Shaped {
    inner: Arc<dyn Backend>,
    topology: Vec<volume::Segments>,
    delay: Duration,
}

pub fn placed(inner: Arc<dyn Backend>, place: &str) -> Arc<dyn Backend> {
    let segments = volume::Segments([("csi.hawser.dev/node".to_owned(), place.to_owned())].into());
    Arc::new(Shaped { inner, topology: vec![segments], delay: Duration::ZERO })
}

pub fn slow(inner: Arc<dyn Backend>, delay: Duration) -> Arc<dyn Backend> {
    Arc::new(Shaped { inner, topology: Vec::new(), delay })
}

impl Backend for Shaped {
    fn name(&self) -> &volume::BackendName {
        self.inner.name()
    }
    fn ensure_volume(&self, guard: &volume::VolumeGuard, spec: &volume::VolumeSpec) -> volume::Result<volume::Volume> {
        std::thread::sleep(self.delay);
        self.inner.ensure_volume(guard, spec)
    }
    fn find_volume(&self, id: &volume::VolumeId) -> volume::Result<Option<volume::Volume>> {
        self.inner.find_volume(id)
    }
    fn delete_volume(&self, guard: &volume::VolumeGuard, id: &volume::VolumeId) -> volume::Result<()> {
        self.inner.delete_volume(guard, id)
    }
    fn list_volumes(&self, page: &volume::PageRequest) -> volume::Result<volume::Page<volume::Volume>> {
        std::thread::sleep(self.delay);
        self.inner.list_volumes(page)
    }
    fn capacity(&self, query: &volume::CapacityQuery) -> volume::Result<volume::Capacity> {
        self.inner.capacity(query)
    }
    fn topology(&self) -> volume::Result<Vec<volume::Segments>> {
        Ok(self.topology.clone())
    }
    fn check(&self) -> volume::Result<()> {
        self.inner.check()
    }
    fn restrictions(&self) -> volume::Restrictions {
        self.inner.restrictions()
    }
}

pub fn spec(backend: &dyn Backend, name: &str) -> VolumeSpec {
    let name = VolumeName::parse(name).unwrap();
    VolumeSpec {
        id: VolumeId::of_name(backend.name(), &name),
        name,
        size: SizeRange { required_bytes: Some(64 << 20), limit_bytes: None },
        kind: VolumeKind::FileSystem(FsType::Ext4),
        source: None,
        parameters: Default::default(),
        mutable: Default::default(),
        topology: Default::default(),
    }
}
