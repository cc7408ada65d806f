//! What becomes of volumes whose claims go, and volumes that were there before their claims.

use crate::failure::{Result, ensure};
use crate::kubernetes::space::{LIMIT, Space, Volume, claim, name_of, pod};
use serde_json::json;

/// A volume is kept when its claim goes, and used again as a volume that an administrator made; then removed for good.
pub(super) fn retain_and_static(space: &Space) -> Result<()> {
    let cluster = &space.cluster;
    let app = pod("app", &[Volume::at("data", "/data")]);
    space.start(&claim("data", "hawser-retain", "ReadWriteOnce", "1Gi"), &app)?;
    space.write("app", "/data/file", "kept")?;
    space.delete_pod("app")?;
    let path = space.path("persistentvolumeclaims", "data");
    cluster.delete(&path)?;
    cluster.wait_gone(&path, LIMIT)?;
    let volumes = space.volumes()?;
    ensure(volumes.len() == 1 && volumes[0]["spec"]["persistentVolumeReclaimPolicy"] == "Retain", || {
        format!("after the claim there are {}", json!(volumes))
    })?;
    let made = &volumes[0];
    let path = format!("/api/v1/persistentvolumes/{}", name_of(made));
    space.look("the volume released", || {
        let phase = cluster.get(&path)?["status"]["phase"].clone();
        Ok(if phase == "Released" { Ok(()) } else { Err(phase.to_string()) })
    })?;
    let source = json!({
        "driver": "csi.hawser.dev",
        "fsType": "ext4",
        "volumeHandle": made["spec"]["csi"]["volumeHandle"],
        "volumeAttributes": made["spec"]["csi"]["volumeAttributes"],
    });
    cluster.delete(&path)?;
    cluster.wait_gone(&path, LIMIT)?;
    let fixed = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "made-by-hand", "annotations": {"pv.kubernetes.io/provisioned-by": "csi.hawser.dev"}},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"},
            "csi": source,
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"namespace": space.name, "name": "again"},
            // Where it is, which a pool of one node alone has to say.
            "nodeAffinity": made["spec"]["nodeAffinity"],
        },
    });
    cluster.create("/api/v1/persistentvolumes", &fixed)?;
    let again = pod("app", &[Volume::at("again", "/data")]);
    space.start(&claim("again", "", "ReadWriteOnce", "1Gi"), &again)?;
    space.ensure_content("app", "/data/file", "kept")
}

/// A claim that is mounted for reading alone.
pub(super) fn read_only(space: &Space) -> Result<()> {
    let app = pod("app", &[Volume::at("data", "/data")]);
    space.start(&claim("data", "hawser", "ReadWriteOnce", "1Gi"), &app)?;
    space.write("app", "/data/file", "fixed")?;
    space.delete_pod("app")?;
    let mut reader = pod("reader", &[Volume::at("data", "/data")]);
    reader["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    space.create_pod(&reader)?;
    space.wait_running("reader")?;
    space.ensure_content("reader", "/data/file", "fixed")?;
    let refused = space.sh("reader", "touch /data/no 2>&1 || true")?;
    ensure(refused.contains("Read-only"), || format!("writing where it is read-only: {refused:?}"))
}
