//! One claim of each kind.

use crate::failure::{Result, ensure};
use crate::kubernetes::space::{LIMIT, Space, Volume, claim, on_node, pod};
use serde_json::json;
use std::time::{Duration, Instant};

pub(super) fn ext4(space: &Space) -> Result<()> {
    file_system(space, "hawser", "ext4")
}

pub(super) fn xfs(space: &Space) -> Result<()> {
    file_system(space, "hawser-xfs", "xfs")?;
    let options = space.sh("app", "grep ' /data ' /proc/mounts")?;
    ensure(options.contains("noatime"), || format!("the class's mount options are missing: {options}"))
}

pub(super) fn btrfs(space: &Space) -> Result<()> {
    file_system(space, "hawser-btrfs", "btrfs")
}

/// Written, and there again for the next pod.
fn file_system(space: &Space, class: &str, fs_type: &str) -> Result<()> {
    let app = pod("app", &[Volume::at("data", "/data")]);
    space.start(&claim("data", class, "ReadWriteOnce", "1Gi"), &app)?;
    let mounted = space.sh("app", "grep ' /data ' /proc/mounts")?;
    ensure(mounted.contains(&format!(" /data {fs_type} ")), || format!("mounted is {mounted:?}, not {fs_type}"))?;
    space.write("app", "/data/file", "kept")?;
    space.delete_pod("app")?;
    space.create_pod(&app)?;
    space.wait_running("app")?;
    space.ensure_content("app", "/data/file", "kept")
}

pub(super) fn block(space: &Space) -> Result<()> {
    let mut device = claim("data", "hawser", "ReadWriteOnce", "64Mi");
    device["spec"]["volumeMode"] = json!("Block");
    let app = pod("app", &[Volume { claim: "data", at: "/dev/data", is_block: true }]);
    space.start(&device, &app)?;
    let bytes = space.sh("app", "blockdev --getsize64 /dev/data")?;
    ensure(bytes == (64 << 20).to_string(), || format!("the device has {bytes} bytes"))?;
    space.sh("app", "echo kept | dd of=/dev/data bs=512 seek=2048 conv=sync,fsync 2>/dev/null")?;
    space.delete_pod("app")?;
    space.create_pod(&app)?;
    space.wait_running("app")?;
    let found = space.sh("app", "dd if=/dev/data bs=512 skip=2048 count=1 2>/dev/null | head -n 1")?;
    ensure(found == "kept", || format!("the device says {found:?}"))
}

pub(super) fn wait_for_first_consumer(space: &Space) -> Result<()> {
    space.create_claim(&claim("data", "hawser-wait", "ReadWriteOnce", "1Gi"))?;
    // Nothing tells that something will not happen; a claim of the other class is bound in this time.
    std::thread::sleep(Duration::from_secs(3));
    let path = space.path("persistentvolumeclaims", "data");
    let phase = space.cluster.get(&path)?["status"]["phase"].clone();
    ensure(phase == "Pending", || format!("without a pod the claim is {phase}"))?;
    let began = Instant::now();
    space.create_pod(&on_node(pod("app", &[Volume::at("data", "/data")]), space.node(1)))?;
    let node = space.wait_running("app")?;
    space.time("from the pod to running", began.elapsed());
    ensure(node == space.node(1), || format!("the pod is on {node}"))?;
    let volumes = space.volumes()?;
    let affinity = &volumes[0]["spec"]["nodeAffinity"];
    ensure(affinity.to_string().contains("csi.hawser.dev/"), || format!("the volume's affinity is {affinity}"))
}

/// A directory for pods of two nodes at once.
pub(super) fn shared_directory(space: &Space) -> Result<()> {
    space.create_claim(&claim("data", "hawser", "ReadWriteMany", "1Gi"))?;
    for (name, node) in [("one", space.node(0)), ("two", space.node(1))] {
        space.create_pod(&on_node(pod(name, &[Volume::at("data", "/data")]), node))?;
    }
    space.wait_running("one")?;
    space.wait_running("two")?;
    space.write("one", "/data/of-one", "first")?;
    space.write("two", "/data/of-two", "second")?;
    space.ensure_content("two", "/data/of-one", "first")?;
    space.ensure_content("one", "/data/of-two", "second")
}

/// ReadWriteOncePod: a second pod on the same node is not started.
pub(super) fn one_pod(space: &Space) -> Result<()> {
    let app = |name: &str| on_node(pod(name, &[Volume::at("data", "/data")]), space.node(0));
    space.start(&claim("data", "hawser", "ReadWriteOncePod", "1Gi"), &app("app"))?;
    space.create_pod(&app("second"))?;
    space.look("the scheduler refuses the second pod", || {
        let second = space.cluster.get(&space.path("pods", "second"))?;
        let conditions = second["status"]["conditions"].to_string();
        Ok(if conditions.contains("ReadWriteOncePod") { Ok(()) } else { Err(conditions) })
    })?;
    space.delete_pod("app")?;
    space.wait_running("second").map(drop)
}

pub(super) fn fs_group_and_sub_path(space: &Space) -> Result<()> {
    let mut app = pod("app", &[Volume::at("data", "/data")]);
    app["spec"]["securityContext"] = json!({"fsGroup": 4711, "runAsUser": 1000, "runAsNonRoot": true});
    app["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "data", "mountPath": "/data"},
        {"name": "data", "mountPath": "/part", "subPath": "inner/part"},
        {"name": "data", "mountPath": "/fixed", "readOnly": true},
    ]);
    space.start(&claim("data", "hawser", "ReadWriteOnce", "1Gi"), &app)?;
    space.write("app", "/part/file", "below")?;
    space.ensure_content("app", "/data/inner/part/file", "below")?;
    let group = space.sh("app", "stat -c %g /data/inner/part/file")?;
    ensure(group == "4711", || format!("the file's group is {group}"))?;
    let refused = space.sh("app", "touch /fixed/no 2>&1 || true")?;
    ensure(refused.contains("Read-only"), || format!("writing where it is read-only: {refused:?}"))
}

/// The claim is in the pod, and goes with it.
pub(super) fn ephemeral(space: &Space) -> Result<()> {
    let mut app = pod("app", &[Volume::at("scratch", "/data")]);
    let template = claim("scratch", "hawser", "ReadWriteOnce", "1Gi")["spec"].clone();
    app["spec"]["volumes"] = json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": template}}}]);
    space.create_pod(&app)?;
    space.wait_running("app")?;
    space.write("app", "/data/file", "short-lived")?;
    space.delete_pod("app")?;
    space.cluster.wait_gone(&space.path("persistentvolumeclaims", "app-scratch"), LIMIT)
}
