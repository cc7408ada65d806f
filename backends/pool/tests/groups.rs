//! Groups where they are hard: volumes that cannot be stopped together, that change meanwhile, and records that are lost.
#![allow(clippy::unwrap_used, clippy::panic)] // The helpers below are no test functions.

mod common;

use common::{Lab, device, open};
use conformance::backend::{lock, refused, take_group};
use host::Effects;
use nix::fcntl::OFlag;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use volume::{
    Attach, AttachRequest, ErrorKind, FsType, GroupSnapshots, PageRequest, SnapshotFilter, Snapshots, VolumeId,
    VolumeSource,
};

/// Two volumes, of which nobody uses one.
fn two(lab: &Lab) -> (VolumeId, VolumeId) {
    (lab.subject.create("one").id, lab.subject.create("two").id)
}

fn nothing_is_left(lab: &Lab) {
    let snapshots = open(&lab.directory, Effects::default());
    let all = snapshots.list_snapshots(&SnapshotFilter::default(), &PageRequest::default()).unwrap().entries;
    assert_eq!(all, []);
    let left: Vec<_> =
        std::fs::read_dir(lab.directory.join("groups")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == ".ballast"), "{left:?}");
}

/// Copying would take as long as the data is large, and all would stand still for that.
#[test]
fn a_pool_that_cannot_clone_takes_groups_of_what_is_not_in_use() {
    let Some(lab) = Lab::new("a_pool_that_cannot_clone_takes_groups_of_what_is_not_in_use", FsType::Ext4) else {
        return;
    };
    let ((one, two), n1) = (two(&lab), lab.subject.register("n1"));
    lab.subject.attach(&one, &n1).unwrap();
    lab.subject.connect(&one, &n1, None).unwrap();
    let message = refused(lab.subject.group("g", &[&one, &two]), ErrorKind::FailedPrecondition);
    assert!(message.contains("detach") && message.contains("xfs"), "{message}");
    nothing_is_left(&lab);
    lab.subject.disconnect(&one, &n1);
    lab.subject.group("g", &[&one, &two]).unwrap();
}

/// Held as a mount holds it that no process in sight has.
#[test]
fn a_volume_that_is_mounted_out_of_reach_is_not_torn_from_the_others() {
    let Some(lab) = Lab::new("a_volume_that_is_mounted_out_of_reach_is_not_torn_from_the_others", FsType::Xfs) else {
        return;
    };
    let ((one, two), n1) = (two(&lab), lab.subject.register("n1"));
    lab.subject.attach(&one, &n1).unwrap();
    let path = device(lab.subject.connect(&one, &n1, None).unwrap());
    let flags = OFlag::O_RDONLY | OFlag::O_EXCL;
    let mounted = nix::fcntl::open(&path, flags, nix::sys::stat::Mode::empty()).unwrap();
    refused(lab.subject.group("g", &[&one, &two]), ErrorKind::FailedPrecondition);
    nothing_is_left(&lab);
    drop(mounted);
    lab.subject.group("g", &[&one, &two]).unwrap();
    lab.subject.disconnect(&one, &n1);
}

/// What is not frozen must not have been used while the others were cloned.
#[test]
fn a_volume_that_changes_meanwhile_is_noticed() {
    let Some(lab) = Lab::new("a_volume_that_changes_meanwhile_is_noticed", FsType::Xfs) else { return };
    let ((one, two), n1) = (two(&lab), lab.subject.register("n1"));
    lab.subject.attach(&two, &n1).unwrap();
    // Runs once, right after the first image was cloned.
    let taken_while = |change: &dyn Fn()| {
        let go = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            let (begun, cloned) = std::sync::mpsc::channel();
            let (changed, goes_on) = std::sync::mpsc::channel::<()>();
            let (armed, goes_on) = (Arc::clone(&go), std::sync::Mutex::new(goes_on));
            let effects = Effects::with_action(move |_, name| {
                if name == "clone" && armed.swap(false, Ordering::SeqCst) {
                    begun.send(()).unwrap();
                    goes_on.lock().unwrap().recv().unwrap();
                }
            });
            let pool = open(&lab.directory, effects);
            go.store(true, Ordering::SeqCst);
            let (one, two) = (&one, &two);
            let taking = scope.spawn(move || take_group(&pool, "g", &[one, two]));
            cloned.recv().unwrap();
            change();
            changed.send(()).unwrap();
            taking.join().unwrap()
        })
    };
    let connect = || {
        lab.subject.connect(&two, &n1, None).unwrap();
    };
    refused(taken_while(&connect), ErrorKind::Busy);
    refused(taken_while(&|| lab.subject.disconnect(&two, &n1)), ErrorKind::Busy);
    refused(taken_while(&|| lab.subject.detach(&two, Some(&n1)).unwrap()), ErrorKind::Busy);
    let grant = || {
        let pool = open(&lab.directory, Effects::default());
        let request = AttachRequest { volume: &one, node: &n1.id, read_only: false };
        Attach::attach(&pool, &lock(one.as_str()), &request).unwrap();
    };
    refused(taken_while(&grant), ErrorKind::Busy);
    lab.subject.detach(&one, Some(&n1)).unwrap();
    refused(taken_while(&|| lab.subject.delete(&two).unwrap()), ErrorKind::Busy);
    refused(lab.subject.group("g", &[&one, &two]), ErrorKind::NotFound);
    nothing_is_left(&lab);
    lab.subject.create("two");
    assert_eq!(taken_while(&|| ()).unwrap().snapshots.len(), 2);
}

/// Of the group or of a member: both are made again from what is there.
#[test]
fn lost_records_are_made_again() {
    let Some(lab) = Lab::new("lost_records_are_made_again", FsType::Xfs) else { return };
    let (one, two) = two(&lab);
    let group = lab.subject.group("g", &[&one, &two]).unwrap();
    let at = lab.directory.join("groups").join(group.id.as_str());
    let member = at.join(group.snapshots[0].id.as_str());
    for lost in [vec![&at], vec![&member], vec![&at, &member]] {
        for directory in lost {
            remove_records(directory);
        }
        let pool = open(&lab.directory, Effects::default());
        assert_eq!(pool.find_group_snapshot(&group.id).unwrap().as_ref(), Some(&group));
    }
    lab.subject.group("g", &[&two, &one]).unwrap();
    let source = VolumeSource::Snapshot(group.snapshots[0].id.clone());
    lab.subject.ensure(&lab.subject.spec_from("restored", source)).unwrap();
}

/// A group that cannot be read hides no other, and can be deleted when a member of it is gone.
#[test]
fn a_damaged_group_is_an_error_of_its_own() {
    let Some(lab) = Lab::new("a_damaged_group_is_an_error_of_its_own", FsType::Xfs) else { return };
    let s = &lab.subject;
    let (one, two) = two(&lab);
    let (sound, broken) = (s.group("sound", &[&one, &two]).unwrap(), s.group("broken", &[&one, &two]).unwrap());
    let alone = s.snapshot("alone", &one).unwrap();
    let at = lab.directory.join("groups").join(broken.id.as_str());
    std::fs::remove_dir_all(at.join(broken.snapshots[0].id.as_str())).unwrap();
    let (groups, snapshots) = (s.backend.group_snapshots().unwrap(), s.backend.snapshots().unwrap());
    refused(groups.find_group_snapshot(&broken.id), ErrorKind::Corrupt);
    refused(s.group("broken", &[&one, &two]), ErrorKind::Corrupt);
    assert_eq!(snapshots.find_snapshot(&broken.snapshots[0].id).unwrap(), None);
    assert_eq!(groups.find_group_snapshot(&sound.id).unwrap(), Some(sound.clone()));
    let listed = snapshots.list_snapshots(&SnapshotFilter::default(), &PageRequest::default()).unwrap().entries;
    let mut expected = [sound.snapshots, vec![alone]].concat();
    expected.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(listed, expected);
    groups.delete_group_snapshot(&lock(broken.id.as_str()), &broken.id).unwrap();
    assert!(!at.exists());
    assert_eq!(groups.find_group_snapshot(&broken.id).unwrap(), None);
}

fn remove_records(directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("record.") {
            std::fs::remove_file(path).unwrap();
        }
    }
}
