//! One backend with several agents: which of them a call goes to. And what is told of agents as it happens.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use agent::{AgentAddress, Agents, Beat, LifeState, News, Role};
use common::*;
use host::FakeHost;
use memory::MemoryBackend;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use volume::{
    AttachRequest, Backend, BackendName, Backends, Connector, ErrorKind, FenceHow, Incarnation, LockTable,
    NodeIdentity, PageRequest, Result, Snapshot, SnapshotFilter, SnapshotId, Snapshots, Volume, VolumeGuard, VolumeId,
    VolumeName, VolumeSpec,
};

fn memory() -> MemoryBackend {
    MemoryBackend::new(BackendName::parse("shared").unwrap(), Arc::new(FakeHost::default()), 4 << 30, None)
}

async fn serve(dir: &Path, id: &str, backend: Arc<dyn Backend>) -> Served {
    Served::start(id, any_port(), credentials(dir, id, &[Role::Node(node(id))]), vec![backend]).await
}

async fn reached(dir: &Path, served: &[(&str, &Served)]) -> (Agents, Arc<dyn Backend>) {
    let addresses: Vec<_> = served.iter().map(|(id, served)| (*id, served.address)).collect();
    let agents = agents(credentials(dir, "c", &[Role::Controller]), &addresses);
    for (id, _) in served {
        until(&agents, id, |state| state.is_connected && state.is_ready).await;
    }
    let backend = agents.all().remove(0);
    (agents, backend)
}

fn create(backend: &dyn Backend, name: &str) -> Result<Volume> {
    let spec = spec(backend, name);
    backend.ensure_volume(&LockTable::default().try_lock([spec.id.as_str()]).unwrap(), &spec)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn registered(storage: &MemoryBackend, id: &str) -> NodeIdentity {
    let identity = NodeIdentity { id: node(id), incarnation: Incarnation::new_random(), boot_id: "boot".to_owned() };
    storage.connector().register(&identity).unwrap();
    identity
}

/// The first agent dies while it is asked: who only reads is answered by another one, who changes something is told.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_agent_dies() {
    for is_read in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let storage = memory();
        let slow = common::slow(Arc::new(storage.clone()), Duration::from_secs(2));
        let (n1, n2) = (serve(dir.path(), "n1", slow).await, serve(dir.path(), "n2", Arc::new(storage.clone())).await);
        let (agents, backend) = reached(dir.path(), &[("n1", &n1), ("n2", &n2)]).await;
        let asked = Instant::now();
        let other = Arc::clone(&backend);
        let call = tokio::task::spawn_blocking(move || match is_read {
            true => other.list_volumes(&PageRequest::default()).map(drop),
            false => create(&*other, "v").map(drop),
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!call.is_finished(), "it is at the first agent, which is the slow one");
        n1.kill().await;
        let answer = call.await.unwrap();
        assert!(asked.elapsed() < Duration::from_millis(1500), "{:?}", asked.elapsed());
        match is_read {
            true => answer.unwrap(),
            false => {
                let error = answer.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                assert!(error.chain().contains("node n1"), "{}", error.chain());
            }
        }
        // The other one is asked as soon as the connection is known to be lost.
        let again = move || {
            while let Err(error) = create(&*backend, "v") {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
                assert!(asked.elapsed() < Duration::from_millis(1800));
            }
        };
        blocking(again).await;
        assert!(asked.elapsed() < Duration::from_millis(1800));
        drop(agents);
    }
}

/// One that hangs, as far as its heartbeats tell, is passed over long before it counts as lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_agent_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Backend> = Arc::new(memory());
    let (n1, n2) = (serve(dir.path(), "n1", storage.clone()).await, serve(dir.path(), "n2", storage).await);
    let (address, cut) = relay(n1.address).await;
    let agents = agents(credentials(dir.path(), "c", &[Role::Controller]), &[("n1", address), ("n2", n2.address)]);
    for id in ["n1", "n2"] {
        until(&agents, id, |state| state.is_connected).await;
    }
    let backend = agents.all().remove(0);
    cut.send(true).unwrap();
    tokio::time::sleep(HEARTBEAT * 8).await;
    assert!(agents.nodes()[0].is_connected, "nobody has noticed yet");
    let asked = Instant::now();
    blocking(move || create(&*backend, "v").unwrap()).await;
    assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
}

/// Relays connections until it is cut, which closes none of them.
async fn relay(behind: std::net::SocketAddr) -> (std::net::SocketAddr, tokio::sync::watch::Sender<bool>) {
    let relay = tokio::net::TcpListener::bind(any_port()).await.unwrap();
    let address = relay.local_addr().unwrap();
    let (cut, is_cut) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = relay.accept().await {
            let mut is_cut = is_cut.clone();
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(behind).await.unwrap();
                let ended = tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => true,
                    _ = is_cut.wait_for(|cut| *cut) => false,
                };
                if !ended {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (address, cut)
}

/// The agent of the node that is to be cut off carries out no fence of it, though it is the first, or the only one.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_is_not_sent_to_the_victim() {
    let dir = tempfile::tempdir().unwrap();
    let storage = memory();
    for id in ["n1", "n2"] {
        registered(&storage, id);
    }
    let n1 = serve(dir.path(), "n1", Arc::new(storage.clone())).await;
    let is_fenced = {
        let storage = storage.clone();
        move |id: &str| {
            let nodes = volume::Attach::nodes(&storage).unwrap();
            nodes.iter().any(|record| record.identity.id == node(id) && record.is_fenced())
        }
    };
    let fence = |backend: &Arc<dyn Backend>, id: &'static str| {
        let backend = Arc::clone(backend);
        blocking(move || backend.fence().unwrap().fence(&node(id), None, "test", FenceHow::Enforce).map(drop))
    };
    let (alone, backend) = reached(dir.path(), &[("n1", &n1)]).await;
    let error = fence(&backend, "n1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().contains("n1 itself") && !is_fenced("n1"), "{}", error.chain());
    // It does others well.
    fence(&backend, "n2").await.unwrap();
    assert!(is_fenced("n2"));
    drop(alone);
    let n2 = serve(dir.path(), "n2", Arc::new(storage)).await;
    let (_agents, backend) = reached(dir.path(), &[("n1", &n1), ("n2", &n2)]).await;
    fence(&backend, "n1").await.unwrap();
    assert!(is_fenced("n1"));
}

/// Who holds a volume can freeze what is mounted of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_where_the_volume_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let storage = memory();
    let counting: Vec<Arc<Counting>> = (0..3).map(|_| Arc::new(Counting::of(&storage))).collect();
    let (n1, n2, n3) = (
        serve(dir.path(), "n1", counting[0].clone()).await,
        serve(dir.path(), "n2", counting[1].clone()).await,
        serve(dir.path(), "n3", counting[2].clone()).await,
    );
    let (_agents, backend) = reached(dir.path(), &[("n1", &n1), ("n2", &n2), ("n3", &n3)]).await;
    let taken = || counting.iter().map(|one| one.taken.load(Ordering::SeqCst)).collect::<Vec<_>>();
    let volume = create(&storage, "v").unwrap().id;
    let snapshot = |name: &'static str| {
        let (backend, source) = (Arc::clone(&backend), volume.clone());
        blocking(move || {
            let name = VolumeName::parse(name).unwrap();
            let id = SnapshotId::of_name(backend.name(), &name);
            let guard = LockTable::default().try_lock([id.as_str(), source.as_str()]).unwrap();
            backend.snapshots().unwrap().ensure_snapshot(&guard, &id, &name, &source).unwrap()
        })
    };
    snapshot("free").await;
    assert_eq!(taken(), [1, 0, 0]);
    let holder = registered(&storage, "n3");
    let request = AttachRequest { volume: &volume, node: &holder.id, read_only: false };
    let guard = LockTable::default().try_lock([volume.as_str()]).unwrap();
    volume::Attach::attach(&storage, &guard, &request).unwrap();
    snapshot("held").await;
    assert_eq!(taken(), [1, 0, 1]);
    // Without that agent it is taken all the same.
    n3.kill().await;
    tokio::time::sleep(HEARTBEAT * 8).await;
    snapshot("holder away").await;
    assert_eq!(taken(), [2, 0, 1]);
}

/// Counts the snapshots that are taken through it.
struct Counting {
    inner: MemoryBackend,
    taken: AtomicUsize,
}

impl Counting {
    fn of(storage: &MemoryBackend) -> Self {
        Self { inner: storage.clone(), taken: AtomicUsize::new(0) }
    }

    fn snapshots(&self) -> &dyn Snapshots {
        self.inner.snapshots().unwrap()
    }
}

impl Backend for Counting {
    fn name(&self) -> &BackendName {
        self.inner.name()
    }
    fn ensure_volume(&self, guard: &VolumeGuard, spec: &VolumeSpec) -> Result<Volume> {
        self.inner.ensure_volume(guard, spec)
    }
    fn find_volume(&self, id: &VolumeId) -> Result<Option<Volume>> {
        self.inner.find_volume(id)
    }
    fn delete_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        self.inner.delete_volume(guard, id)
    }
    fn list_volumes(&self, page: &PageRequest) -> Result<volume::Page<Volume>> {
        self.inner.list_volumes(page)
    }
    fn capacity(&self, query: &volume::CapacityQuery) -> Result<volume::Capacity> {
        self.inner.capacity(query)
    }
    fn topology(&self) -> Result<Vec<volume::Segments>> {
        self.inner.topology()
    }
    fn check(&self) -> Result<()> {
        self.inner.check()
    }
    fn restrictions(&self) -> volume::Restrictions {
        self.inner.restrictions()
    }
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }
}

impl Snapshots for Counting {
    fn ensure_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &SnapshotId,
        name: &VolumeName,
        source: &VolumeId,
    ) -> Result<Snapshot> {
        self.taken.fetch_add(1, Ordering::SeqCst);
        Self::snapshots(self).ensure_snapshot(guard, id, name, source)
    }
    fn find_snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>> {
        Self::snapshots(self).find_snapshot(id)
    }
    fn delete_snapshot(&self, guard: &VolumeGuard, id: &SnapshotId) -> Result<()> {
        Self::snapshots(self).delete_snapshot(guard, id)
    }
    fn list_snapshots(&self, filter: &SnapshotFilter, page: &PageRequest) -> Result<volume::Page<Snapshot>> {
        Self::snapshots(self).list_snapshots(filter, page)
    }
}

/// What happens at a connection is told at once and in order; the sequence goes on when the agent is started again.
#[tokio::test(flavor = "multi_thread")]
async fn news_of_agents() {
    let dir = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Backend> = Arc::new(memory());
    let own = || credentials(dir.path(), "n1", &[Role::Node(node("n1"))]);
    let served = Served::start("n1", any_port(), own(), vec![Arc::clone(&storage)]).await;
    let (address, controller) = (served.address, credentials(dir.path(), "c", &[Role::Controller]));
    let agents = Agents::new(Vec::new(), controller, HEARTBEAT, DEADLINE, Handle::current());
    let told: Arc<Mutex<Vec<News>>> = Arc::default();
    agents.on_news({
        let told = Arc::clone(&told);
        move |from, news| {
            assert_eq!(*from, node("n1"));
            told.lock().unwrap().push(news);
        }
    });
    agents.follow(&[AgentAddress { node: node("n1"), address: address.to_string() }]);
    let heard = async |wanted: &dyn Fn(&[News]) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !wanted(&told.lock().unwrap()) {
            assert!(Instant::now() < deadline, "{:?}", told.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        std::mem::take(&mut *told.lock().unwrap())
    };
    let beats = |news: &[News]| -> Vec<Beat> {
        let beat = |news: &News| if let News::Heartbeat(beat) = news { Some(beat.clone()) } else { None };
        news.iter().filter_map(beat).collect()
    };
    let is_ready = |news: &[News]| beats(news).iter().filter(|beat| beat.is_ready).count() > 3;
    let first = heard(&is_ready).await;
    assert!(matches!(first[..2], [News::Connected, News::Heartbeat(_)]), "{first:?}");
    let first = beats(&first);
    let last = first.last().unwrap();
    assert!(last.incarnation.is_some() && last.sees_storage && last.state == LifeState::Running, "{last:?}");

    served.kill().await;
    let away = heard(&|news| news.iter().filter(|news| **news == News::Refused).count() >= 2).await;
    let ends: Vec<_> = away.iter().filter(|news| !matches!(news, News::Heartbeat(_))).collect();
    assert!(matches!(ends[..], [News::Lost { .. }, News::Refused, News::Refused, ..]), "{ends:?}");
    assert!(agents.nodes()[0].refused.is_some_and(|at| at.elapsed() < Duration::from_secs(5)));

    let _again = Served::start("n1", address, own(), vec![storage]).await;
    let back = heard(&is_ready).await;
    let connected = back.iter().position(|news| *news == News::Connected).unwrap();
    assert!(back[..connected].iter().all(|news| *news == News::Refused), "{back:?}");
    let sequences: Vec<u64> =
        first.iter().chain(&beats(&away)).chain(&beats(&back)).map(|beat| beat.sequence).collect();
    assert!(sequences[0] > 0 && sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");

    agents.follow(&[]);
    let ended = heard(&|news| news.iter().any(|news| matches!(news, News::Lost { .. }))).await;
    assert!(matches!(ended.last(), Some(News::Lost { .. })), "{ended:?}");
    tokio::time::sleep(HEARTBEAT * 4).await;
    assert_eq!(*told.lock().unwrap(), [], "nothing more is told of who is not followed");
}
