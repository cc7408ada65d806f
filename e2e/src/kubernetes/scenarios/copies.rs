//! Snapshots, restores, clones and growth.

use crate::failure::{Result, ensure};
use crate::kubernetes::ground::DRIVER;
use crate::kubernetes::snapshot_metadata::Way;
use crate::kubernetes::space::{LIMIT, Space, Volume, claim, on_node, pod};
use serde_json::{Value, json};
use std::time::Instant;

pub(super) const GROUP: &str = "snapshot.storage.k8s.io";
const SNAPSHOTS: &str = "/apis/snapshot.storage.k8s.io/v1";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const ATTRIBUTES_CLASSES: &str = "/apis/storage.k8s.io/v1/volumeattributesclasses";
/// Neither is the kernel's default.
const READ_AHEAD_KIB: [u32; 2] = [4096, 256];

pub(super) fn snapshot_and_restore(space: &Space) -> Result<()> {
    space.start(&claim("data", "hawser", "ReadWriteOnce", "1Gi"), &at_source(space, "app", "data"))?;
    space.write("app", "/data/file", "early")?;
    let began = Instant::now();
    let path = snapshot(space, "early", "data")?;
    space.time("snapshot ready", began.elapsed());
    space.write("app", "/data/file", "late")?;
    let source = json!({"apiGroup": GROUP, "kind": "VolumeSnapshot", "name": "early"});
    // Into a larger volume.
    copy(space, source, "2Gi")?;
    space.ensure_content("of-copy", "/data/file", "early")?;
    space.ensure_content("app", "/data/file", "late")?;
    space.cluster.delete(&path)?;
    space.cluster.wait_gone(&path, LIMIT)
}

/// Of the claim, ready; its path.
pub(super) fn snapshot(space: &Space, name: &str, claim: &str) -> Result<String> {
    let snapshot = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": "hawser", "source": {"persistentVolumeClaimName": claim}},
    });
    let collection = snapshots(space);
    space.cluster.create(&collection, &snapshot)?;
    let path = format!("{collection}/{name}");
    wait_ready_to_use(space, "the snapshot", &path)?;
    Ok(path)
}

/// The path of all snapshots in the namespace.
pub(super) fn snapshots(space: &Space) -> String {
    format!("{SNAPSHOTS}/namespaces/{}/volumesnapshots", space.name)
}

pub(super) fn wait_ready_to_use(space: &Space, what: &str, path: &str) -> Result<()> {
    space.look(&format!("{what} ready"), || {
        let status = space.cluster.get(path)?["status"].clone();
        Ok(if status["readyToUse"] == true { Ok(()) } else { Err(status.to_string()) })
    })
}

const MIB: u64 = 1 << 20;

/// What a backup program is told of two snapshots: what is in one, and what was written between them.
pub(super) fn changed_blocks(space: &Space) -> Result<()> {
    let mut device = claim("data", "hawser", "ReadWriteOnce", "64Mi");
    device["spec"]["volumeMode"] = json!("Block");
    space.start(&device, &pod("app", &[Volume { claim: "data", at: "/dev/data", is_block: true }]))?;
    let write = |at: u64| {
        let line = format!("dd if=/dev/urandom of=/dev/data bs=1M seek={at} count=1 conv=fsync 2>/dev/null");
        space.sh("app", &line).map(drop)
    };
    write(4)?;
    let first = snapshot(space, "first", "data")?;
    write(20)?;
    let second = snapshot(space, "second", "data")?;
    let way = Way::open(space.lab()?)?;
    let refused = way.blocks(&space.name, "second", None);
    ensure(refused.is_err(), || "an account that may not read snapshots was told their blocks".to_owned())?;
    let rules =
        json!([{"apiGroups": [GROUP], "resources": ["volumesnapshots", "volumesnapshotcontents"], "verbs": ["get"]}]);
    let role = json!({"apiVersion": RBAC, "kind": "Role", "metadata": {"name": "backup"}, "rules": rules});
    let binding = json!({
        "apiVersion": RBAC,
        "kind": "RoleBinding",
        "metadata": {"name": "backup"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "backup"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": space.name}],
    });
    for (kind, object) in [("roles", role), ("rolebindings", binding)] {
        space.cluster.create(&format!("/apis/{RBAC}/namespaces/{}/{kind}", space.name), &object)?;
    }
    let began = Instant::now();
    let (in_second, changed) = space.look("the blocks told", || {
        // An authorizer learns of a role a moment later.
        let both = way
            .blocks(&space.name, "second", None)
            .and_then(|all| Ok((all, way.blocks(&space.name, "second", Some("first"))?)));
        Ok(both.map_err(|failure| failure.to_string()))
    })?;
    space.time("allocated and changed blocks told", began.elapsed());
    let covers = |blocks: &[(u64, u64)], at: u64| {
        blocks.iter().any(|(offset, bytes)| *offset <= at * MIB && (at + 1) * MIB <= offset + bytes)
    };
    let touches = |blocks: &[(u64, u64)], at: u64| {
        blocks.iter().any(|(offset, bytes)| *offset < (at + 1) * MIB && at * MIB < offset + bytes)
    };
    ensure(covers(&in_second, 4) && covers(&in_second, 20), || format!("the second snapshot has {in_second:?}"))?;
    ensure(covers(&changed, 20), || format!("{changed:?} misses what was written between the snapshots"))?;
    ensure(!touches(&changed, 4), || format!("{changed:?} has what did not change"))?;
    for path in [first, second] {
        space.cluster.delete(&path)?;
        space.cluster.wait_gone(&path, LIMIT)?;
    }
    Ok(())
}

/// Another VolumeAttributesClass for a claim in use: the device on the node has what it says, and its old value again after.
pub(super) fn attributes_class(space: &Space) -> Result<()> {
    space.start(&claim("data", "hawser", "ReadWriteOnce", "1Gi"), &pod("app", &[Volume::at("data", "/data")]))?;
    let classes: Vec<String> = ["wide", "narrow"].iter().map(|name| format!("{}-{name}", space.name)).collect();
    for (name, kib) in classes.iter().zip(READ_AHEAD_KIB) {
        let class = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "VolumeAttributesClass",
            "metadata": {"name": name},
            "driverName": DRIVER,
            "parameters": {"readAheadKiB": kib.to_string()},
        });
        space.cluster.create(ATTRIBUTES_CLASSES, &class)?;
    }
    let seen = classes.iter().zip(READ_AHEAD_KIB).try_for_each(|(class, kib)| change_class(space, class, kib));
    // A class stays as long as a claim or a volume has it.
    for name in &classes {
        space.cluster.delete(&format!("{ATTRIBUTES_CLASSES}/{name}"))?;
    }
    seen
}

fn change_class(space: &Space, class: &str, kib: u32) -> Result<()> {
    let began = Instant::now();
    let path = space.path("persistentvolumeclaims", "data");
    space.cluster.patch(&path, &json!({"spec": {"volumeAttributesClassName": class}}))?;
    let device = "$(grep ' /data ' /proc/mounts | cut -d ' ' -f 1 | cut -d / -f 3)";
    space.look("the device's read-ahead", || {
        let seen = space.sh("app", &format!("cat /sys/block/{device}/queue/read_ahead_kb"))?;
        Ok(if seen == kib.to_string() { Ok(()) } else { Err(format!("{seen} KiB")) })
    })?;
    space.time(&format!("from the change to a device with a read-ahead of {kib} KiB"), began.elapsed());
    space.look("the claim has the class", || {
        let status = space.cluster.get(&path)?["status"].clone();
        let is_current = status["currentVolumeAttributesClassName"] == class;
        Ok(if is_current { Ok(()) } else { Err(status.to_string()) })
    })
}

pub(super) fn clone(space: &Space) -> Result<()> {
    space.start(&claim("data", "hawser", "ReadWriteOnce", "1Gi"), &at_source(space, "app", "data"))?;
    space.write("app", "/data/file", "first")?;
    copy(space, json!({"kind": "PersistentVolumeClaim", "name": "data"}), "1Gi")?;
    space.write("app", "/data/file", "second")?;
    space.ensure_content("of-copy", "/data/file", "first")
}

/// A claim `copy` from `source`, in a pod `of-copy`.
pub(super) fn copy(space: &Space, source: Value, size: &str) -> Result<()> {
    let mut copy = claim("copy", "hawser", "ReadWriteOnce", size);
    copy["spec"]["dataSource"] = source;
    space.start(&copy, &at_source(space, "of-copy", "copy"))
}

/// A pod with a claim. With local pools on one node for all of them, since a copy is where its source is; no scheduler
/// knows that. The lab's last node has the largest pool.
fn at_source(space: &Space, name: &str, claim: &str) -> Value {
    let pod = pod(name, &[Volume::at(claim, "/data")]);
    if space.ground.has_local_pools { on_node(pod, space.last_node()) } else { pod }
}

/// Grows under a pod that goes on. xfs, since a mounted ext4 grows only with CAP_SYS_RESOURCE, which the lab's machine may
/// not have.
pub(super) fn expand(space: &Space) -> Result<()> {
    space.start(&claim("data", "hawser-xfs", "ReadWriteOnce", "1Gi"), &at_source(space, "app", "data"))?;
    let before = kib(space)?;
    let began = Instant::now();
    let path = space.path("persistentvolumeclaims", "data");
    space.cluster.patch(&path, &json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}}))?;
    space.look("the claim expanded", || {
        let status = space.cluster.get(&path)?["status"].clone();
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
