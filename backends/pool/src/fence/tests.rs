//! A pool whose loops are out of sight, as on NFS: a local file system that claims to be one.

use super::*;
use crate::PoolConfig;
use conformance::backend::{Subject, refused};
use conformance::scratch::ScratchPool;
use host::file::FileSystemKind;
use host::{Effects, LinuxHost};
use std::sync::Arc;
use volume::{BackendName, FsType};

fn network(allow_fork_only_fence: bool) -> Option<Subject> {
    let scratch = match ScratchPool::new(FsType::Xfs, 1 << 30) {
        Ok(scratch) => scratch,
        Err(reason) => {
            println!("SKIPPED: fence::tests: {reason}");
            return None;
        }
    };
    let name = BackendName::parse("pool").unwrap();
    let config = PoolConfig { allow_fork_only_fence, ..PoolConfig::new(name, scratch.path().join("pool")) };
    let mut pool = Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap();
    pool.file_system = FileSystemKind::Network("nfs");
    let pool = Arc::new(pool);
    let another = pool.clone();
    Some(Subject {
        backend: pool.clone(),
        connector: pool,
        another: Box::new(move || another.clone()),
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
    let mut report = fence.fence(&n1.id, "test", FenceHow::Enforce).unwrap();
    let refusal = refused(report.volumes.remove(0).proof, ErrorKind::FailedPrecondition);
    assert!(refusal.contains("allow_fork_only_fence"), "{refusal}");
    refused(s.attach(&id, &n2), ErrorKind::Held);
    // An administrator's word is another matter.
    fence.fence(&n1.id, "test", FenceHow::PoweredOff).unwrap().volumes.remove(0).proof.unwrap();
    s.attach(&id, &n2).unwrap();
    fence.unfence(&n1.id, "test").unwrap();
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
    let proof = fence.fence(&n1.id, "test", FenceHow::Enforce).unwrap().volumes.remove(0).proof.unwrap();
    assert_eq!(proof.method, FenceMethod::Fork);
    assert_eq!(fence.orphans().unwrap().len(), 1);
    s.attach(&id, &n2).unwrap();
    refused(fence.unfence(&n1.id, "test"), ErrorKind::FailedPrecondition);
    s.disconnect(&id, &n1);
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
