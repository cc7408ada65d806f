//! Group snapshots. That their members are of one instant is tested where there are real writers.

use super::racing::at_once;
use super::{SIZE, Subject, lock, refused, take_group};
use volume::{ErrorKind, PageRequest, Snapshot, SnapshotFilter, SnapshotId, VolumeKind, VolumeSource, VolumeSpec};

pub fn group_snapshots_are_idempotent(s: &Subject) {
    let Some(groups) = s.backend.group_snapshots() else { return };
    let [one, two, three] = ["one", "two", "three"].map(|name| s.create(name).id);
    let group = s.group("g", &[&two, &one]).unwrap();
    assert_eq!((group.id.clone(), group.name.as_str(), group.ready), (s.group_id("g"), "g", true));
    let ids: Vec<_> = group.snapshots.iter().map(|member| member.id.clone()).collect();
    let mut expected = [&one, &two].map(|source| SnapshotId::of_member(&group.id, source));
    expected.sort();
    assert_eq!(ids, expected);
    for order in [[&one, &two], [&two, &one]] {
        assert_eq!(s.group("g", &order).unwrap(), group);
    }
    for other in [&[&one][..], &[&one, &three], &[&one, &two, &three]] {
        refused(s.group("g", other), ErrorKind::AlreadyExists);
    }
    assert_eq!(groups.find_group_snapshot(&group.id).unwrap(), Some(group.clone()));
    assert_eq!((s.another)().group_snapshots().unwrap().find_group_snapshot(&group.id).unwrap(), Some(group.clone()));
    // A snapshot and a volume of the same name are others.
    s.create("g");
    if s.backend.snapshots().is_some() {
        assert_eq!(s.snapshot("g", &one).unwrap().group, None);
    }
    for _ in 0..2 {
        groups.delete_group_snapshot(&lock(group.id.as_str()), &group.id).unwrap();
        assert_eq!(groups.find_group_snapshot(&group.id).unwrap(), None);
        assert_eq!(members(s), []);
    }
    assert_eq!(s.group("g", &[&three]).unwrap().snapshots[0].source, three, "the name is free again");
}

pub fn members_are_snapshots(s: &Subject) {
    let (Some(groups), Some(snapshots)) = (s.backend.group_snapshots(), s.backend.snapshots()) else { return };
    let (one, two) = (s.create("one").id, s.create("two").id);
    let alone = s.snapshot("alone", &one).unwrap();
    let group = s.group("g", &[&one, &two]).unwrap();
    for member in &group.snapshots {
        assert_eq!((member.group.as_ref(), member.size_bytes, member.ready), (Some(&group.id), SIZE, true));
        assert_eq!((member.kind, &member.accessible_topology), (alone.kind, &alone.accessible_topology));
        assert_eq!(snapshots.find_snapshot(&member.id).unwrap().as_ref(), Some(member));
        // It goes with its group, not alone.
        refused(snapshots.delete_snapshot(&lock(member.id.as_str()), &member.id), ErrorKind::InvalidArgument);
        let source = VolumeSource::Snapshot(member.id.clone());
        let restored = s.ensure(&s.spec_from(&format!("of {}", member.source), source.clone())).unwrap();
        assert_eq!((restored.size_bytes, restored.source), (SIZE, Some(source)));
        if let Some(blocks) = s.backend.changed_blocks() {
            assert_eq!(blocks.allocated(&member.id, 0).unwrap().size_bytes, SIZE);
            assert!(member.source != one || blocks.changed(&alone.id, &member.id, 0).is_ok());
        }
    }
    let mut all: Vec<Snapshot> = group.snapshots.iter().cloned().chain([alone.clone()]).collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    let list = |filter: &SnapshotFilter, max_entries, token: Option<String>| {
        snapshots.list_snapshots(filter, &PageRequest { max_entries, token }).unwrap()
    };
    let any = SnapshotFilter::default();
    assert_eq!(list(&any, 0, None).entries, all);
    let first = list(&any, 2, None);
    assert_eq!((&first.entries[..], &list(&any, 2, first.next_token).entries[..]), (&all[..2], &all[2..]));
    let of_two = SnapshotFilter { id: None, source: Some(two.clone()) };
    let expected: Vec<Snapshot> = all.iter().filter(|snapshot| snapshot.source == two).cloned().collect();
    assert_eq!(list(&of_two, 0, None).entries, expected);
    for member in &group.snapshots {
        let by_id = SnapshotFilter { id: Some(member.id.clone()), source: None };
        assert_eq!(list(&by_id, 0, None).entries, std::slice::from_ref(member));
    }
    groups.delete_group_snapshot(&lock(group.id.as_str()), &group.id).unwrap();
    assert_eq!(list(&any, 0, None).entries, [alone]);
    for member in &group.snapshots {
        assert_eq!(snapshots.find_snapshot(&member.id).unwrap(), None);
        snapshots.delete_snapshot(&lock(member.id.as_str()), &member.id).unwrap();
        let restore = s.spec_from("of what is gone", VolumeSource::Snapshot(member.id.clone()));
        refused(s.ensure(&restore), ErrorKind::NotFound);
    }
    assert_eq!(s.find(&s.volume_id(&format!("of {one}"))).size_bytes, SIZE, "copies outlive the group");
}

/// And a refusal leaves nothing.
pub fn refused_groups(s: &Subject) {
    let Some(groups) = s.backend.group_snapshots() else { return };
    let one = s.create("one").id;
    let directory = s.ensure(&VolumeSpec { kind: VolumeKind::Directory, ..s.spec("directory") });
    refused(s.group("g", &[]), ErrorKind::InvalidArgument);
    refused(s.group("g", &[&one, &one]), ErrorKind::InvalidArgument);
    refused(s.group("g", &[&one, &s.volume_id("never made")]), ErrorKind::NotFound);
    if let Ok(directory) = directory {
        refused(s.group("g", &[&one, &directory.id]), ErrorKind::InvalidArgument);
    }
    if s.backend.restrictions().no_block.is_none() {
        let raw = ["raw one", "raw two"]
            .map(|name| s.ensure(&VolumeSpec { kind: VolumeKind::Block, ..s.spec(name) }).unwrap().id);
        let n1 = s.register("n1");
        for id in &raw {
            s.attach(id, &n1).unwrap();
            s.connect(id, &n1, None).unwrap();
        }
        // Nothing stops both.
        refused(s.group("g", &[&raw[0], &one, &raw[1]]), ErrorKind::FailedPrecondition);
        s.group("one raw", &[&raw[0], &one]).unwrap();
        s.disconnect(&raw[0], &n1);
        s.group("one in use", &[&raw[0], &one, &raw[1]]).unwrap();
        s.disconnect(&raw[1], &n1);
        for (name, count) in [("one raw", 2), ("one in use", 3)] {
            let group = groups.find_group_snapshot(&s.group_id(name)).unwrap().unwrap();
            assert_eq!(group.snapshots.len(), count);
            groups.delete_group_snapshot(&lock(group.id.as_str()), &group.id).unwrap();
        }
    }
    assert_eq!(groups.find_group_snapshot(&s.group_id("g")).unwrap(), None);
    assert_eq!(members(s), []);
}

pub fn groups_outlive_their_sources(s: &Subject) {
    let Some(groups) = s.backend.group_snapshots() else { return };
    let (one, two) = (s.create("one").id, s.create("two").id);
    let group = s.group("g", &[&one, &two]).unwrap();
    if s.delete(&one).is_err() {
        return;
    }
    assert_eq!(groups.find_group_snapshot(&group.id).unwrap(), Some(group.clone()));
    // A retry finds it, although a source is gone.
    assert_eq!(s.group("g", &[&two, &one]).unwrap(), group);
    let member = group.snapshots.iter().find(|member| member.source == one).unwrap();
    let restored = s.ensure(&s.spec_from("restored", VolumeSource::Snapshot(member.id.clone()))).unwrap();
    groups.delete_group_snapshot(&lock(group.id.as_str()), &group.id).unwrap();
    assert_eq!(s.find(&restored.id), restored);
}

/// Groups that share a volume, the same group twice, and deletions of it: all or nothing each time, and nothing waits
/// for another.
pub fn two_controllers_take_groups(s: &Subject) {
    let Some(groups) = s.backend.group_snapshots() else { return };
    let controllers: Vec<_> = (0..4).map(|_| (s.another)()).collect();
    let [one, two, three] = ["one", "two", "three"].map(|name| s.create(name).id);
    let sets = [vec![&one, &two], vec![&two, &three], vec![&three, &one]];
    for round in 0..8 {
        let done = at_once(&controllers, |n, backend| {
            let name = format!("group {}", n % 3);
            if n == 3 && round % 2 == 1 {
                let id = s.group_id(&name);
                return backend.group_snapshots().unwrap().delete_group_snapshot(&lock(id.as_str()), &id);
            }
            take_group(backend, &name, &sets[n % 3]).map(drop)
        });
        for error in done.into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), ErrorKind::Busy, "{}", error.chain());
        }
        let mut found = 0;
        for n in 0..3 {
            if let Some(group) = groups.find_group_snapshot(&s.group_id(&format!("group {n}"))).unwrap() {
                assert_eq!(group.snapshots.len(), 2);
                found += 2;
            }
        }
        assert_eq!(members(s).len(), found, "a member without its group");
        for n in 0..3 {
            let id = s.group_id(&format!("group {n}"));
            groups.delete_group_snapshot(&lock(id.as_str()), &id).unwrap();
        }
        assert_eq!(members(s), []);
    }
}

fn members(s: &Subject) -> Vec<Snapshot> {
    let Some(snapshots) = s.backend.snapshots() else { return Vec::new() };
    let all = snapshots.list_snapshots(&SnapshotFilter::default(), &PageRequest::default()).unwrap().entries;
    all.into_iter().filter(|snapshot| snapshot.group.is_some()).collect()
}
