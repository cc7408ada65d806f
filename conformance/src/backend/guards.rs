//! Work under the lock of another volume is a defect that is caught.

use super::{SIZE, Subject, at_least, lock, refused};
use volume::{AttachRequest, ConnectRequest, ErrorKind, LockTable, SnapshotId, VolumeName};

pub fn wrong_guards(s: &Subject) {
    let volume = s.create("v");
    let n1 = s.register("n1");
    let wrong = lock("another");
    let id = &volume.id;
    refused(s.backend.ensure_volume(&wrong, &s.spec("new")), ErrorKind::Internal);
    assert_eq!(s.backend.find_volume(&s.volume_id("new")).unwrap(), None);
    refused(s.backend.delete_volume(&wrong, id), ErrorKind::Internal);
    if let Some(attach) = s.backend.attach() {
        refused(
            attach.attach(&wrong, &AttachRequest { volume: id, node: &n1.id, read_only: false }),
            ErrorKind::Internal,
        );
        refused(attach.detach(&wrong, id, Some(&n1.id)), ErrorKind::Internal);
    }
    if let Some(expand) = s.backend.expand() {
        refused(expand.expand(&wrong, id, at_least(SIZE * 2)), ErrorKind::Internal);
    }
    if let Some(modify) = s.backend.modify() {
        refused(modify.modify(&wrong, id, &Default::default()), ErrorKind::Internal);
    }
    if let Some(snapshots) = s.backend.snapshots() {
        let (name, snapshot) = (VolumeName::parse("s").unwrap(), s.snapshot_id("s"));
        refused(snapshots.ensure_snapshot(&lock(id.as_str()), &snapshot, &name, id), ErrorKind::Internal);
        refused(snapshots.ensure_snapshot(&lock(snapshot.as_str()), &snapshot, &name, id), ErrorKind::Internal);
        refused(snapshots.delete_snapshot(&wrong, &snapshot), ErrorKind::Internal);
    }
    if let Some(groups) = s.backend.group_snapshots() {
        let (name, group) = (VolumeName::parse("g").unwrap(), s.group_id("g"));
        let member = SnapshotId::of_member(&group, id);
        let all = [group.as_str(), member.as_str(), id.as_str()];
        for missing in 0..all.len() {
            let some = all.iter().enumerate().filter(|&(n, _)| n != missing).map(|(_, id)| *id);
            let guard = LockTable::default().try_lock(some).unwrap();
            let taken = groups.ensure_group_snapshot(&guard, &group, &name, std::slice::from_ref(id));
            refused(taken, ErrorKind::Internal);
        }
        refused(groups.delete_group_snapshot(&wrong, &group), ErrorKind::Internal);
    }
    let request = ConnectRequest { volume: id, node: &n1, read_only: false, context: None };
    refused(s.connector.connect(&wrong, &request), ErrorKind::Internal);
    refused(s.connector.disconnect(&wrong, id, &n1), ErrorKind::Internal);
    assert_eq!(s.find(id), volume);
}
