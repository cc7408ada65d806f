//! What is in the volumes: copies hold what was there, fences lose nothing that was acknowledged.
#![allow(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests fail the test")]

use conformance::backend::{SIZE, Subject, at_least, lock};
use host::{FakeHost, Host, MountRequest};
use memory::MemoryBackend;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use volume::{
    BackendName, Connected, ErrorKind, FenceHow, FsType, NodeIdentity, VolumeId, VolumeKind, VolumeSource, VolumeSpec,
};

fn machine() -> (Arc<FakeHost>, Subject) {
    let host = Arc::new(FakeHost::default());
    let backend = MemoryBackend::new(BackendName::parse("memory").unwrap(), Arc::clone(&host), 4 << 30, None);
    let connector = Arc::new(backend.connector());
    let another = backend.clone();
    let subject = Subject {
        backend: Arc::new(backend),
        connector,
        another: Box::new(move || Arc::new(another.clone())),
        write: Box::new(|_, _, _| unreachable!("these tests write to the host")),
        set_image_bytes: Box::new(|id, _| panic!("no test here cuts {id}")),
        keep: Box::new(()),
    };
    (host, subject)
}

/// Attaches and mounts the volume; where.
fn mount(host: &FakeHost, subject: &Subject, id: &VolumeId, node: &NodeIdentity) -> PathBuf {
    let context = subject.attach(id, node).unwrap();
    let Connected::Device { path, number, .. } = subject.connect(id, node, Some(&context)).unwrap() else {
        panic!("not a device")
    };
    let target = PathBuf::from(format!("/stage/{}/{id}", node.id));
    host.ensure_directory(&target).unwrap();
    let (fs, target_path) = (FsType::Ext4, target.as_path());
    let request = MountRequest { device: &path, number, fs, target: target_path, read_only: false, flags: &[] };
    host.mount(&request).unwrap();
    target
}

#[test]
fn copies_hold_what_was_there() {
    let (host, subject) = machine();
    let node = subject.register("n1");
    let volume = subject.create("v");
    let at = mount(&host, &subject, &volume.id, &node);
    host.write_file(&at.join("file"), b"before").unwrap();
    let snapshot = subject.snapshot("s", &volume.id).unwrap();
    host.write_file(&at.join("file"), b"after").unwrap();
    let restored =
        VolumeSpec { size: at_least(SIZE * 2), ..subject.spec_from("restored", VolumeSource::Snapshot(snapshot.id)) };
    let cloned = subject.spec_from("cloned", VolumeSource::Volume(volume.id.clone()));
    for (spec, expected) in [(restored, &b"before"[..]), (cloned, b"after")] {
        let copy = subject.ensure(&spec).unwrap();
        let at = mount(&host, &subject, &copy.id, &node);
        assert_eq!(host.read_file(&at.join("file")).unwrap(), expected);
    }
}

#[test]
fn a_fence_loses_nothing_and_stops_the_old_writer() {
    let (host, subject) = machine();
    let (n1, n2) = (subject.register("n1"), subject.register("n2"));
    let volume = subject.create("v");
    let old = mount(&host, &subject, &volume.id, &n1);
    host.write_file(&old.join("file"), b"acknowledged").unwrap();
    let fence = subject.backend.fence().unwrap();
    fence.fence(&n1.id, None, "test", FenceHow::Enforce).unwrap().volumes[0].proof.as_ref().unwrap();
    assert_eq!(host.write_file(&old.join("file"), b"late").unwrap_err().kind(), ErrorKind::Unavailable);
    let new = mount(&host, &subject, &volume.id, &n2);
    assert_eq!(host.read_file(&new.join("file")).unwrap(), b"acknowledged");
    host.write_file(&new.join("file"), b"new").unwrap();
    assert_eq!(host.read_file(&old.join("file")).unwrap(), b"acknowledged");
    // Its clean-up touches nothing of the new holder's.
    host.unmount(&old).unwrap();
    subject.disconnect(&volume.id, &n1);
    fence.unfence(&n1.id, None, "test").unwrap();
    assert_eq!(host.read_file(&new.join("file")).unwrap(), b"new");
}

#[test]
fn raw_data_grows_along() {
    let (host, subject) = machine();
    let node = subject.register("n1");
    let volume = subject.ensure(&VolumeSpec { kind: VolumeKind::Block, ..subject.spec("raw") }).unwrap();
    subject.attach(&volume.id, &node).unwrap();
    let Connected::Device { path, .. } = subject.connect(&volume.id, &node, None).unwrap() else {
        panic!("not a device")
    };
    host.write_blocks(&path, 4096, &[7; 4096]).unwrap();
    let expand = subject.backend.expand().unwrap();
    expand.expand(&lock(volume.id.as_str()), &volume.id, at_least(SIZE * 2)).unwrap();
    assert_eq!(host.device_size(&path).unwrap(), SIZE);
    assert_eq!(subject.connector.refresh_size(&lock(volume.id.as_str()), &volume.id).unwrap(), SIZE * 2);
    assert_eq!(host.device_size(Path::new(&path)).unwrap(), SIZE * 2);
    assert_eq!(host.read_blocks(&path, 4096, 4096).unwrap(), [7; 4096]);
}
