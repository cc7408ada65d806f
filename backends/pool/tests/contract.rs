//! Grants and connections where nodes die, come back, and leave things behind.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Lab, device, open};
use conformance::backend::{Subject, lock, refused};
use host::{Effects, Host, LinuxHost};
use pool::{Pool, PoolConfig, Scope};
use std::sync::Arc;
use volume::{
    AttachContext, BackendName, Connector, ErrorKind, Fence, FenceHow, FenceMethod, FsType, NodeId, NodeIdentity,
    VolumeKind, VolumeSpec,
};

fn lab(test: &str) -> Option<Lab> {
    Lab::new(test, FsType::Xfs)
}

fn fence(s: &Subject) -> &dyn Fence {
    s.backend.fence().unwrap()
}

/// The orchestrator's attachment outlives a reboot, and it does not publish to the controller again.
#[test]
fn a_rebooted_node_goes_on_with_its_grant() {
    let Some(lab) = lab("a_rebooted_node") else { return };
    let s = &lab.subject;
    let (id, first) = (s.create("v").id, s.register("n1"));
    let context = s.attach(&id, &first).unwrap();
    s.connect(&id, &first, Some(&context)).unwrap();
    let next = s.register("n1");
    let refusal = refused(s.connect(&id, &next, Some(&context)), ErrorKind::FailedPrecondition);
    assert!(refusal.contains("earlier life"), "its old device is still there: {refusal}");
    s.disconnect(&id, &next);
    s.connect(&id, &next, Some(&context)).unwrap();
    assert_eq!(s.find(&id).attachment.unwrap().holder.incarnation, next.incarnation);
    assert_eq!(s.attach(&id, &next).unwrap(), context);
    refused(s.connect(&id, &first, Some(&context)), ErrorKind::Held);
    s.disconnect(&id, &next);
}

/// Nobody needs to fence a node that came back: what its earlier life held is free once its devices are gone.
#[test]
fn a_new_life_proves_the_end_of_the_old_one() {
    let Some(lab) = lab("a_new_life") else { return };
    let s = &lab.subject;
    let (id, n1, n2) = (s.create("v").id, s.register("n1"), s.register("n2"));
    s.attach(&id, &n1).unwrap();
    s.connect(&id, &n1, None).unwrap();
    refused(s.attach(&id, &n2), ErrorKind::Held);
    let n1 = s.register("n1");
    refused(s.attach(&id, &n2), ErrorKind::Held);
    s.disconnect(&id, &n1);
    assert_eq!(s.attach(&id, &n2).unwrap().epoch.0, 2);
}

#[test]
fn a_device_that_is_left_over_and_in_use_is_in_the_way() {
    let Some(lab) = lab("a_device_that_is_left_over") else { return };
    let s = &lab.subject;
    let host = LinuxHost::new(Effects::default());
    let (id, n1) = (s.create("v").id, s.register("n1"));
    s.attach(&id, &n1).unwrap();
    let image = lab.image(&id);
    let identity = host.image_identity(&image).unwrap();
    let label = format!("{}@0", id.as_str().split_once('.').unwrap().1);
    let request = host::LoopRequest { image: &image, identity: &identity, label: &label, read_only: false };
    let stray = host.attach_loop(&request).unwrap();
    let target = tempfile::tempdir().unwrap();
    let mount = host::MountRequest {
        device: &stray.path,
        number: stray.number,
        fs: FsType::Ext4,
        target: target.path(),
        read_only: false,
        flags: &[],
    };
    host.mount(&mount).unwrap();
    let refusal = refused(s.connect(&id, &n1, None), ErrorKind::FailedPrecondition);
    assert!(refusal.contains(stray.path.to_str().unwrap()), "{refusal}");
    host.unmount(target.path()).unwrap();
    s.connect(&id, &n1, None).unwrap();
    let loops = lab.loops_of(&image);
    assert!(loops.len() == 1 && loops[0].label.contains("@1#"), "one that nobody uses is taken down: {loops:?}");
    s.disconnect(&id, &n1);
}

#[test]
fn a_detach_that_is_refused_leaves_the_node_at_work() {
    let Some(lab) = lab("a_detach_that_is_refused") else { return };
    let s = &lab.subject;
    let (id, n1) = (s.create("v").id, s.register("n1"));
    let context = s.attach(&id, &n1).unwrap();
    s.connect(&id, &n1, Some(&context)).unwrap();
    refused(s.detach(&id, Some(&n1)), ErrorKind::FailedPrecondition);
    s.connect(&id, &n1, Some(&context)).unwrap();
    assert_eq!(s.attach(&id, &n1).unwrap(), context);
    s.disconnect(&id, &n1);
    s.detach(&id, Some(&n1)).unwrap();
    refused(s.connect(&id, &n1, Some(&context)), ErrorKind::Held);
}

#[test]
fn an_unfence_waits_for_the_last_device_and_lets_the_same_life_go_on() {
    let Some(lab) = lab("an_unfence_waits") else { return };
    let s = &lab.subject;
    let (id, n1, n2) = (s.create("v").id, s.register("n1"), s.register("n2"));
    s.attach(&id, &n1).unwrap();
    s.connect(&id, &n1, None).unwrap();
    fence(s).fence(&n1.id, None, "test", FenceHow::Enforce).unwrap();
    // The grant has moved on, and the device is on an orphan now.
    s.attach(&id, &n2).unwrap();
    s.connect(&id, &n2, None).unwrap();
    let refusal = refused(fence(s).unfence(&n1.id, None, "test"), ErrorKind::FailedPrecondition);
    assert!(refusal.contains("/dev/loop"), "{refusal}");
    s.disconnect(&id, &n1);
    assert_eq!(lab.loops_of(&lab.image(&id)).len(), 1, "the other node's device stays");
    fence(s).unfence(&n1.id, None, "test").unwrap();
    fence(s).unfence(&n1.id, None, "test").unwrap();
    let other = s.create("other").id;
    s.attach(&other, &n1).unwrap();
    refused(s.attach(&id, &n1), ErrorKind::Held);
    s.disconnect(&id, &n2);
}

/// An administrator who errs does no harm where the pool can clone.
#[test]
fn a_node_said_to_be_off_writes_into_an_orphan_at_most() {
    let Some(lab) = lab("a_node_said_to_be_off") else { return };
    let s = &lab.subject;
    let (id, n1) = (s.create("v").id, s.register("n1"));
    s.attach(&id, &n1).unwrap();
    let old = device(s.connect(&id, &n1, None).unwrap());
    let before = lab.image(&id);
    let report = fence(s).fence(&n1.id, None, "root@console", FenceHow::PoweredOff).unwrap();
    let proof = report.volumes[0].proof.as_ref().unwrap();
    assert_eq!(proof.method, FenceMethod::PoweredOff);
    assert!(proof.evidence[0].contains(old.to_str().unwrap()), "a device on this very kernel is limited: {proof:?}");
    assert_ne!(lab.image(&id), before);
    s.disconnect(&id, &n1);
}

#[test]
fn orphans_stay_while_a_device_has_them() {
    let Some(lab) = lab("orphans_stay") else { return };
    let s = &lab.subject;
    let (id, n1) = (s.create("v").id, s.register("n1"));
    s.attach(&id, &n1).unwrap();
    s.connect(&id, &n1, None).unwrap();
    let image = LinuxHost::new(Effects::default()).image_identity(&lab.image(&id)).unwrap();
    fence(s).fence(&n1.id, None, "test", FenceHow::Enforce).unwrap();
    let orphans = fence(s).orphans().unwrap();
    assert_eq!((orphans.len(), orphans[0].image.inode), (1, image.inode));
    assert_eq!(fence(s).remove_orphans(Some(&id)).unwrap(), []);
    s.disconnect(&id, &n1);
    assert_eq!(fence(s).remove_orphans(Some(&id)).unwrap(), orphans);
    assert!(lab.image(&id).exists());
    refused(fence(s).remove_orphans(Some(&s.volume_id("none"))), ErrorKind::NotFound);
    // Young ones stay, old ones go by themselves.
    s.attach(&id, &s.register("n2")).unwrap();
    fence(s).fence(&NodeId::parse("n2").unwrap(), None, "test", FenceHow::Enforce).unwrap();
    assert_eq!(fence(s).remove_orphans(None).unwrap(), []);
    let config = PoolConfig { orphan_keep_ms: 0, ..config(&lab) };
    let impatient = Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(Fence::remove_orphans(&impatient, None).unwrap().len(), 1);
}

#[test]
fn a_local_pool_serves_its_node_alone() {
    let Some(lab) = lab("a_local_pool") else { return };
    let own = NodeId::parse("n1").unwrap();
    let config = PoolConfig {
        directory: lab.directory.parent().unwrap().join("local"),
        scope: Scope::Local,
        node: Some(own),
        ..config(&lab)
    };
    let pool = Arc::new(Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap());
    let s = Subject {
        backend: pool.clone(),
        connector: pool,
        another: Box::new(|| unreachable!("one is enough")),
        write: conformance::backend::write_device(),
        set_image_bytes: Box::new(|id, _| panic!("no test here cuts {id}")),
        keep: Box::new(()),
    };
    let (id, n1, n2) = (s.create("v").id, s.register("n1"), s.register("n2"));
    let refusal = refused(s.attach(&id, &n2), ErrorKind::FailedPrecondition);
    assert!(refusal.contains("local to node n1"), "{refusal}");
    s.attach(&id, &n1).unwrap();
}

/// Two nodes on one kernel: each sees and takes down what is its own.
#[test]
fn nodes_of_one_kernel_do_not_touch_each_other() {
    let Some(lab) = lab("nodes_of_one_kernel") else { return };
    let s = &lab.subject;
    let node = |name: &str| {
        let config = PoolConfig { node: Some(NodeId::parse(name).unwrap()), ..config(&lab) };
        Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap()
    };
    let (pool1, pool2) = (node("n1"), node("n2"));
    let (id, n1, n2) = (s.create("v").id, s.register("n1"), s.register("n2"));
    s.attach(&id, &n1).unwrap();
    s.connect(&id, &n1, None).unwrap();
    let disconnect = |pool: &Pool, node: &NodeIdentity| pool.disconnect(&lock(id.as_str()), &id, node).unwrap();
    disconnect(&pool2, &n2);
    assert!(pool1.observe(&id).unwrap().is_some() && pool2.observe(&id).unwrap().is_none());
    assert!(pool2.observe_all().unwrap().is_empty() && pool1.observe_all().unwrap().len() == 1);
    fence(s).fence(&n1.id, None, "test", FenceHow::Enforce).unwrap();
    s.attach(&id, &n2).unwrap();
    s.connect(&id, &n2, None).unwrap();
    let (seen1, seen2) = (pool1.observe(&id).unwrap().unwrap(), pool2.observe(&id).unwrap().unwrap());
    assert_ne!(device(seen1), device(seen2));
    disconnect(&pool1, &n1);
    assert!(pool1.observe(&id).unwrap().is_none() && pool2.observe(&id).unwrap().is_some());
    disconnect(&pool2, &n2);
}

#[test]
fn a_fence_reports_what_it_could_not_do_and_goes_on() {
    let Some(lab) = lab("a_fence_reports") else { return };
    let s = &lab.subject;
    let (bad, good, n1) = (s.create("bad").id, s.create("good").id, s.register("n1"));
    for id in [&bad, &good] {
        s.attach(id, &n1).unwrap();
    }
    let image = lab.image(&bad);
    std::fs::rename(&image, lab.directory.join("away")).unwrap();
    let report = fence(s).fence(&n1.id, None, "test", FenceHow::Enforce).unwrap();
    for outcome in report.volumes {
        assert_eq!(outcome.proof.is_ok(), outcome.volume == good, "{outcome:?}");
    }
    let n2 = s.register("n2");
    refused(s.attach(&bad, &n2), ErrorKind::Held);
    s.attach(&good, &n2).unwrap();
    std::fs::rename(lab.directory.join("away"), &image).unwrap();
    fence(s).fence(&n1.id, None, "test", FenceHow::Enforce).unwrap();
    s.attach(&bad, &n2).unwrap();
}

#[test]
fn a_volume_made_again_knows_nothing_of_the_old_grants() {
    let Some(lab) = lab("a_volume_made_again") else { return };
    let s = &lab.subject;
    let n1 = s.register("n1");
    let volume = s.ensure(&VolumeSpec { kind: VolumeKind::Block, ..s.spec("v") }).unwrap();
    let old = s.attach(&volume.id, &n1).unwrap();
    s.detach(&volume.id, Some(&n1)).unwrap();
    s.delete(&volume.id).unwrap();
    refused(s.connect(&volume.id, &n1, Some(&old)), ErrorKind::NotFound);
    s.create("v");
    refused(s.connect(&volume.id, &n1, Some(&old)), ErrorKind::Held);
    refused(s.connect(&volume.id, &n1, Some(&AttachContext::new(old.epoch.next()))), ErrorKind::Held);
    let again = open(&lab.directory, Effects::default());
    assert_eq!(again.observe(&volume.id).unwrap(), None);
}

/// A fork that no record ever named has less than what was acknowledged; one that a record names has all.
#[test]
fn a_rebuild_takes_the_image_that_counted() {
    let Some(lab) = lab("a_rebuild_takes") else { return };
    let s = &lab.subject;
    let (id, n1) = (s.create("v").id, s.register("n1"));
    let first = lab.files(&id, "image.").remove(0);
    let lose_records_and_reopen = || {
        for name in lab.files(&id, "record.") {
            std::fs::remove_file(lab.volume_dir(&id).join(name)).unwrap();
        }
        drop(open(&lab.directory, Effects::default()));
        let newest = lab.files(&id, "record.").into_iter().max().unwrap();
        std::fs::read_to_string(lab.volume_dir(&id).join(newest)).unwrap()
    };
    let abandoned = lab.volume_dir(&id).join("image.0000000000000001.00c0ffee");
    std::fs::copy(lab.volume_dir(&id).join(&first), &abandoned).unwrap();
    assert!(lose_records_and_reopen().contains(&format!("{first:?}")));
    s.attach(&id, &n1).unwrap();
    fence(s).fence(&n1.id, None, "test", FenceHow::Enforce).unwrap();
    assert!(!abandoned.exists(), "no fence can record it any more");
    let fork = lab.image(&id).file_name().unwrap().to_owned();
    assert!(lose_records_and_reopen().contains(&format!("{fork:?}")));
}

fn config(lab: &Lab) -> PoolConfig {
    PoolConfig::new(BackendName::parse("pool").unwrap(), &lab.directory)
}

/// CSI 1.13, ControllerPublishVolume: RESOURCE_EXHAUSTED "Max volumes attached".
#[test]
fn a_node_gets_no_more_volumes_than_it_takes() {
    let Some(lab) = lab("a_node_gets_no_more_volumes") else { return };
    let s = &lab.subject;
    let (first, second, n1) = (s.create("a").id, s.create("b").id, s.register("n1"));
    let name = BackendName::parse("pool").unwrap();
    let config = PoolConfig { max_volumes_per_node: Some(1), ..PoolConfig::new(name, &lab.directory) };
    let pool = Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap();
    let attach = |id| {
        let request = volume::AttachRequest { volume: id, node: &n1.id, read_only: false };
        volume::Attach::attach(&pool, &lock(id.as_str()), &request)
    };
    attach(&first).unwrap();
    let refusal = refused(attach(&second), ErrorKind::Exhausted);
    assert!(refusal.contains("n1") && refusal.contains("max_volumes_per_node"), "{refusal}");
    attach(&first).unwrap();
    // After a reboot it is the node's own volume still, and takes no other's place.
    s.register("n1");
    attach(&first).unwrap();
    s.detach(&first, Some(&n1)).unwrap();
    attach(&second).unwrap();
}
