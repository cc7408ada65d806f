//! Nodes that take the grants of volumes themselves.

use super::*;
use std::sync::Barrier;
use volume::{Fence, FenceHow};

fn own(kind: VolumeKind, id: &VolumeId) -> Volume {
    Volume { id: id.clone(), context: None, capability: capability(kind), is_read_only: false }
}

fn stage(service: &NodeService, volume: &Volume, path: &str) -> Result<()> {
    let request = StageRequest {
        volume: volume.id.clone(),
        context: None,
        staging_target_path: at(path),
        capability: volume.capability.clone(),
        parameters: None,
    };
    service.node.stage(&lock(&volume.id), &request, &mut Trace::new())
}

fn other(lab: &Lab, state: &Path) -> NodeService {
    let config = config(&lab.host, &lab.backend, state, lab.profile, "n2");
    let service = NodeService::new(NodeConfig { attacher: lab.attacher, ..config }).unwrap();
    service.register().unwrap();
    service
}

#[test]
fn the_second_node_waits_until_the_first_has_unstaged() {
    let lab = Lab::with(Profile::Kubernetes, Attacher::Node);
    let state = tempfile::tempdir().unwrap();
    let n2 = other(&lab, state.path());
    // Raw, because both nodes of this fake share one mount table.
    let volume = lab.attached("v", VolumeKind::Block);
    lab.stage(&volume, STAGING).unwrap();
    lab.stage(&volume, STAGING).unwrap();
    refused(stage(&n2, &volume, "/staging/b"), ErrorKind::Held, "node n1 holds the volume");
    assert_eq!(lab.holder(&volume.id).unwrap().as_str(), "n1", "the refused one gave nothing back");
    lab.unstage(&volume.id, STAGING).unwrap();
    assert_eq!(lab.holder(&volume.id), None);
    stage(&n2, &volume, "/staging/b").unwrap();
    // A late one changes nothing.
    lab.unstage(&volume.id, STAGING).unwrap();
    assert_eq!(lab.holder(&volume.id).unwrap().as_str(), "n2");
    refused(lab.stage(&volume, STAGING), ErrorKind::Held, "node n2 holds the volume");
}

#[test]
fn one_of_two_nodes_that_race_gets_it() {
    for _ in 0..50 {
        let lab = Lab::with(Profile::Kubernetes, Attacher::Node);
        let state = tempfile::tempdir().unwrap();
        let n2 = other(&lab, state.path());
        let volume = lab.attached("v", VolumeKind::Block);
        let start = Barrier::new(2);
        let race = |service: &NodeService, path: &str| {
            start.wait();
            stage(service, &volume, path)
        };
        let (first, second) = std::thread::scope(|scope| {
            let other = scope.spawn(|| race(&n2, "/staging/b"));
            (race(&lab.service, STAGING), other.join().unwrap())
        });
        let winner = if first.is_ok() { "n1" } else { "n2" };
        assert_ne!(first.is_ok(), second.is_ok(), "{first:?} {second:?}");
        refused(first.and(second), ErrorKind::Held, winner);
        assert_eq!(lab.holder(&volume.id).unwrap().as_str(), winner);
        assert_eq!(lab.host.loops().unwrap().len(), 1);
    }
}

#[test]
fn a_fenced_node_takes_nothing() {
    let lab = Lab::with(Profile::Kubernetes, Attacher::Node);
    let state = tempfile::tempdir().unwrap();
    let n2 = other(&lab, state.path());
    let (held, free) = (lab.attached("held", VolumeKind::Block), lab.attached("free", EXT4));
    lab.stage(&held, STAGING).unwrap();
    Fence::fence(&lab.backend, &NodeId::parse("n1").unwrap(), None, "test", FenceHow::Enforce).unwrap();
    for volume in [&held, &free] {
        refused(lab.stage(volume, "/staging/b"), ErrorKind::Held, "fenced");
    }
    assert_eq!(lab.holder(&free.id), None);
    stage(&n2, &held, "/staging/c").unwrap();
    assert_eq!(lab.holder(&held.id).unwrap().as_str(), "n2");
}

/// Nobody but this node knows of a grant that a crash left.
#[test]
fn a_crash_between_grant_and_mount() {
    for (profile, kind) in
        [(Profile::Kubernetes, EXT4), (Profile::Kubernetes, VolumeKind::Block), (Profile::Swarm, EXT4)]
    {
        let mut lab = Lab::with(profile, Attacher::Node);
        let id = lab.create("v", kind, Parameters::default());
        let granted = lab.attach(&id, "n1", false).unwrap();
        // The retry finds it.
        let volume = own(kind, &id);
        match profile {
            Profile::Kubernetes => lab.stage(&volume, STAGING).unwrap(),
            _ => lab.publish(&volume, "", TARGET).unwrap(),
        }
        let found = lab.backend.find_volume(&id).unwrap().unwrap();
        assert_eq!(found.epoch, granted.epoch);
        let report = lab.restart().unwrap();
        assert!(report.done.is_empty(), "what is in use stays: {report:?}");
        assert!(lab.holder(&id).is_some());
        match profile {
            Profile::Kubernetes => lab.unstage(&id, STAGING).unwrap(),
            _ => lab.unpublish(&id, TARGET).unwrap(),
        }
        assert_eq!(lab.holder(&id), None);

        // And without a retry the next start does.
        lab.attach(&id, "n1", false).unwrap();
        let report = lab.restart().unwrap();
        assert!(report.done.iter().any(|line| line.contains("GiveBack")), "{report:?}");
        assert_eq!(lab.holder(&id), None);
        // Where the controller grants, a grant without a mount is one that waits for its stage.
        lab.attacher = Attacher::Controller;
        lab.attach(&id, "n1", false).unwrap();
        lab.restart().unwrap();
        assert!(lab.holder(&id).is_some());
    }
}

#[test]
fn an_unstage_that_could_not_give_back_does_so_when_it_is_repeated() {
    let lab = Lab::with(Profile::Kubernetes, Attacher::Node);
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    let connector = lab.backend.connector();
    lab.host.unmount(Path::new(STAGING)).unwrap();
    connector.disconnect(&lock(&volume.id), &volume.id, &lab.service.identity().unwrap()).unwrap();
    assert!(lab.holder(&volume.id).is_some());
    lab.unstage(&volume.id, STAGING).unwrap();
    assert_eq!(lab.holder(&volume.id), None);
}

#[test]
fn a_reboot_gives_back_and_takes_anew() {
    let mut lab = Lab::with(Profile::Kubernetes, Attacher::Node);
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    lab.write("/staging/a/file", "kept").unwrap();
    lab.host.reboot();
    lab.restart().unwrap();
    assert_eq!(lab.holder(&volume.id), None);
    lab.stage(&volume, STAGING).unwrap();
    assert_eq!(lab.read("/staging/a/file"), "kept");
}
