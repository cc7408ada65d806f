//! A node that cannot reach a storage in which nothing else stops its writing.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use volume::{Connected, Fence, FenceHow, NodeIdentity, NodeRecord, Segments};

const LEASE: Duration = Duration::from_secs(10);

/// The memory backend, with a lease, and away at will.
struct Leased {
    inner: Box<dyn Connector>,
    lease: Option<Duration>,
    is_away: AtomicBool,
}

impl Leased {
    fn here(&self) -> Result<&dyn Connector> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "the pool is away"));
        }
        Ok(self.inner.as_ref())
    }
}

impl Connector for Leased {
    fn register(&self, node: &NodeIdentity) -> Result<NodeRecord> {
        self.here()?.register(node)
    }
    fn show_life(&self, _: &NodeIdentity) -> Result<()> {
        self.here().map(drop)
    }
    fn lease(&self) -> Option<Duration> {
        self.lease
    }
    fn volume(&self, id: &VolumeId) -> Result<volume::Volume> {
        self.here()?.volume(id)
    }
    fn connect(&self, guard: &VolumeGuard, request: &volume::ConnectRequest<'_>) -> Result<Connected> {
        self.here()?.connect(guard, request)
    }
    fn disconnect(&self, guard: &VolumeGuard, id: &VolumeId, node: &NodeIdentity) -> Result<()> {
        self.here()?.disconnect(guard, id, node)
    }
    fn connections(&self, id: &VolumeId) -> Result<Vec<Connected>> {
        self.here()?.connections(id)
    }
    fn observe_all(&self) -> Result<Vec<(VolumeId, Connected)>> {
        self.here()?.observe_all()
    }
    fn refresh_size(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<u64> {
        self.here()?.refresh_size(guard, id)
    }
    fn mark_staged(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        self.here()?.mark_staged(guard, id)
    }
    fn max_volumes(&self) -> Option<u64> {
        self.inner.max_volumes()
    }
    fn topology(&self) -> Result<Segments> {
        self.inner.topology()
    }
}

/// A lab whose node has a lease, with one volume staged.
fn leased(kind: VolumeKind, lease: Option<Duration>) -> (Lab, Arc<Leased>, Volume) {
    let mut lab = Lab::new();
    let inner = Box::new(lab.backend.connector());
    let connector = Arc::new(Leased { inner, lease, is_away: AtomicBool::new(false) });
    let known = config(&lab.host, &lab.backend, lab.state.path(), lab.profile, "n1");
    let connectors = vec![(lab.backend.name().clone(), connector.clone() as Arc<dyn Connector>)];
    lab.service = NodeService::new(NodeConfig { connectors, ..known }).unwrap();
    lab.service.register().unwrap();
    let volume = lab.attached("v", kind);
    lab.stage(&volume, STAGING).unwrap();
    lab.service.show_life(lab.backend.name()).unwrap();
    (lab, connector, volume)
}

/// Whether nothing that is written reaches the volume any more.
fn is_stopped(lab: &Lab, kind: VolumeKind) -> bool {
    match kind {
        EXT4 => lab.write(&format!("{STAGING}/late"), "late").is_err(),
        _ => lab.host.loops().unwrap().iter().all(|device| (1..4096).contains(&device.size_limit_bytes)),
    }
}

const KINDS: [VolumeKind; 3] = [EXT4, VolumeKind::FileSystem(FsType::Btrfs), VolumeKind::Block];

#[test]
fn a_node_that_cannot_reach_its_storage_stops_writing() {
    for kind in KINDS {
        let (lab, connector, _) = leased(kind, Some(LEASE));
        connector.is_away.store(true, Ordering::SeqCst);
        assert!(lab.service.show_life(lab.backend.name()).is_err());
        let now = Instant::now();
        (0..3).for_each(|_| lab.service.check_leases(now + LEASE / 2));
        assert!(!is_stopped(&lab, kind), "{kind}: too early");
        lab.service.check_leases(now + 2 * LEASE);
        assert!(!is_stopped(&lab, kind), "{kind}: a node that slept is not given the time to look");
        lab.service.check_leases(now + 2 * LEASE);
        assert!(is_stopped(&lab, kind), "{kind}");
    }
}

/// What the test above is seen to fail without.
#[test]
fn nothing_is_stopped_without_a_lease_or_with_one_that_is_renewed() {
    for kind in KINDS {
        let (lab, connector, _) = leased(kind, None);
        connector.is_away.store(true, Ordering::SeqCst);
        (0..3).for_each(|_| lab.service.check_leases(Instant::now() + 2 * LEASE));
        assert!(!is_stopped(&lab, kind), "{kind}: it has no lease");

        let (lab, ..) = leased(kind, Some(LEASE));
        for _ in 0..3 {
            lab.service.check_leases(Instant::now() + 2 * LEASE);
            lab.service.show_life(lab.backend.name()).unwrap();
        }
        assert!(!is_stopped(&lab, kind), "{kind}: it was renewed");
    }
}

/// A workload that keeps everything in use is stopped nevertheless, before the slower steps fail.
#[test]
fn a_fenced_node_stops_writing_before_it_takes_anything_away() {
    for kind in KINDS {
        let (lab, _, volume) = leased(kind, Some(LEASE));
        lab.publish(&volume, STAGING, TARGET).unwrap();
        let _in_use = lab.host.open(Path::new(TARGET)).unwrap();
        Fence::fence(&lab.backend, &NodeId::parse("n1").unwrap(), None, "test", FenceHow::Enforce).unwrap();
        assert!(lab.service.register().is_err());
        assert!(is_stopped(&lab, kind), "{kind}");
    }
}
