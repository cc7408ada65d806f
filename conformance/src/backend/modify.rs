//! Mutable parameters, as they are recorded.

use super::{Subject, lock, refused};
use std::sync::Barrier;
use volume::{
    ErrorKind, Modify, MutableChange, MutableParameters, Result, VolumeId, VolumeKind, VolumeSource, VolumeSpec,
};

fn change(pairs: &[(&str, &str)]) -> MutableChange {
    MutableChange::parse(pairs.iter().copied()).unwrap()
}

fn modify(s: &Subject, id: &VolumeId, pairs: &[(&str, &str)]) -> Result<()> {
    modifier(s).modify(&lock(id.as_str()), id, &change(pairs))
}

fn modifier(s: &Subject) -> &dyn Modify {
    s.backend.modify().expect("the backend changes nothing")
}

pub fn named_keys_change(s: &Subject) {
    let id = s.create("v").id;
    assert_eq!(s.find(&id).mutable, MutableParameters::default());
    modify(s, &id, &[("readAheadKiB", "64"), ("writeOpsPerSecond", "100")]).unwrap();
    for _ in 0..2 {
        modify(s, &id, &[("readAheadKiB", "512")]).unwrap();
    }
    let expected = change(&[("readAheadKiB", "512"), ("writeOpsPerSecond", "100")]).apply_to(Default::default());
    assert_eq!(s.find(&id).mutable, expected);
    assert_eq!((s.another)().find_volume(&id).unwrap().unwrap().mutable, expected);
    assert_eq!(s.connector.volume(&id).unwrap().mutable, expected, "the node sees it");
    modify(s, &id, &[("writeOpsPerSecond", "default"), ("readAheadKiB", "default")]).unwrap();
    assert_eq!(s.find(&id).mutable, MutableParameters::default());
    refused(modify(s, &s.volume_id("never made"), &[("readAheadKiB", "64")]), ErrorKind::NotFound);
    s.delete(&id).unwrap();
    refused(modify(s, &id, &[("readAheadKiB", "64")]), ErrorKind::NotFound);
}

/// Whoever holds it goes on holding it.
pub fn attached_volumes_change(s: &Subject) {
    let (id, n1) = (s.create("v").id, s.register("n1"));
    s.attach(&id, &n1).unwrap();
    let connected = s.connect(&id, &n1, None).unwrap();
    let before = s.find(&id);
    modify(s, &id, &[("readBytesPerSecond", "1048576")]).unwrap();
    let after = s.find(&id);
    assert_eq!(after.mutable.limits.read_bytes_per_second, Some(1 << 20));
    assert_eq!(volume::Volume { mutable: before.mutable, ..after }, before);
    assert_eq!(s.connector.observe(&id).unwrap(), Some(connected));
    s.disconnect(&id, &n1);
    s.detach(&id, Some(&n1)).unwrap();
    assert_eq!(s.find(&id).mutable.limits.read_bytes_per_second, Some(1 << 20), "and the next holder has it");
}

pub fn creation(s: &Subject) {
    let with = |name: &str, pairs| VolumeSpec { mutable: change(pairs), ..s.spec(name) };
    let made = s.ensure(&with("v", &[("readAheadKiB", "256")])).unwrap();
    assert_eq!(made.mutable.read_ahead_kib, Some(256));
    assert_eq!(s.ensure(&with("v", &[("readAheadKiB", "256")])).unwrap(), made);
    assert_eq!(s.create("v"), made, "nothing asked for is anything");
    refused(s.ensure(&with("v", &[("readAheadKiB", "128")])), ErrorKind::AlreadyExists);
    refused(s.ensure(&with("v", &[("readOpsPerSecond", "100")])), ErrorKind::AlreadyExists);
    assert_eq!(s.find(&made.id), made);
    if s.backend.can_clone() {
        let source = VolumeSource::Volume(made.id.clone());
        assert_eq!(s.ensure(&s.spec_from("plain", source.clone())).unwrap().mutable, Default::default());
        let mutable = change(&[("readOpsPerSecond", "100")]);
        let copy = s.ensure(&VolumeSpec { mutable, ..s.spec_from("copy", source) }).unwrap();
        assert_eq!(copy.mutable, mutable.apply_to(Default::default()), "a copy has what it was asked to have");
    }
}

pub fn what_a_kind_cannot_have(s: &Subject) {
    let spec = VolumeSpec { kind: VolumeKind::Directory, ..s.spec("shared") };
    let with = VolumeSpec { mutable: change(&[("readAheadKiB", "64")]), ..spec.clone() };
    refused(s.ensure(&with), ErrorKind::InvalidArgument);
    assert_eq!(s.backend.find_volume(&spec.id).unwrap(), None);
    let made = s.ensure(&spec).unwrap();
    refused(modify(s, &made.id, &[("readOpsPerSecond", "100")]), ErrorKind::InvalidArgument);
    modify(s, &made.id, &[("readOpsPerSecond", "default")]).unwrap();
    assert_eq!(s.find(&made.id), made);
}

/// Two controllers change different keys: neither change is lost.
pub fn two_controllers_modify(s: &Subject) {
    let id = s.create("v").id;
    let (other, start) = ((s.another)(), Barrier::new(2));
    let repeat = |modify: &dyn Modify, key: &str| {
        start.wait();
        for n in 100..140 {
            // Where the storage itself keeps two apart, one of them comes again.
            while let Err(error) = modify.modify(&lock(id.as_str()), &id, &change(&[(key, &n.to_string())])) {
                assert_eq!(error.kind(), ErrorKind::Busy, "{}", error.chain());
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| repeat(modifier(s), "readOpsPerSecond"));
        scope.spawn(|| repeat(other.modify().unwrap(), "writeOpsPerSecond"));
    });
    let limits = s.find(&id).mutable.limits;
    assert_eq!((limits.read_ops_per_second, limits.write_ops_per_second), (Some(139), Some(139)));
}

/// A mark that is still the same promises that nothing has changed.
pub fn marks(s: &Subject) {
    let id = s.create("v").id;
    let mark = || s.connector.record_mark(&id).unwrap();
    for ops in ["100", "200", "300"] {
        let before = mark();
        modify(s, &id, &[("readOpsPerSecond", ops)]).unwrap();
        assert!(before.is_none() || mark() != before, "{ops}");
    }
    // In the end there is one, so that not every look has to read.
    let started = std::time::Instant::now();
    while mark().is_none() {
        assert!(started.elapsed() < std::time::Duration::from_secs(10), "no mark ever");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let settled = mark();
    assert_eq!(mark(), settled);
    modify(s, &id, &[("readOpsPerSecond", "default")]).unwrap();
    assert_ne!(mark(), settled);
    refused(s.connector.record_mark(&s.volume_id("never made")), ErrorKind::NotFound);
}
