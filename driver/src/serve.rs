//! `hawser serve`: puts the services together, makes this node known, serves, and stops without taking mounts along.

use crate::agents;
use crate::config::{Config, Mode};
use crate::gauges::Gauges;
use crate::http::{self, Pages};
use crate::state;
use crate::storage::Storage;
use crate::supervisor;
use ::agent::Agents;
use controller::ControllerService;
use csi_proto::csi::controller_server::ControllerServer;
use csi_proto::csi::group_controller_server::GroupControllerServer;
use csi_proto::csi::identity_server::IdentityServer;
use csi_proto::csi::snapshot_metadata_server::SnapshotMetadataServer;
use csi_proto::registration::registration_server::RegistrationServer;
use host::Effects;
use identity::{IdentityService, Plugin, Readiness, RegistrationService};
use node::{NodeConfig, NodeService};
use rpc::{Incoming, Metrics, Runtime, SocketFile};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::Router;
use volume::{Backends, Error, LockTable, Result};

/// How long calls that are under way may take to end when the process is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How soon a node that was fenced while it was frozen or cut off notices.
const REGISTER_INTERVAL: Duration = Duration::from_secs(1);
/// How often others can see in the storage that this node still reaches it.
const LIFE_INTERVAL: Duration = Duration::from_millis(500);
/// How often it is looked whether a storage was not reached for too long.
const LEASE_INTERVAL: Duration = Duration::from_millis(250);
/// How soon a change of a volume's mutable parameters reaches its device.
const TUNE_INTERVAL: Duration = Duration::from_secs(1);
const MAX_CALLS: usize = 8192;
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(3);
/// After so many registrations what calls have freed meanwhile is given back to the machine, in a fraction of a
/// millisecond: a burst of a thousand calls leaves several MB in pieces.
const GIVE_BACK_EVERY: u32 = 10;

/// Blocks until SIGTERM or SIGINT.
pub fn serve(config: &Config, effects: Effects) -> Result<()> {
    let endpoint = rpc::parse_endpoint(&config.endpoint)?;
    let _state = match config.mode {
        Mode::Controller => None,
        Mode::Node | Mode::All => Some(state::claim(&config.state_dir, &config.endpoint)?),
    };
    host::memory::keep_little();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Idle threads end soon, and their stacks with them.
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        // A call that hangs on its device keeps its thread, one a volume; there must be more than volumes on a node.
        .max_blocking_threads(MAX_CALLS)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start the runtime", error))?;
    let served = runtime.block_on(run(config, effects, &endpoint));
    // Work that hangs on a device cannot be waited for; its retry finds what it did.
    runtime.shutdown_background();
    served
}

async fn run(config: &Config, effects: Effects, endpoint: &Path) -> Result<()> {
    let (stop, stopping) = watch::channel(false);
    let asked = crate::process::termination().map_err(|error| Error::io("cannot wait for signals", error))?;
    tokio::spawn(async move {
        asked.await;
        // Nobody listens any more: it is ending already.
        let _ = stop.send(true);
    });
    let storage = Arc::new(Storage::open(config, effects.clone())?);
    let metrics = Metrics::new();
    let runtime = Runtime::new(metrics.clone(), config.rpc_deadline);
    let node = match config.mode {
        Mode::Controller => None,
        Mode::Node | Mode::All => Some(node_service(config, &storage, effects, &runtime)?),
    };
    let agents = agents::connect(config, &storage, &metrics)?;
    let supervisor = supervisor::start(config, agents.as_ref(), &metrics, stopping.clone())?;
    let readiness = readiness(&storage, node.clone(), agents.clone());
    let gauges = Gauges::new(Arc::clone(&storage), &metrics);
    let pages = Pages { readiness: readiness.clone(), metrics, gauges };
    let _pages_socket = http::start(&config.metrics_listen, pages).await?;

    if let Some(node) = &node
        && !make_known(node, &storage, stopping.clone()).await?
    {
        return Ok(());
    }
    let served = agents::serve(config, &storage, node.as_ref(), &runtime, stopping.clone()).await?;
    let router = router(config, &storage, agents, node.as_ref(), readiness, &runtime)?;
    let (incoming, socket) = rpc::bind(endpoint).await?;
    let registration = match (&config.kubelet_registration_dir, &node) {
        (Some(directory), Some(_)) => Some(register_with_kubelet(directory, endpoint, stopping.clone()).await?),
        _ => None,
    };
    tracing::info!(
        node = %config.node_id,
        mode = ?config.mode,
        profile = %config.profile,
        endpoint = %endpoint.display(),
        "serving"
    );
    until_stopped(router, incoming, stopping).await?;
    drop(registration);
    if let Some(supervisor) = supervisor {
        supervisor.stop().await;
    }
    if let Some(served) = served {
        // What its calls are still doing then is waited for with all others.
        let _ = tokio::time::timeout(STOP_LIMIT, served).await;
    }
    let running = runtime.drain(STOP_LIMIT).await;
    if running > 0 {
        tracing::warn!(running, "stopping while calls are running; their retries find what they did");
    }
    drop(socket);
    tracing::info!("stopped; what is mounted stays mounted");
    Ok(())
}

fn node_service(config: &Config, storage: &Storage, effects: Effects, runtime: &Runtime) -> Result<NodeService> {
    let connectors = storage.entries.iter().map(|e| (e.backend.name().clone(), Arc::clone(&e.connector))).collect();
    NodeService::new(NodeConfig {
        node_id: config.node_id.clone(),
        connectors,
        host: Arc::clone(&storage.host),
        locks: LockTable::default(),
        profile: config.profile,
        attacher: config.attach,
        state_dir: config.state_dir.clone(),
        effects,
        io_limit_cgroups: config.io_limit_cgroups.clone(),
        runtime: runtime.clone(),
        step_deadline: config.rpc_deadline,
    })
}

/// Ready: every backend of this process answers, any agent has answered (what a controller can do follows from its
/// backends, and orchestrators ask that only once), and the node is registered and not fenced.
fn readiness(storage: &Arc<Storage>, node: Option<NodeService>, agents: Option<Arc<Agents>>) -> Readiness {
    let storage = Arc::clone(storage);
    let check = move || {
        for backend in storage.backends() {
            backend.check()?;
        }
        if let Some(agents) = &agents
            && agents.all().is_empty()
        {
            let message = format!("no agent has answered yet; waiting for {}", agents.unheard().join(", "));
            return Err(Error::new(volume::ErrorKind::Unavailable, message));
        }
        node.as_ref().map_or(Ok(()), NodeService::ready)
    };
    Readiness::new(Arc::new(check), Readiness::DEFAULT_DEADLINE)
}

/// Registers until it succeeds, reconciles, and from then on registers again and again. Nothing is served before, so no
/// call meets what a crash left half done. False when it was asked to stop meanwhile.
async fn make_known(node: &NodeService, storage: &Storage, mut stopping: watch::Receiver<bool>) -> Result<bool> {
    let mut last = String::new();
    loop {
        let one = node.clone();
        match blocking(move || one.register()).await {
            Ok(()) => break,
            Err(error) => {
                let chain = error.chain();
                if chain != last {
                    tracing::error!(error = chain, "this node cannot be registered; trying again");
                    last = chain;
                }
                // One of several backends is away; the volumes of the others are served meanwhile.
                if node.ready().is_ok() {
                    break;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(REGISTER_INTERVAL) => {}
            _ = stopping.wait_for(|stop| *stop) => return Ok(false),
        }
    }
    let one = node.clone();
    let reconciled = blocking(move || one.reconcile()).await?;
    host::memory::give_back();
    for done in &reconciled.done {
        tracing::info!(done, "reconciled");
    }
    for leftover in &reconciled.leftovers {
        tracing::warn!(leftover, "left as it is");
    }
    show_life(node, storage, &stopping)?;
    check_leases(node, storage, &stopping)?;
    tokio::spawn(tune_again(node.clone(), stopping.clone()));
    tokio::spawn(register_again(node.clone(), stopping));
    Ok(true)
}

/// A thread a backend, which a hung one keeps: nothing waits for it, and the process ends without it.
fn show_life(node: &NodeService, storage: &Storage, stopping: &watch::Receiver<bool>) -> Result<()> {
    for backend in storage.backends() {
        let (node, name, stopping) = (node.clone(), backend.name().clone(), stopping.clone());
        let show = move || {
            let mut last = None;
            while !*stopping.borrow() {
                let failure = node.show_life(&name).err().map(|error| error.chain());
                if let Some(error) = failure.as_ref().filter(|_| failure != last) {
                    tracing::warn!(backend = %name, error, "no sign of life can be left in the storage; trying again");
                }
                last = failure;
                std::thread::sleep(LIFE_INTERVAL);
            }
        };
        let thread = std::thread::Builder::new().name("life".to_owned()).stack_size(1 << 18);
        thread.spawn(show).map_err(|error| Error::io("cannot start a thread", error))?;
    }
    Ok(())
}

/// A thread of its own, where there is something to look at.
fn check_leases(node: &NodeService, storage: &Storage, stopping: &watch::Receiver<bool>) -> Result<()> {
    if storage.entries.iter().all(|entry| entry.connector.lease().is_none()) {
        return Ok(());
    }
    let (node, stopping) = (node.clone(), stopping.clone());
    let check = move || {
        while !*stopping.borrow() {
            node.check_leases(Instant::now());
            std::thread::sleep(LEASE_INTERVAL);
        }
    };
    let thread = std::thread::Builder::new().name("leases".to_owned()).stack_size(1 << 18);
    thread.spawn(check).map(drop).map_err(|error| Error::io("cannot start a thread", error))
}

async fn tune_again(node: NodeService, mut stopping: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TUNE_INTERVAL) => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        let one = node.clone();
        let tuned = blocking(move || {
            one.tune();
            Ok(())
        });
        if let Err(error) = tuned.await {
            tracing::error!(error = error.chain(), "mutable parameters could not be looked at");
        }
    }
}

async fn register_again(node: NodeService, mut stopping: watch::Receiver<bool>) {
    let mut last = None;
    for count in 1u32.. {
        tokio::select! {
            () = tokio::time::sleep(REGISTER_INTERVAL) => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        let one = node.clone();
        let work = move || {
            if count.is_multiple_of(GIVE_BACK_EVERY) {
                host::memory::give_back();
            }
            one.register()
        };
        let failure = blocking(work).await.err().map(|error| error.chain());
        if failure != last {
            match &failure {
                Some(error) => tracing::error!(error, "this node cannot be registered; trying again"),
                None => tracing::info!("this node is registered again"),
            }
            last = failure;
        }
    }
}

fn router(
    config: &Config,
    storage: &Storage,
    agents: Option<Arc<Agents>>,
    node: Option<&NodeService>,
    readiness: Readiness,
    runtime: &Runtime,
) -> Result<Router> {
    let backends: Arc<dyn Backends> = match &agents {
        Some(agents) => Arc::clone(agents) as _,
        None => Arc::new(storage.shared_backends()),
    };
    let (profile, plugins) = (config.profile, Arc::clone(&backends));
    // A node service alone has its controller elsewhere, under the same name.
    let plugin = move || Plugin::of(profile, true, &plugins.all());
    let identity = IdentityServer::new(IdentityService::following(plugin, readiness, runtime.clone()));
    let mut router = Server::builder().add_service(identity);
    if config.mode != Mode::Node {
        let controller = match agents {
            Some(_) => ControllerService::over(backends, config.profile, runtime.clone()),
            None => ControllerService::new(backends.all(), config.profile, runtime.clone())?,
        }
        .attached_by(config.attach);
        router = router
            .add_service(GroupControllerServer::new(controller.group()))
            .add_service(SnapshotMetadataServer::new(controller.metadata()))
            .add_service(ControllerServer::new(controller));
    }
    Ok(router.add_optional_service(node.map(NodeService::server)))
}

/// The socket that kubelet finds in its `plugins_registry`.
async fn register_with_kubelet(
    directory: &Path,
    endpoint: &Path,
    stopping: watch::Receiver<bool>,
) -> Result<SocketFile> {
    let path = directory.join(format!("{}-reg.sock", identity::NAME));
    let (incoming, socket) = rpc::bind(&path).await?;
    // Kubelet has another working directory.
    let endpoint =
        std::path::absolute(endpoint).map_err(|error| Error::io("cannot tell the working directory", error))?;
    let router = Server::builder().add_service(RegistrationServer::new(RegistrationService::new(&endpoint)));
    tokio::spawn(async move {
        if let Err(error) = until_stopped(router, incoming, stopping).await {
            tracing::error!(error = error.chain(), "the registration socket failed");
        }
    });
    Ok(socket)
}

/// Serves until it is asked to stop, then gives calls that are under way some time to answer.
async fn until_stopped(router: Router, incoming: Incoming, mut stopping: watch::Receiver<bool>) -> Result<()> {
    let mut limit = stopping.clone();
    let asked = async move { drop(stopping.wait_for(|stop| *stop).await) };
    let serving = pin!(router.serve_with_incoming_shutdown(incoming, asked));
    let late = async move {
        drop(limit.wait_for(|stop| *stop).await);
        tokio::time::sleep(STOP_LIMIT).await;
    };
    tokio::select! {
        served = serving => served.map_err(|error| {
            Error::with_source(volume::ErrorKind::Internal, "the gRPC server failed", error)
        }),
        () = late => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ran: Result<Result<T>, _> = tokio::task::spawn_blocking(work).await;
    ran.unwrap_or_else(|failed| Err(Error::internal(format!("a task of the driver failed: {failed}"))))
}
