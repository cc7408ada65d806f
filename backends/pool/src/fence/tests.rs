//! A pool whose loops are out of sight, as on NFS: a local file system that claims to be one.

use super::*;
use crate::PoolConfig;
use crate::testing::lab;
use conformance::backend::{Subject, refused};
use conformance::scratch::ScratchPool;
use host::file::FileSystemKind;
use host::{Effects, LinuxHost};
use std::sync::Arc;
use volume::{BackendName, FsType};

fn network(allow_fork_only_fence: bool) -> Option<Subject> {
    subject(FileSystemKind::Network("nfs"), |config| PoolConfig { allow_fork_only_fence, ..config })
}

fn subject(file_system: FileSystemKind, configure: impl FnOnce(PoolConfig) -> PoolConfig) -> Option<Subject> {
    let scratch = match ScratchPool::new(FsType::Xfs, 1 << 30) {
        Ok(scratch) => scratch,
        Err(reason) => {
            println!("SKIPPED: fence::tests: {reason}");
            return None;
        }
    };
    let name = BackendName::parse("pool").unwrap();
    let config = configure(PoolConfig::new(name, scratch.path().join("pool")));
    let mut pool = Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap();
    pool.file_system = file_system;
    let pool = Arc::new(pool);
    let another = pool.clone();
    Some(Subject {
        backend: pool.clone(),
        connector: pool,
        another: Box::new(move || another.clone()),
        write: conformance::backend::write_device(),
        set_image_bytes: Box::new(|id, _| panic!("no test here cuts {id}")),
        keep: Box::new(scratch),
    })
}

#[test]
fn without_the_opt_in_nothing_is_fenced() {
    let Some(s) = network(false) else { return };
    assert!(s.backend.restrictions().no_fence.is_some());
    let (id, n1, n2) = (s.create("v").id, s.register("n1"), s.register("n2"));
    s.attach(&id, &n1).unwrap();
    let fence = s.backend.fence().unwrap();
    let mut report = fence.fence(&n1.id, None, "test", FenceHow::Enforce).unwrap();
    let refusal = refused(report.volumes.remove(0).proof, ErrorKind::FailedPrecondition);
    assert!(refusal.contains("allow_fork_only_fence"), "{refusal}");
    refused(s.attach(&id, &n2), ErrorKind::Held);
    // An administrator's word is another matter.
    fence.fence(&n1.id, None, "test", FenceHow::PoweredOff).unwrap().volumes.remove(0).proof.unwrap();
    s.attach(&id, &n2).unwrap();
    fence.unfence(&n1.id, None, "test").unwrap();
}

#[test]
fn with_it_the_image_is_forked_and_the_weakness_declared() {
    let Some(s) = network(true) else { return };
    let restrictions = s.backend.restrictions();
    assert!(restrictions.no_fence.is_none() && restrictions.weak_fence.is_some());
    let (id, n1, n2) = (s.create("v").id, s.register("n1"), s.register("n2"));
    s.attach(&id, &n1).unwrap();
    s.connect(&id, &n1, None).unwrap();
    let fence = s.backend.fence().unwrap();
    let proof = fence.fence(&n1.id, None, "test", FenceHow::Enforce).unwrap().volumes.remove(0).proof.unwrap();
    assert_eq!(proof.method, FenceMethod::Fork);
    assert_eq!(fence.orphans().unwrap().len(), 1);
    s.attach(&id, &n2).unwrap();
    refused(fence.unfence(&n1.id, None, "test"), ErrorKind::FailedPrecondition);
    s.disconnect(&id, &n1);
}

#[test]
fn a_pretended_network_has_nothing_but_the_fork_and_the_nodes_own_lease() {
    let open = |is_network_pretended, allow_fork_only_fence, shut_down_after_ms| {
        let scratch = tempfile::tempdir().unwrap();
        let config = PoolConfig::new(BackendName::parse("pool").unwrap(), scratch.path().join("pool"));
        let config = PoolConfig { is_network_pretended, allow_fork_only_fence, shut_down_after_ms, ..config };
        let pool = Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap();
        (pool.sees_all_loops(), volume::Connector::lease(&pool).map(|lease| lease.as_secs()))
    };
    assert_eq!(open(true, true, None), (false, Some(10)));
    assert_eq!(open(true, true, Some(3000)), (false, Some(3)));
    assert_eq!(open(true, true, Some(0)), (false, None));
    // Nothing is given away without the opt-in, and a local file system's loops are limited by whoever does.
    assert_eq!(open(true, false, None), (false, None));
    assert_eq!(open(false, true, None), (true, None));
}

/// What tests of late writes are seen to fail with.
#[test]
fn a_pretended_fence_records_a_proof_and_cuts_nothing_off() {
    let pretended = |config| PoolConfig { allow_fork_only_fence: true, is_fence_pretended: true, ..config };
    let Some(s) = subject(FileSystemKind::Network("nfs"), pretended) else { return };
    let (id, n1, n2) = (s.create("v").id, s.register("n1"), s.register("n2"));
    s.attach(&id, &n1).unwrap();
    let fence = s.backend.fence().unwrap();
    let proof = fence.fence(&n1.id, None, "test", FenceHow::Enforce).unwrap().volumes.remove(0).proof.unwrap();
    assert_eq!(proof.evidence, ["nothing was cut off: a test without a fence"]);
    assert!(fence.orphans().unwrap().is_empty(), "nothing was forked");
    s.attach(&id, &n2).unwrap();
}

#[test]
fn a_node_out_of_sight_is_asked_by_its_record_whether_it_is_connected() {
    let Some(s) = network(false) else { return };
    let (id, n1) = (s.create("v").id, s.register("n1"));
    s.attach(&id, &n1).unwrap();
    s.connect(&id, &n1, None).unwrap();
    refused(s.detach(&id, Some(&n1)), ErrorKind::FailedPrecondition);
    s.disconnect(&id, &n1);
    s.detach(&id, Some(&n1)).unwrap();
    assert_eq!(s.holder(&id), None);
}

/// A fencer that slept between the node's record and a volume's, while the node came back.
#[test]
fn a_late_fence_leaves_the_nodes_next_life_alone() {
    let Some((s, pool)) = lab("a_late_fence_leaves_the_nodes_next_life_alone", FsType::Xfs) else { return };
    let (id, n1) = (s.create("v").id, s.register("n1"));
    s.attach(&id, &n1).unwrap();
    pool.mark_fenced(&n1.id, None, "test", FenceHow::Enforce).unwrap();
    let again = s.register("n1");
    s.attach(&id, &again).unwrap();
    let device = s.connect(&id, &again, None).unwrap();
    refused(pool.fence_volume(&id, &n1.id, "test", FenceHow::Enforce), ErrorKind::Busy);
    assert_eq!(s.find(&id).attachment.unwrap().proof, None);
    let loops = pool.list_loops(&pool.volumes).unwrap().labelled(&id);
    assert_eq!(loops.iter().map(|found| found.size_limit_bytes).collect::<Vec<_>>(), [0], "{device:?}");
    s.disconnect(&id, &again);
}

/// A crash right after the record names the fork: what the next node writes to it is the volume.
#[test]
fn a_rebuild_finds_the_fork_that_was_written_to() {
    use std::os::unix::fs::FileExt;
    let Some((s, pool)) = lab("a_rebuild_finds_the_fork_that_was_written_to", FsType::Xfs) else { return };
    let (id, n1, n2) = (s.create("v").id, s.register("n1"), s.register("n2"));
    s.attach(&id, &n1).unwrap();
    pool.mark_fenced(&n1.id, None, "test", FenceHow::Enforce).unwrap();
    let mut state = RecordDir::<VolumeRecord>::find(&pool.volumes, id.as_str()).unwrap().unwrap();
    let record = state.record().clone();
    let held = record.attachment.clone().unwrap();
    let proof = FenceProof {
        method: FenceMethod::LimitAndFork,
        actor: "test".to_owned(),
        at_ms: 1,
        fenced_image: record.image.clone(),
        evidence: Vec::new(),
    };
    let fork = pool.fork(state.dir(), &record).unwrap();
    assert_eq!(state.publish(fenced(&record, &held, &proof, Some(fork.clone()))).unwrap(), Swap::Won);
    s.attach(&id, &n2).unwrap();
    let volume::Connected::Device { path, .. } = s.connect(&id, &n2, None).unwrap() else { panic!() };
    let device = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    device.write_all_at(&[0x5a; 4096], 32 << 20).unwrap();
    device.sync_all().unwrap();
    drop(device);
    s.disconnect(&id, &n2);
    for name in state.dir().names().unwrap().iter().filter(|name| crate::record::is_record(name)) {
        state.dir().remove_file(name).unwrap();
    }
    pool.rebuild_lost().unwrap();
    let rebuilt = RecordDir::<VolumeRecord>::find(&pool.volumes, id.as_str()).unwrap().unwrap();
    assert_eq!(rebuilt.record().image, Some(fork));
}
