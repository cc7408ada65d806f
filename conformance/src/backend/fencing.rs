//! Cutting nodes off, and what follows from it.

use super::{Subject, refused};
use volume::{
    CapacityQuery, Connected, ErrorKind, Fence, FenceHow, FenceMethod, NodeIdentity, NodeState, Parameters, Volume,
    VolumeSpec,
};

const ACTOR: &str = "conformance";

pub fn fence_then_grant(s: &Subject) {
    let Some(fence) = enforceable(s) else { return };
    let (held, free) = (s.create("held"), s.create("free"));
    let (n1, n2) = (s.register("n1"), s.register("n2"));
    let first = s.attach(&held.id, &n1).unwrap();
    s.connect(&held.id, &n1, Some(&first)).unwrap();
    refused(s.attach(&held.id, &n2), ErrorKind::Held);
    let report = fence.fence(&n1.id, None, ACTOR, FenceHow::Enforce).unwrap();
    assert!(report.node.is_fenced());
    assert_eq!(report.volumes.len(), 1, "{report:?}");
    let proof = report.volumes[0].proof.as_ref().unwrap();
    assert_eq!((&report.volumes[0].volume, proof.actor.as_str()), (&held.id, ACTOR));
    assert!(matches!(proof.method, FenceMethod::LimitAndFork | FenceMethod::Limit | FenceMethod::Fork), "{proof:?}");
    assert_eq!(s.find(&held.id).attachment.unwrap().proof.as_ref(), Some(proof), "the proof is on record");
    let second = s.attach(&held.id, &n2).unwrap();
    assert_eq!(second.epoch.0, first.epoch.0 + 1);
    assert_eq!(s.holder(&held.id), Some(n2.id.clone()));
    // Whatever the old holder still asks for is refused, and its late detach changes nothing.
    refused(s.connect(&held.id, &n1, Some(&first)), ErrorKind::Held);
    s.detach(&held.id, Some(&n1)).unwrap();
    s.detach(&held.id, None).unwrap();
    assert_eq!(s.holder(&held.id), Some(n2.id.clone()));
    let connected = s.connect(&held.id, &n2, Some(&second)).unwrap();
    assert!(matches!(connected, Connected::Device { epoch, .. } if epoch == second.epoch), "{connected:?}");
    assert_eq!(s.find(&free.id).attachment, None);
    s.disconnect(&held.id, &n1);
    s.disconnect(&held.id, &n2);
}

pub fn fence_is_idempotent(s: &Subject) {
    let Some(fence) = enforceable(s) else { return };
    let volume = s.create("v");
    let n1 = s.register("n1");
    let context = s.attach(&volume.id, &n1).unwrap();
    s.connect(&volume.id, &n1, Some(&context)).unwrap();
    let first = fence.fence(&n1.id, None, ACTOR, FenceHow::Enforce).unwrap();
    let images = fence.orphans().unwrap().len();
    let again = (s.another)();
    let second = again.fence().unwrap().fence(&n1.id, None, "somebody else", FenceHow::Enforce).unwrap();
    assert_eq!(first.volumes[0].proof.as_ref().unwrap(), second.volumes[0].proof.as_ref().unwrap());
    assert_eq!(fence.orphans().unwrap().len(), images, "nothing is forked twice");
    s.disconnect(&volume.id, &n1);
    let nobody = volume::NodeId::parse("nobody").unwrap();
    refused(fence.fence(&nobody, None, ACTOR, FenceHow::Enforce), ErrorKind::NotFound);
}

pub fn fenced_nodes_are_refused(s: &Subject) {
    let Some(fence) = enforceable(s) else { return };
    let (held, other) = (s.create("held"), s.create("other"));
    let n1 = s.register("n1");
    let context = s.attach(&held.id, &n1).unwrap();
    s.connect(&held.id, &n1, Some(&context)).unwrap();
    fence.fence(&n1.id, None, ACTOR, FenceHow::Enforce).unwrap();
    refused(s.attach(&other.id, &n1), ErrorKind::Held);
    refused(s.attach(&held.id, &n1), ErrorKind::Held);
    assert!(s.connector.register(&n1).unwrap().is_fenced(), "a restart of the plugin does not lift the fence");
    refused(fence.unfence(&n1.id, None, ACTOR), ErrorKind::FailedPrecondition);
    refused(s.attach(&other.id, &n1), ErrorKind::Held);
    s.disconnect(&held.id, &n1);
    fence.unfence(&n1.id, None, ACTOR).unwrap();
    // Its next life starts live.
    let next = s.register("n1");
    s.attach(&other.id, &next).unwrap();
    s.attach(&held.id, &next).unwrap();
}

/// Who means one life of a node touches no other.
pub fn lives_are_told_apart(s: &Subject) {
    let Some(fence) = enforceable(s) else { return };
    let volume = s.create("v");
    let (first, n1) = (s.register("n1"), s.register("n1"));
    s.attach(&volume.id, &n1).unwrap();
    let (late, meant) = (Some(first.incarnation), Some(n1.incarnation));
    let refusal = refused(fence.fence(&n1.id, late, ACTOR, FenceHow::Enforce), ErrorKind::FailedPrecondition);
    assert!(refusal.contains(&n1.incarnation.to_string()), "it says what was found: {refusal}");
    refused(fence.unfence(&n1.id, late, ACTOR), ErrorKind::FailedPrecondition);
    let attach = s.backend.attach().unwrap();
    let is_fenced = || attach.nodes().unwrap().iter().any(|node| node.identity.id == n1.id && node.is_fenced());
    assert!(!is_fenced() && s.find(&volume.id).attachment.unwrap().proof.is_none(), "nothing has changed");
    fence.unfence(&n1.id, meant, ACTOR).unwrap();
    for _ in 0..2 {
        let report = fence.fence(&n1.id, meant, ACTOR, FenceHow::Enforce).unwrap();
        assert!(report.node.is_fenced() && report.volumes[0].proof.is_ok());
    }
    refused(fence.unfence(&n1.id, late, ACTOR), ErrorKind::FailedPrecondition);
    assert!(is_fenced());
    fence.unfence(&n1.id, meant, ACTOR).unwrap();
    assert!(!is_fenced());
}

pub fn powered_off(s: &Subject) {
    let Some(fence) = s.backend.fence() else { return };
    let volume = s.create("v");
    let (n1, n2) = (s.register("n1"), s.register("n2"));
    s.attach(&volume.id, &n1).unwrap();
    let report = fence.fence(&n1.id, None, "root@console", FenceHow::PoweredOff).unwrap();
    assert!(
        matches!(&report.node.state, NodeState::Fenced { powered_off: true, actor, .. } if actor == "root@console"),
        "{:?}",
        report.node
    );
    assert_eq!(report.volumes[0].proof.as_ref().unwrap().method, FenceMethod::PoweredOff);
    assert_eq!(s.attach(&volume.id, &n2).unwrap().epoch.0, 2);
}

/// What a fence leaves behind takes space, is listed, and goes when it is told to.
pub fn orphans(s: &Subject) {
    let Some(fence) = enforceable(s) else { return };
    if s.backend.restrictions().copies_are_full {
        return;
    }
    let parameters = Parameters { thick: true, ..Parameters::default() };
    let volume = s.ensure(&VolumeSpec { parameters, ..s.spec("v") }).unwrap();
    let n1 = s.register("n1");
    fence_with_a_device(s, fence, &volume, &n1);
    let orphans = fence.orphans().unwrap();
    assert_eq!(orphans.iter().map(|o| &o.volume).collect::<Vec<_>>(), [&volume.id]);
    assert!(orphans[0].allocated_bytes > 0);
    assert_eq!(fence.remove_orphans(None).unwrap(), [], "it is too young to go by itself");
    s.disconnect(&volume.id, &n1);
    let removed = fence.remove_orphans(Some(&volume.id)).unwrap();
    assert_eq!(removed, orphans);
    assert_eq!(fence.orphans().unwrap(), []);
    assert!(s.backend.capacity(&CapacityQuery::default()).unwrap().available_bytes > 0);
    // Deleting a volume takes its orphans along.
    let second = s.create("second");
    let n2 = s.register("n2");
    fence_with_a_device(s, fence, &second, &n2);
    s.disconnect(&second.id, &n2);
    s.detach(&second.id, Some(&n2)).unwrap();
    s.delete(&second.id).unwrap();
    assert_eq!(fence.orphans().unwrap(), []);
}

fn fence_with_a_device(s: &Subject, fence: &dyn Fence, volume: &Volume, node: &NodeIdentity) {
    let context = s.attach(&volume.id, node).unwrap();
    s.connect(&volume.id, node, Some(&context)).unwrap();
    fence.fence(&node.id, None, ACTOR, FenceHow::Enforce).unwrap().volumes[0].proof.as_ref().unwrap();
}

fn enforceable(s: &Subject) -> Option<&dyn Fence> {
    s.backend.fence().filter(|_| s.backend.restrictions().no_fence.is_none())
}
