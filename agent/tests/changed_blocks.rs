//! Lists of blocks that are longer than what is sent at once, over a real connection.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers are no test functions.

mod common;

use agent::{Agents, Role};
use common::{Served, agents, any_port, credentials, node, runtime};
use host::FakeHost;
use memory::MemoryBackend;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;
use volume::{
    AttachRequest, Backend, BackendName, Backends, ByteRange, ConnectRequest, Connected, Connector, ErrorKind,
    Incarnation, LockTable, NodeId, NodeIdentity, Parameters, Result, SizeRange, SnapshotId, TopologyRequirement,
    VolumeGuard, VolumeId, VolumeKind, VolumeName, VolumeSpec,
};

const BLOCK: u64 = 4096;
/// Apart from each other: more than two pages.
const BLOCKS: u64 = 10_240;

struct Setup {
    local: Arc<MemoryBackend>,
    remote: Arc<dyn Backend>,
    volume: VolumeId,
    base: SnapshotId,
    target: SnapshotId,
    keep: Box<dyn Any>,
}

/// A raw volume in which every second block was written between two snapshots.
fn setup() -> Setup {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let host = Arc::new(FakeHost::default());
    let name = BackendName::parse("memory").unwrap();
    let local = Arc::new(MemoryBackend::new(name.clone(), Arc::clone(&host), 4 << 30, None));
    let volume = raw(&local);
    let device = connect(&local, &volume);
    let base = snapshot(&*local, &volume, "base");
    for n in 0..BLOCKS {
        host.write_blocks(&device, n * 2 * BLOCK, &[1; BLOCK as usize]).unwrap();
    }
    let target = snapshot(&*local, &volume, "target");
    let (served, connected) = runtime.block_on(async {
        let own = credentials(dir.path(), "n1", &[Role::Node(node("n1"))]);
        let served = Served::start("n1", any_port(), own, vec![Arc::clone(&local) as _]).await;
        let agents: Agents = agents(credentials(dir.path(), "c", &[Role::Controller]), &[("n1", served.address)]);
        common::until(&agents, "n1", |state| state.is_connected).await;
        (served, agents)
    });
    let remote = connected.all().remove(0);
    Setup { local, remote, volume, base, target, keep: Box::new((connected, served, dir, runtime)) }
}

fn raw(backend: &MemoryBackend) -> VolumeId {
    let name = VolumeName::parse("v").unwrap();
    let spec = VolumeSpec {
        id: VolumeId::of_name(backend.name(), &name),
        name,
        size: SizeRange { required_bytes: Some(BLOCKS * 2 * BLOCK), limit_bytes: None },
        kind: VolumeKind::Block,
        source: None,
        parameters: Parameters::default(),
        mutable: Default::default(),
        topology: TopologyRequirement::default(),
    };
    backend.ensure_volume(&lock(&[spec.id.as_str()]), &spec).unwrap().id
}

fn connect(backend: &MemoryBackend, volume: &VolumeId) -> std::path::PathBuf {
    let identity =
        NodeIdentity { id: NodeId::parse("n1").unwrap(), incarnation: Incarnation::new_random(), boot_id: "b".into() };
    let connector = backend.connector();
    connector.register(&identity).unwrap();
    let guard = lock(&[volume.as_str()]);
    let request = AttachRequest { volume, node: &identity.id, read_only: false };
    backend.attach().unwrap().attach(&guard, &request).unwrap();
    let request = ConnectRequest { volume, node: &identity, read_only: false, context: None };
    match connector.connect(&guard, &request).unwrap() {
        Connected::Device { path, .. } => path,
        Connected::Directory { path } => panic!("a directory: {}", path.display()),
    }
}

fn snapshot(backend: &dyn Backend, volume: &VolumeId, name: &str) -> SnapshotId {
    let name = VolumeName::parse(name).unwrap();
    let id = SnapshotId::of_name(backend.name(), &name);
    let guard = lock(&[id.as_str(), volume.as_str()]);
    backend.snapshots().unwrap().ensure_snapshot(&guard, &id, &name, volume).unwrap().id
}

fn lock(ids: &[&str]) -> VolumeGuard {
    LockTable::default().try_lock(ids.iter().copied()).unwrap()
}

fn delete(backend: &dyn Backend, id: &SnapshotId) {
    backend.snapshots().unwrap().delete_snapshot(&lock(&[id.as_str()]), id).unwrap();
}

#[test]
fn long_lists_are_the_same_from_afar() {
    let s = setup();
    let (local, remote) = (s.local.changed_blocks().unwrap(), s.remote.changed_blocks().unwrap());
    for from in [0, BLOCK / 2, 4096 * 2 * BLOCK, BLOCKS * 2 * BLOCK] {
        let whole = |list: volume::BlockRanges| list.ranges.collect::<Result<Vec<ByteRange>>>().unwrap();
        let changed = remote.changed(&s.base, &s.target, from).unwrap();
        assert_eq!(changed.size_bytes, BLOCKS * 2 * BLOCK);
        let changed = whole(changed);
        assert_eq!(changed, whole(local.changed(&s.base, &s.target, from).unwrap()));
        assert_eq!(changed, whole(remote.allocated(&s.target, from).unwrap()));
        assert_eq!(changed.len() as u64, BLOCKS - from.div_ceil(2 * BLOCK) + u64::from(from == BLOCK / 2));
    }
}

/// The blocks of another snapshot of the same name are never taken for the rest of the first one's.
#[test]
fn a_snapshot_that_goes_meanwhile_ends_the_list_with_an_error() {
    let s = setup();
    let remote = s.remote.changed_blocks().unwrap();
    for is_made_again in [false, true] {
        let target = snapshot(&*s.local, &s.volume, "target");
        let mut ranges = remote.allocated(&target, 0).unwrap().ranges;
        assert!(ranges.next().unwrap().is_ok());
        delete(&*s.local, &target);
        if is_made_again {
            std::thread::sleep(Duration::from_millis(10));
            snapshot(&*s.local, &s.volume, "target");
        }
        let rest: Vec<_> = ranges.collect();
        let (last, before) = rest.split_last().unwrap();
        assert_eq!(last.as_ref().unwrap_err().kind(), ErrorKind::NotFound);
        assert!(before.iter().all(Result::is_ok) && (before.len() as u64) < BLOCKS / 2, "{}", before.len());
    }
}

#[test]
fn a_lost_agent_ends_the_list_with_an_error() {
    let mut s = setup();
    let mut ranges = s.remote.changed_blocks().unwrap().changed(&s.base, &s.target, 0).unwrap().ranges;
    assert!(ranges.next().unwrap().is_ok());
    s.keep = Box::new(());
    let errors: Vec<_> = ranges.filter_map(Result::err).collect();
    assert_eq!(errors.iter().map(volume::Error::kind).collect::<Vec<_>>(), [ErrorKind::Unavailable]);
}
