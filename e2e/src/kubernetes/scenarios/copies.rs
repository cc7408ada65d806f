//! Snapshots, restores, clones and growth.

use crate::failure::{Result, ensure};
use crate::kubernetes::space::{LIMIT, Space, Volume, claim, pod};
use serde_json::{Value, json};
use std::time::Instant;

const GROUP: &str = "snapshot.storage.k8s.io";
const SNAPSHOTS: &str = "/apis/snapshot.storage.k8s.io/v1";
/// Of groups of snapshots, with its version.
const GROUPS: &str = "groupsnapshot.storage.k8s.io/v1";

pub(super) fn snapshot_and_restore(space: &Space) -> Result<()> {
    space.start(&claim("data", "hawser", "ReadWriteOnce", "1Gi"), &pod("app", &[Volume::at("data", "/data")]))?;
    space.write("app", "/data/file", "early")?;
    let began = Instant::now();
    let snapshot = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": "early"},
        "spec": {"volumeSnapshotClassName": "hawser", "source": {"persistentVolumeClaimName": "data"}},
    });
    let collection = format!("{SNAPSHOTS}/namespaces/{}/volumesnapshots", space.name);
    space.lab.cluster.create(&collection, &snapshot)?;
    let path = format!("{collection}/early");
    space.look("the snapshot ready", || {
        let status = space.lab.cluster.get(&path)?["status"].clone();
        Ok(if status["readyToUse"] == true { Ok(()) } else { Err(status.to_string()) })
    })?;
    space.time("snapshot ready", began.elapsed());
    space.write("app", "/data/file", "late")?;
    let source = json!({"apiGroup": GROUP, "kind": "VolumeSnapshot", "name": "early"});
    // Into a larger volume.
    copy(space, source, "2Gi")?;
    space.ensure_content("of-copy", "/data/file", "early")?;
    space.ensure_content("app", "/data/file", "late")?;
    space.lab.cluster.delete(&path)?;
    space.lab.cluster.wait_gone(&path, LIMIT)
}

/// Of two volumes that no pod uses: the controller cannot stop file systems that are mounted on nodes.
pub(super) fn group_snapshot(space: &Space) -> Result<()> {
    let names = ["one", "two"];
    for name in names {
        let mut claim = claim(name, "hawser", "ReadWriteOnce", "1Gi");
        claim["metadata"]["labels"] = json!({"group": "both"});
        space.create_claim(&claim)?;
    }
    space.create_pod(&pod("app", &[Volume::at("one", "/one"), Volume::at("two", "/two")]))?;
    space.wait_running("app")?;
    space.write("app", "/one/file", "early")?;
    space.write("app", "/two/file", "early")?;
    space.delete_pod("app")?;
    space.look("both detached", || {
        let attachments = space.lab.cluster.list("/apis/storage.k8s.io/v1/volumeattachments")?;
        Ok(if attachments.is_empty() { Ok(()) } else { Err(format!("{} attachments", attachments.len())) })
    })?;
    let began = Instant::now();
    let group = json!({
        "apiVersion": GROUPS,
        "kind": "VolumeGroupSnapshot",
        "metadata": {"name": "both"},
        "spec": {
            "volumeGroupSnapshotClassName": "hawser",
            "source": {"selector": {"matchLabels": {"group": "both"}}},
        },
    });
    let groups = format!("/apis/{GROUPS}/namespaces/{}/volumegroupsnapshots", space.name);
    space.lab.cluster.create(&groups, &group)?;
    let path = format!("{groups}/both");
    space.look("the group snapshot ready", || {
        let status = space.lab.cluster.get(&path)?["status"].clone();
        Ok(if status["readyToUse"] == true { Ok(()) } else { Err(status.to_string()) })
    })?;
    space.time("group snapshot ready", began.elapsed());
    let members = format!("{SNAPSHOTS}/namespaces/{}/volumesnapshots", space.name);
    let members = space.lab.cluster.list(&members)?;
    ensure(members.len() == 2, || format!("the group has {} snapshots", members.len()))?;
    // Both said the same at that instant, so either will do.
    copy(space, json!({"apiGroup": GROUP, "kind": "VolumeSnapshot", "name": members[0]["metadata"]["name"]}), "1Gi")?;
    space.ensure_content("of-copy", "/data/file", "early")?;
    space.lab.cluster.delete(&path)?;
    space.lab.cluster.wait_gone(&path, LIMIT)
}

pub(super) fn clone(space: &Space) -> Result<()> {
    space.start(&claim("data", "hawser", "ReadWriteOnce", "1Gi"), &pod("app", &[Volume::at("data", "/data")]))?;
    space.write("app", "/data/file", "first")?;
    copy(space, json!({"kind": "PersistentVolumeClaim", "name": "data"}), "1Gi")?;
    space.write("app", "/data/file", "second")?;
    space.ensure_content("of-copy", "/data/file", "first")
}

/// A claim `copy` from `source`, in a pod `of-copy`.
fn copy(space: &Space, source: Value, size: &str) -> Result<()> {
    let mut copy = claim("copy", "hawser", "ReadWriteOnce", size);
    copy["spec"]["dataSource"] = source;
    space.start(&copy, &pod("of-copy", &[Volume::at("copy", "/data")]))
}

/// Grows under a pod that goes on. xfs, since a mounted ext4 grows only with CAP_SYS_RESOURCE, which the lab's machine may
/// not have.
pub(super) fn expand(space: &Space) -> Result<()> {
    space.start(&claim("data", "hawser-xfs", "ReadWriteOnce", "1Gi"), &pod("app", &[Volume::at("data", "/data")]))?;
    let before = kib(space)?;
    let began = Instant::now();
    let path = space.path("persistentvolumeclaims", "data");
    space.lab.cluster.patch(&path, &json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}}))?;
    space.look("the claim expanded", || {
        let status = space.lab.cluster.get(&path)?["status"].clone();
        Ok(if status["capacity"]["storage"] == "3Gi" { Ok(()) } else { Err(status.to_string()) })
    })?;
    space.time("expanded", began.elapsed());
    let after = kib(space)?;
    ensure(before < 1 << 20 && after > 5 << 19, || format!("the file system had {before} KiB and has {after} KiB"))
}

/// Size of the file system.
fn kib(space: &Space) -> Result<u64> {
    let line = space.sh("app", "df -k /data | tail -n 1")?;
    let size = line.split_whitespace().nth(1).and_then(|size| size.parse().ok());
    size.ok_or_else(|| format!("df says {line:?}").into())
}
