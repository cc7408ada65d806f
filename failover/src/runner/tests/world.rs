//! A small cluster in virtual time: nodes that are heard, an orchestrator that moves workloads, and one runner after another.

use super::shelf::Shelf;
use crate::{
    AgentState, Board, Config, EventReason, Heartbeat, HistoryEntry, Mailbox, NodeStatus, NodeView, Orchestrator,
    OrchestratorNode, Runner, Storage, Told, Workload, WorkloadId,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use volume::{
    AccessMode, AccessType, Attach, AttachRequest, Backend, Incarnation, LockTable, MutableChange, NodeId, Parameters,
    SizeRange, TopologyRequirement, VolumeCapability, VolumeId, VolumeKind, VolumeName, VolumeSpec,
};

/// What was done, in order; the same twice in a row is noted once.
#[derive(Clone, Default)]
pub(super) struct Journal(Arc<Mutex<Vec<String>>>);

pub(super) struct World {
    pub(super) journal: Journal,
    pub(super) shelves: Vec<Arc<Shelf>>,
    pub(super) orchestrator: Arc<FakeOrchestrator>,
    nodes: Arc<Mutex<BTreeMap<NodeId, Life>>>,
    mailbox: Arc<Mutex<Option<Mailbox>>>,
    running: Option<(JoinHandle<()>, watch::Receiver<Board>)>,
    began: Instant,
    config: Config,
}

#[derive(Clone)]
struct Life {
    incarnation: Incarnation,
    is_silent: bool,
    state: AgentState,
}

pub(super) struct FakeOrchestrator {
    journal: Journal,
    shelf: Arc<Shelf>,
    pub(super) cluster: Mutex<Cluster>,
}

#[derive(Default)]
pub(super) struct Cluster {
    pub(super) taints: BTreeMap<NodeId, Incarnation>,
    pub(super) workloads: BTreeMap<NodeId, Vec<Workload>>,
    pub(super) events: Vec<(Option<NodeId>, EventReason, String)>,
    pub(super) history: Vec<HistoryEntry>,
    pub(super) status: Vec<NodeStatus>,
    /// Evictions are never answered.
    pub(super) hangs: bool,
}

impl World {
    /// `shared` is a backend of all nodes; each name in `local` one that the first node has alone.
    pub(super) fn new(nodes: usize, local: &[&str]) -> Self {
        let journal = Journal::default();
        let names = ["shared"].iter().chain(local);
        let shelves: Vec<Arc<Shelf>> = names.map(|name| Arc::new(Shelf::new(name, journal.clone()))).collect();
        let orchestrator = FakeOrchestrator::new(journal.clone(), Arc::clone(&shelves[0]));
        let world = Self {
            journal,
            shelves,
            orchestrator: Arc::new(orchestrator),
            nodes: Arc::default(),
            mailbox: Arc::default(),
            running: None,
            began: Instant::now(),
            config: Config::default(),
        };
        for n in 1..=nodes {
            world.begin_life(&node(n));
        }
        let (lives, mailbox, shelf) =
            (Arc::clone(&world.nodes), Arc::clone(&world.mailbox), Arc::clone(&world.shelves[0]));
        let began = world.began;
        tokio::spawn(async move {
            for round in 1u64.. {
                beat(round, &lives, &shelf, mailbox.lock().unwrap().as_ref(), began);
                sleep(Duration::from_millis(100)).await;
            }
        });
        world
    }

    /// A reboot: the node registers in a new life, everywhere it can.
    pub(super) fn begin_life(&self, node: &NodeId) {
        let incarnation = Incarnation::new_random();
        let is_first = node.as_str() == "n1";
        for shelf in self.shelves.iter().take(if is_first { usize::MAX } else { 1 }) {
            shelf.register(node, incarnation);
        }
        let life = Life { incarnation, is_silent: false, state: AgentState::Running };
        self.nodes.lock().unwrap().insert(node.clone(), life);
    }

    pub(super) fn kill(&self, node: &NodeId) {
        self.nodes.lock().unwrap().get_mut(node).unwrap().is_silent = true;
    }

    /// A volume of the node, and the workload that uses it.
    pub(super) fn volume(&self, shelf: usize, name: &str, node: &NodeId, parameters: Parameters) -> VolumeId {
        let shelf = &self.shelves[shelf];
        let name = VolumeName::parse(name).unwrap();
        let id = VolumeId::of_name(shelf.name(), &name);
        let access_type = AccessType::Mount { fs_type: None, mount_flags: vec![], mount_group: None };
        let capability = VolumeCapability { access_mode: AccessMode::SingleNodeWriter, access_type };
        let spec = VolumeSpec {
            id: id.clone(),
            name,
            size: SizeRange::parse(64 << 20, 0).unwrap(),
            kind: VolumeKind::for_capabilities(&[capability], None).unwrap(),
            source: None,
            parameters,
            mutable: MutableChange::default(),
            topology: TopologyRequirement::default(),
        };
        let guard = LockTable::default().try_lock([id.as_str()]).unwrap();
        shelf.ensure_volume(&guard, &spec).unwrap();
        attach(shelf, &id, node);
        let workload = Workload { id: WorkloadId(format!("uid-of-{}", spec.name.as_str())), volumes: vec![id.clone()] };
        self.cluster().workloads.entry(node.clone()).or_default().push(workload);
        id
    }

    /// Starts a runner, which leads.
    pub(super) fn start(&mut self) {
        let backends: Vec<Arc<dyn Backend>> = self.shelves.iter().map(|shelf| Arc::clone(shelf) as _).collect();
        let began = self.began;
        let clock = Arc::new(move || now_ms(began));
        let storage = Storage::new(Arc::new(backends), "supervisor:test".to_owned());
        let listener = Box::new(|_: &_| {});
        let (runner, mailbox) =
            Runner::new(self.config.clone(), clock, storage, Arc::clone(&self.orchestrator), listener);
        let board = runner.board();
        for node in self.nodes.lock().unwrap().keys() {
            let taint = self.cluster().taints.get(node).copied();
            let state = OrchestratorNode { is_known: true, is_ready: true, in_maintenance: false, taint };
            mailbox.tell_lossy(Told::Node { node: node.clone(), state });
        }
        *self.mailbox.lock().unwrap() = Some(mailbox);
        self.running = Some((tokio::spawn(runner.run()), board));
    }

    /// As a process that is killed.
    pub(super) fn stop(&mut self) {
        self.mailbox.lock().unwrap().take();
        self.running.take().unwrap().0.abort();
    }

    pub(super) fn board(&self) -> Board {
        self.running.as_ref().unwrap().1.borrow().clone()
    }

    pub(super) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.orchestrator.cluster.lock().unwrap()
    }

    /// Until it is so; fails the test after two minutes.
    pub(super) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            assert!(began.elapsed() < Duration::from_secs(120), "never {what}; done: {:?}", self.journal.all());
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) fn holder(&self, id: &VolumeId) -> Option<NodeId> {
        let volume = self.shelves[0].memory.find_volume(id).unwrap().unwrap();
        volume.attachment.map(|held| held.holder.node)
    }
}

/// What happens by itself every 100 ms.
fn beat(round: u64, lives: &Mutex<BTreeMap<NodeId, Life>>, shelf: &Shelf, mailbox: Option<&Mailbox>, began: Instant) {
    let tell = |told| mailbox.into_iter().for_each(|mailbox| mailbox.tell_lossy(Told::clone(&told)));
    tell(Told::Lease(Some(now_ms(began) + 2_000)));
    for (node, life) in lives.lock().unwrap().iter().filter(|(_, life)| !life.is_silent) {
        if round.is_multiple_of(5) {
            shelf.state.lock().unwrap().signs.insert(node.clone(), round);
        }
        if round.is_multiple_of(4) {
            let Life { incarnation, state, .. } = life.clone();
            let node = node.clone();
            tell(Told::Heartbeat(Heartbeat { node, incarnation, sequence: round, state, sees_storage: true }));
        }
    }
}

impl FakeOrchestrator {
    /// `shelf`: where what is evicted gets its volumes again.
    pub(super) fn new(journal: Journal, shelf: Arc<Shelf>) -> Self {
        Self { journal, shelf, cluster: Mutex::default() }
    }
}

impl Orchestrator for FakeOrchestrator {
    async fn look(&self, node: &NodeId) -> Result<NodeView, String> {
        let cluster = self.cluster.lock().unwrap();
        let workloads = cluster.workloads.get(node).cloned().unwrap_or_default();
        let taint = cluster.taints.get(node).copied();
        let node = OrchestratorNode { is_known: true, is_ready: true, in_maintenance: false, taint };
        Ok(NodeView { node, workloads })
    }

    async fn taint(&self, node: &NodeId, incarnation: Incarnation) -> Result<(), String> {
        self.journal.note(format!("taint {node}"));
        self.cluster.lock().unwrap().taints.insert(node.clone(), incarnation);
        Ok(())
    }

    /// What was there runs on n2 right away.
    async fn evict(&self, node: &NodeId, workloads: &[WorkloadId]) -> Result<(), String> {
        if self.cluster.lock().unwrap().hangs {
            return std::future::pending().await;
        }
        let mut cluster = self.cluster.lock().unwrap();
        let here = cluster.workloads.entry(node.clone()).or_default();
        for workload in here.extract_if(.., |workload| workloads.contains(&workload.id)) {
            self.journal.note(format!("evict {}", workload.id.0));
            workload.volumes.iter().for_each(|id| attach(&self.shelf, id, &self::node(2)));
        }
        Ok(())
    }

    async fn untaint(&self, node: &NodeId, incarnation: Incarnation) -> Result<(), String> {
        self.journal.note(format!("untaint {node}"));
        let mut cluster = self.cluster.lock().unwrap();
        if cluster.taints.get(node) == Some(&incarnation) {
            cluster.taints.remove(node);
        }
        Ok(())
    }

    fn event(&self, node: Option<&NodeId>, reason: EventReason, text: &str) {
        self.cluster.lock().unwrap().events.push((node.cloned(), reason, text.to_owned()));
    }

    fn record(&self, entry: &HistoryEntry) {
        self.cluster.lock().unwrap().history.push(entry.clone());
    }

    fn status(&self, nodes: &[NodeStatus]) {
        self.cluster.lock().unwrap().status = nodes.to_vec();
    }
}

impl Journal {
    pub(super) fn note(&self, what: String) {
        let mut done = self.0.lock().unwrap();
        if done.last() != Some(&what) {
            done.push(what);
        }
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn has(&self, what: &str) -> bool {
        self.0.lock().unwrap().iter().any(|done| done == what)
    }

    /// Whether these happened in this order, whatever came between.
    pub(super) fn has_in_order(&self, steps: &[&str]) -> bool {
        let done = self.all();
        let mut rest = done.iter();
        steps.iter().all(|step| rest.any(|done| done == step))
    }
}

pub(super) fn node(n: usize) -> NodeId {
    NodeId::parse(&format!("n{n}")).unwrap()
}

fn attach(shelf: &Shelf, id: &VolumeId, node: &NodeId) {
    let guard = LockTable::default().try_lock([id.as_str()]).unwrap();
    Attach::attach(&shelf.memory, &guard, &AttachRequest { volume: id, node, read_only: false }).unwrap();
}

fn now_ms(began: Instant) -> u64 {
    10_000 + u64::try_from(began.elapsed().as_millis()).unwrap()
}
