//! All agents of a controller, and the backends that they have.

use crate::beat::News;
use crate::credentials::Credentials;
use crate::describe::Description;
use crate::link::{Link, Listeners, Settings};
use crate::remote::RemoteBackend;
use crate::words::Words;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use volume::{Backend, BackendName, Backends, NodeId};

/// Where the agent of a node listens: `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentAddress {
    pub node: NodeId,
    pub address: String,
}

/// The backends of this process, if it has any, and those of all agents. Connections are kept until it is dropped.
pub struct Agents {
    local: Vec<Arc<dyn Backend>>,
    settings: Settings,
    handle: Handle,
    shared: Arc<Shared>,
    followed: Mutex<Vec<Followed>>,
    /// Agents, or news of agents, that are to come.
    expected: Mutex<Vec<String>>,
}

/// What the connections' tasks change.
#[derive(Default)]
struct Shared {
    listeners: Arc<Listeners>,
    words: Arc<Words>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    remote: BTreeMap<BackendName, Arc<RemoteBackend>>,
    /// By node, in the agent's order; a node that is not here has never answered.
    of_node: BTreeMap<NodeId, Vec<BackendName>>,
}

struct Followed {
    link: Arc<Link>,
    task: AbortHandle,
}

/// How an agent is, as its last sign of life told.
#[derive(Debug, Clone)]
pub struct NodeState {
    pub node: NodeId,
    pub is_connected: bool,
    /// When the last heartbeat of the present connection came.
    pub heard: Option<Instant>,
    /// When the machine last refused a connection to its agent's port (ECONNREFUSED), so its kernel lived then.
    pub refused: Option<Instant>,
    /// Empty where it is not known.
    pub incarnation: String,
    pub boot_id: String,
    pub is_ready: bool,
    /// Why it is away or not ready; empty when all is well.
    pub problem: String,
}

impl Agents {
    /// `deadline` is what the agents take for a call at most. Connections run in `handle`'s runtime.
    pub fn new(
        local: Vec<Arc<dyn Backend>>,
        credentials: Arc<Credentials>,
        heartbeat: Duration,
        deadline: Duration,
        handle: Handle,
    ) -> Self {
        let settings = Settings { credentials, heartbeat, deadline };
        Self { local, settings, handle, shared: Arc::default(), followed: Mutex::default(), expected: Mutex::default() }
    }

    /// Connects to exactly these from now on: whoever finds out which agents there are calls it whenever that changes.
    /// Of a node that is not among them any more nothing is known, as of one that was never configured.
    pub fn follow(&self, addresses: &[AgentAddress]) {
        let mut followed = self.followed();
        let is_wanted = |link: &Link| addresses.iter().any(|a| a.node == link.node && a.address == link.address);
        let (mut kept, gone): (Vec<_>, Vec<_>) = followed.drain(..).partition(|one| is_wanted(&one.link));
        for one in gone {
            one.task.abort();
            one.link.retire();
            self.shared.forget(&one.link);
        }
        for AgentAddress { node, address } in addresses {
            if !kept.iter().any(|one| one.link.node == *node) {
                let link = Arc::new(Link::new(node.clone(), address.clone(), Arc::clone(&self.shared.listeners)));
                let task = self.handle.spawn(self.keep(Arc::clone(&link))).abort_handle();
                kept.push(Followed { link, task });
            }
        }
        // In the given order, which is that of the defaults.
        kept.sort_by_key(|one| addresses.iter().position(|address| address.node == one.link.node));
        *followed = kept;
    }

    /// Has `listener` told what happens at the connections, in order for each node, from now on: so it is to be called
    /// before [`Agents::follow`]. The connections' own tasks call it, so it must not block and must call nothing here.
    pub fn on_news(&self, listener: impl Fn(&NodeId, News) + Send + Sync + 'static) {
        self.shared.listeners.add(Arc::new(listener));
    }

    /// Says in words what there is beside the agents that are followed, and cannot be followed yet: until nothing of it is
    /// left, what is not found may be there.
    pub fn expect(&self, words: Vec<String>) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    /// In the order of [`Agents::follow`].
    pub fn nodes(&self) -> Vec<NodeState> {
        self.followed().iter().map(|one| state(&one.link)).collect()
    }

    fn keep(&self, link: Arc<Link>) -> impl Future<Output = ()> + use<> {
        let (settings, shared, handle) = (self.settings.clone(), Arc::clone(&self.shared), self.handle.clone());
        async move {
            let described = |description: Description| shared.described(&link, &handle, description.backends);
            link.keep(settings, described).await;
        }
    }

    fn followed(&self) -> MutexGuard<'_, Vec<Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for one in self.followed().drain(..) {
            one.task.abort();
        }
    }
}

impl Backends for Agents {
    /// A name of this process's own is never an agent's.
    fn all(&self) -> Vec<Arc<dyn Backend>> {
        let is_local = |name: &BackendName| self.local.iter().any(|own| own.name() == name);
        let known = self.shared.known();
        let remote =
            known.remote.iter().filter(|(name, _)| !is_local(name)).map(|(_, backend)| Arc::clone(backend) as _);
        self.local.iter().cloned().chain(remote).collect()
    }

    /// This process's first, or the first of every agent.
    fn defaults(&self) -> Vec<Arc<dyn Backend>> {
        if let Some(first) = self.local.first() {
            return vec![Arc::clone(first)];
        }
        let nodes: Vec<NodeId> = self.followed().iter().map(|one| one.link.node.clone()).collect();
        let known = self.shared.known();
        let mut names: Vec<&BackendName> = Vec::new();
        for first in nodes.iter().filter_map(|node| known.of_node.get(node)?.first()) {
            if !names.contains(&first) {
                names.push(first);
            }
        }
        names.into_iter().filter_map(|name| known.remote.get(name)).map(|backend| Arc::clone(backend) as _).collect()
    }

    fn unheard(&self) -> Vec<String> {
        let nodes: Vec<NodeId> = self.followed().iter().map(|one| one.link.node.clone()).collect();
        let known = self.shared.known();
        let unheard = nodes.iter().filter(|node| !known.of_node.contains_key(node)).map(|node| format!("node {node}"));
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner).clone();
        unheard.chain(expected).collect()
    }
}

impl Shared {
    fn described(&self, link: &Arc<Link>, handle: &Handle, backends: Vec<crate::describe::Described>) {
        let mut known = self.known();
        if link.is_retired.load(Ordering::SeqCst) {
            return;
        }
        let names: Vec<BackendName> = backends.iter().map(|backend| backend.name.clone()).collect();
        known.remote.retain(|name, remote| names.contains(name) || remote.update(link, None));
        for described in backends {
            let name = described.name.clone();
            let remote = known
                .remote
                .entry(name.clone())
                .or_insert_with(|| Arc::new(RemoteBackend::new(name, Arc::clone(&self.words), handle.clone())));
            remote.update(link, Some(described));
        }
        known.of_node.insert(link.node.clone(), names);
    }

    fn forget(&self, link: &Arc<Link>) {
        let mut known = self.known();
        known.remote.retain(|_, remote| remote.update(link, None));
        known.of_node.remove(&link.node);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn state(link: &Link) -> NodeState {
    let mut state = NodeState {
        node: link.node.clone(),
        is_connected: false,
        heard: None,
        refused: link.refused(),
        incarnation: String::new(),
        boot_id: String::new(),
        is_ready: false,
        problem: String::new(),
    };
    match link.session() {
        Err(away) => state.problem = away.chain(),
        Ok(session) => {
            let (heard, beat) = session.last().clone();
            state.is_connected = true;
            state.heard = Some(heard);
            state.is_ready = beat.ready;
            (state.incarnation, state.boot_id, state.problem) = (beat.incarnation, beat.boot_id, beat.problem);
        }
    }
    state
}
