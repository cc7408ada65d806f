//! Snapshots, restores and clones.

use super::{MIB, SIZE, Subject, at_least, at_most, lock, refused};
use volume::{
    ErrorKind, FsType, PageRequest, Snapshot, SnapshotFilter, SnapshotId, VolumeKind, VolumeSource, VolumeSpec,
};

pub fn snapshots_are_idempotent(s: &Subject) {
    let Some(snapshots) = s.backend.snapshots() else { return };
    let (one, two) = (s.create("one"), s.create("two"));
    let first = s.snapshot("snap", &one.id).unwrap();
    assert_eq!((&first.source, first.size_bytes, first.kind, first.ready), (&one.id, SIZE, one.kind, true));
    assert_eq!((first.id.clone(), first.name.as_str()), (s.snapshot_id("snap"), "snap"));
    assert_eq!(s.snapshot("snap", &one.id).unwrap(), first);
    assert_eq!(snapshots.find_snapshot(&first.id).unwrap(), Some(first.clone()));
    refused(s.snapshot("snap", &two.id), ErrorKind::AlreadyExists);
    refused(s.snapshot("of nothing", &s.volume_id("never made")), ErrorKind::NotFound);
    assert_eq!(snapshots.find_snapshot(&s.snapshot_id("of nothing")).unwrap(), None);
    for _ in 0..2 {
        snapshots.delete_snapshot(&lock(first.id.as_str()), &first.id).unwrap();
        assert_eq!(snapshots.find_snapshot(&first.id).unwrap(), None);
    }
    assert_eq!(s.snapshot("snap", &two.id).unwrap().source, two.id, "the name is free again");
}

pub fn snapshot_listing(s: &Subject) {
    let Some(snapshots) = s.backend.snapshots() else { return };
    let (one, two) = (s.create("one"), s.create("two"));
    let mut all = Vec::new();
    for n in 0..5 {
        let source = if n % 2 == 0 { &one.id } else { &two.id };
        all.push(s.snapshot(&format!("s/{n}"), source).unwrap());
    }
    all.sort_by(|a, b| a.id.cmp(&b.id));
    let list = |filter: &SnapshotFilter, max_entries, token: Option<String>| {
        snapshots.list_snapshots(filter, &PageRequest { max_entries, token })
    };
    let any = SnapshotFilter::default();
    assert_eq!(list(&any, 0, None).unwrap().entries, all);
    let first = list(&any, 3, None).unwrap();
    assert_eq!(first.entries, all[..3]);
    let rest = list(&any, 3, first.next_token).unwrap();
    assert_eq!((&rest.entries[..], rest.next_token), (&all[3..], None));
    let of = |source: &volume::VolumeId| SnapshotFilter { id: None, source: Some(source.clone()) };
    let expected: Vec<Snapshot> = all.iter().filter(|x| x.source == two.id).cloned().collect();
    assert_eq!(list(&of(&two.id), 0, None).unwrap().entries, expected);
    assert_eq!(list(&of(&s.volume_id("never made")), 0, None).unwrap().entries, []);
    let by_id = |id: SnapshotId| SnapshotFilter { id: Some(id), source: None };
    assert_eq!(list(&by_id(all[2].id.clone()), 0, None).unwrap().entries, all[2..3]);
    assert_eq!(list(&by_id(s.snapshot_id("never made")), 0, None).unwrap().entries, []);
    for bad in ["2", one.id.as_str()] {
        refused(list(&any, 1, Some(bad.to_owned())), ErrorKind::BadPageToken);
    }
}

pub fn restore(s: &Subject) {
    if s.backend.snapshots().is_none() {
        return;
    }
    let volume = s.create("one");
    let snapshot = s.snapshot("snap", &volume.id).unwrap();
    let source = VolumeSource::Snapshot(snapshot.id.clone());
    check_copies(s, &source);
    // A snapshot keeps the size of its day.
    if let Some(expand) = s.backend.expand() {
        expand.expand(&lock(volume.id.as_str()), &volume.id, at_least(SIZE * 2)).unwrap();
        assert_eq!(s.ensure(&s.spec_from("old size", source.clone())).unwrap().size_bytes, SIZE);
    }
    let missing = VolumeSource::Snapshot(s.snapshot_id("never made"));
    refused(s.ensure(&s.spec_from("of nothing", missing)), ErrorKind::NotFound);
}

pub fn clone(s: &Subject) {
    if !s.backend.can_clone() {
        return;
    }
    let volume = s.create("one");
    check_copies(s, &VolumeSource::Volume(volume.id));
    let missing = VolumeSource::Volume(s.volume_id("never made"));
    refused(s.ensure(&s.spec_from("of nothing", missing)), ErrorKind::NotFound);
    let own = VolumeSource::Volume(s.volume_id("itself"));
    refused(s.ensure(&s.spec_from("itself", own)), ErrorKind::NotFound);
}

/// What holds for a volume made from `source`, of an ext4 volume of [`SIZE`].
fn check_copies(s: &Subject, source: &VolumeSource) {
    let same = s.spec_from("same size", source.clone());
    let made = s.ensure(&same).unwrap();
    assert_eq!((made.size_bytes, made.source.as_ref()), (SIZE, Some(source)));
    assert_eq!((made.epoch.0, &made.attachment), (0, &None), "a copy is free whatever its source is");
    assert_eq!(s.ensure(&same).unwrap(), made);
    assert_eq!((s.another)().find_volume(&made.id).unwrap(), Some(made.clone()));
    refused(s.ensure(&VolumeSpec { source: None, ..same.clone() }), ErrorKind::AlreadyExists);
    let sized = |name: &str, size| s.ensure(&VolumeSpec { size, ..s.spec_from(name, source.clone()) });
    assert_eq!(sized("larger", at_least(SIZE * 3)).unwrap().size_bytes, SIZE * 3);
    assert_eq!(sized("limited", at_most(SIZE * 3)).unwrap().size_bytes, SIZE);
    refused(sized("smaller", at_least(SIZE - MIB)), ErrorKind::OutOfRange);
    refused(sized("limited below", at_most(SIZE - MIB)), ErrorKind::OutOfRange);
    for (n, kind) in [VolumeKind::FileSystem(FsType::Xfs), VolumeKind::Block, VolumeKind::Directory].iter().enumerate()
    {
        let other = VolumeSpec { kind: *kind, ..s.spec_from(&format!("other kind {n}"), source.clone()) };
        refused(s.ensure(&other), ErrorKind::InvalidArgument);
        assert_eq!(s.backend.find_volume(&other.id).unwrap(), None);
    }
}

pub fn copies_of_copies(s: &Subject) {
    if !s.backend.can_clone() || s.backend.snapshots().is_none() {
        return;
    }
    let first = s.create("first");
    let clone = s.ensure(&s.spec_from("clone", VolumeSource::Volume(first.id))).unwrap();
    let snapshot = s.snapshot("snap", &clone.id).unwrap();
    let restored = s.ensure(&s.spec_from("restored", VolumeSource::Snapshot(snapshot.id))).unwrap();
    let last = s.ensure(&s.spec_from("last", VolumeSource::Volume(restored.id))).unwrap();
    assert_eq!((last.size_bytes, last.kind), (SIZE, clone.kind));
}

/// CSI lets storage refuse to delete a volume that has snapshots; what it must not do is lose them.
pub fn copies_outlive_their_source(s: &Subject) {
    if s.backend.snapshots().is_none() {
        return;
    }
    let volume = s.create("one");
    let snapshot = s.snapshot("snap", &volume.id).unwrap();
    match s.delete(&volume.id) {
        Ok(()) => assert_eq!(s.backend.find_volume(&volume.id).unwrap(), None),
        Err(refusal) => {
            assert_eq!(refusal.kind(), ErrorKind::FailedPrecondition, "{}", refusal.chain());
            assert_eq!(s.find(&volume.id), volume);
        }
    }
    // A retry of CreateSnapshot finds it, although its source may be gone.
    assert_eq!(s.snapshot("snap", &volume.id).unwrap(), snapshot);
    let restored = s.ensure(&s.spec_from("restored", VolumeSource::Snapshot(snapshot.id.clone()))).unwrap();
    assert_eq!(restored.size_bytes, SIZE);
    let snapshots = s.backend.snapshots().unwrap();
    match snapshots.delete_snapshot(&lock(snapshot.id.as_str()), &snapshot.id) {
        Ok(()) => assert_eq!(s.find(&restored.id), restored),
        Err(refusal) => assert_eq!(refusal.kind(), ErrorKind::FailedPrecondition, "{}", refusal.chain()),
    }
}

pub fn directories_are_not_copied(s: &Subject) {
    let spec = VolumeSpec { kind: VolumeKind::Directory, ..s.spec("directory") };
    let directory = s.ensure(&spec).unwrap();
    if s.backend.snapshots().is_some() {
        refused(s.snapshot("snap", &directory.id), ErrorKind::InvalidArgument);
    }
    if s.backend.can_clone() {
        let copy = VolumeSpec { source: Some(VolumeSource::Volume(directory.id)), ..spec };
        let copy = VolumeSpec { id: s.volume_id("copy"), name: volume::VolumeName::parse("copy").unwrap(), ..copy };
        refused(s.ensure(&copy), ErrorKind::InvalidArgument);
    }
}
