//! The attachment contract, as a controller and its nodes meet it.

use super::{Subject, lock, refused};
use volume::{AttachContext, AttachRequest, Connected, ErrorKind, VolumeKind, VolumeSpec};

pub fn contract(s: &Subject) {
    let volume = s.create("v");
    let (n1, n2) = (s.register("n1"), s.register("n2"));
    let first = s.attach(&volume.id, &n1).unwrap();
    assert_eq!(first.epoch.0, 1);
    assert_eq!(s.attach(&volume.id, &n1).unwrap(), first, "the same holder again");
    let held = s.find(&volume.id);
    assert_eq!((held.epoch, &held.attachment.as_ref().unwrap().holder.node), (first.epoch, &n1.id));
    assert_eq!(held.attachment.unwrap().holder.incarnation, n1.incarnation);
    let refusal = refused(s.attach(&volume.id, &n2), ErrorKind::Held);
    assert!(refusal.contains("n1"), "names the holder: {refusal}");
    s.detach(&volume.id, Some(&n1)).unwrap();
    assert_eq!(s.holder(&volume.id), None);
    let second = s.attach(&volume.id, &n2).unwrap();
    assert_eq!(second.epoch.0, 2);
    let nobody = volume::NodeIdentity { id: volume::NodeId::parse("nobody").unwrap(), ..n1.clone() };
    refused(s.attach(&volume.id, &nobody), ErrorKind::NotFound);
    refused(s.attach(&s.volume_id("never made"), &n1), ErrorKind::NotFound);
    let nodes = s.backend.attach().unwrap().nodes().unwrap();
    let mut names: Vec<_> = nodes.iter().map(|n| n.identity.id.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["n1", "n2"]);
}

pub fn late_and_empty_detach(s: &Subject) {
    let volume = s.create("v");
    let (n1, n2) = (s.register("n1"), s.register("n2"));
    s.detach(&volume.id, Some(&n1)).unwrap();
    s.detach(&volume.id, None).unwrap();
    s.detach(&s.volume_id("never made"), Some(&n1)).unwrap();
    s.attach(&volume.id, &n2).unwrap();
    s.detach(&volume.id, Some(&n1)).unwrap();
    s.detach(&volume.id, None).unwrap();
    assert_eq!(s.holder(&volume.id), Some(n2.id.clone()), "a living holder stays");
    for _ in 0..2 {
        s.detach(&volume.id, Some(&n2)).unwrap();
        assert_eq!(s.holder(&volume.id), None);
    }
    assert_eq!(s.find(&volume.id).epoch.0, 1, "a detach is no grant");
}

pub fn held_volumes_stay(s: &Subject) {
    let volume = s.create("v");
    let n1 = s.register("n1");
    s.attach(&volume.id, &n1).unwrap();
    let refusal = refused(s.delete(&volume.id), ErrorKind::FailedPrecondition);
    assert!(refusal.contains("n1"), "names the holder: {refusal}");
    assert_eq!(s.create("v").id, volume.id, "creating it again finds it");
    s.detach(&volume.id, Some(&n1)).unwrap();
    s.delete(&volume.id).unwrap();
}

/// The storage sees the device: a detach does not take it away from under the node.
pub fn connected_volumes_stay_attached(s: &Subject) {
    let volume = s.create("v");
    let n1 = s.register("n1");
    let context = s.attach(&volume.id, &n1).unwrap();
    let connected = s.connect(&volume.id, &n1, Some(&context)).unwrap();
    let Connected::Device { epoch, read_only, .. } = &connected else { panic!("not a device: {connected:?}") };
    assert_eq!((*epoch, *read_only), (context.epoch, false));
    assert_eq!(s.connect(&volume.id, &n1, None).unwrap(), connected, "again, and without the context");
    assert_eq!(s.connector.observe(&volume.id).unwrap(), Some(connected.clone()));
    assert!(s.connector.observe_all().unwrap().contains(&(volume.id.clone(), connected)));
    refused(s.detach(&volume.id, Some(&n1)), ErrorKind::FailedPrecondition);
    assert_eq!(s.holder(&volume.id), Some(n1.id.clone()));
    for _ in 0..2 {
        s.disconnect(&volume.id, &n1);
        assert_eq!(s.connector.observe(&volume.id).unwrap(), None);
    }
    s.detach(&volume.id, Some(&n1)).unwrap();
    assert_eq!(s.holder(&volume.id), None);
}

pub fn stale_contexts(s: &Subject) {
    let volume = s.create("v");
    let (n1, n2) = (s.register("n1"), s.register("n2"));
    refused(s.connect(&volume.id, &n1, None), ErrorKind::Held);
    let first = s.attach(&volume.id, &n1).unwrap();
    refused(s.connect(&volume.id, &n2, Some(&first)), ErrorKind::Held);
    s.detach(&volume.id, Some(&n1)).unwrap();
    let second = s.attach(&volume.id, &n1).unwrap();
    refused(s.connect(&volume.id, &n1, Some(&first)), ErrorKind::Held);
    refused(s.connect(&volume.id, &n1, Some(&AttachContext::new(second.epoch.next()))), ErrorKind::Held);
    // The same node in another life is not the holder.
    let forged = volume::NodeIdentity { incarnation: volume::Incarnation::new_random(), ..n1.clone() };
    refused(s.connect(&volume.id, &forged, Some(&second)), ErrorKind::Held);
    assert_eq!(s.connector.observe(&volume.id).unwrap(), None, "a refused connect leaves nothing");
    s.connect(&volume.id, &n1, Some(&second)).unwrap();
    s.disconnect(&volume.id, &n1);
}

pub fn directories_are_shared(s: &Subject) {
    let volume = s.ensure(&VolumeSpec { kind: VolumeKind::Directory, ..s.spec("directory") }).unwrap();
    let nodes = [s.register("n1"), s.register("n2")];
    for node in &nodes {
        let context = s.attach(&volume.id, node).unwrap();
        let connected = s.connect(&volume.id, node, Some(&context)).unwrap();
        assert!(matches!(connected, Connected::Directory { .. }), "{connected:?}");
    }
    assert_eq!(s.holder(&volume.id), None, "nobody holds a directory alone");
    for node in &nodes {
        s.disconnect(&volume.id, node);
        s.detach(&volume.id, Some(node)).unwrap();
    }
    s.delete(&volume.id).unwrap();
}

pub fn read_only(s: &Subject) {
    let volume = s.create("v");
    let n1 = s.register("n1");
    let attach = s.backend.attach().unwrap();
    let ask = |read_only| {
        let request = AttachRequest { volume: &volume.id, node: &n1.id, read_only };
        attach.attach(&lock(volume.id.as_str()), &request)
    };
    let context = ask(true).unwrap();
    assert_eq!(ask(true).unwrap(), context);
    refused(ask(false), ErrorKind::AlreadyExists);
    // A read-only grant never becomes a writable device.
    refused(s.connect(&volume.id, &n1, Some(&context)), ErrorKind::Held);
    s.detach(&volume.id, Some(&n1)).unwrap();
    assert_eq!(ask(false).unwrap().epoch, context.epoch.next());
}

pub fn what_a_node_holds(s: &Subject) {
    let (first, second, other, free) = (s.create("first"), s.create("second"), s.create("other"), s.create("free"));
    let (n1, n2) = (s.register("n1"), s.register("n2"));
    s.attach(&first.id, &n1).unwrap();
    s.attach(&other.id, &n2).unwrap();
    // In another life of the node it is the node all the same.
    let next = s.register("n1");
    s.attach(&second.id, &next).unwrap();
    let held = |node: &volume::NodeIdentity| {
        let mut held = s.backend.attach().unwrap().held_by(&node.id).unwrap();
        held.sort_by(|a, b| a.id.cmp(&b.id));
        held
    };
    let mut wanted = vec![s.find(&first.id), s.find(&second.id)];
    wanted.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(held(&n1), wanted);
    assert_eq!(held(&n2), [s.find(&other.id)]);
    assert_eq!(s.find(&free.id).attachment, None);
    s.detach(&other.id, Some(&n2)).unwrap();
    assert_eq!(held(&n2), []);
}

/// A node that takes grants itself has the same contract as a controller.
pub fn a_node_grants_to_itself(s: &Subject) {
    let Some(grants) = s.connector.grants() else { return };
    let id = s.create("v").id;
    let (n1, n2) = (s.register("n1"), s.register("n2"));
    let take = |node: &volume::NodeIdentity| {
        grants.attach(&lock(id.as_str()), &AttachRequest { volume: &id, node: &node.id, read_only: false })
    };
    let give_back = |node: &volume::NodeIdentity| grants.detach(&lock(id.as_str()), &id, Some(&node.id));
    let context = take(&n1).unwrap();
    assert_eq!(take(&n1).unwrap(), context);
    refused(take(&n2), ErrorKind::Held);
    s.connect(&id, &n1, None).unwrap();
    refused(give_back(&n1), ErrorKind::FailedPrecondition);
    give_back(&n2).unwrap();
    assert_eq!(s.holder(&id), Some(n1.id.clone()));
    s.disconnect(&id, &n1);
    give_back(&n1).unwrap();
    take(&n2).unwrap();
    s.connect(&id, &n2, None).unwrap();
    s.disconnect(&id, &n2);
}

/// A mark that grows is a node that lives; one that never was is no mark.
pub fn signs_of_life(s: &Subject) {
    let (n1, n2) = (s.register("n1"), s.register("n2"));
    let seen = |node: &volume::NodeIdentity| {
        let all = s.backend.attach().unwrap().signs_of_life().unwrap()?;
        Some(all.into_iter().find(|(id, _)| *id == node.id).map_or(0, |(_, sign)| sign))
    };
    s.connector.show_life(&n1).unwrap();
    let Some(first) = seen(&n1) else { return };
    assert_eq!(seen(&n1), Some(first), "nobody has shown any life since");
    for node in [&n1, &n2] {
        let before = seen(node);
        s.connector.show_life(node).unwrap();
        assert!(seen(node) > before, "{:?} after {before:?}", seen(node));
    }
}
