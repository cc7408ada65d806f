//! hawser in the cluster, with what the cluster needs for it.

use super::cluster::Cluster;
use super::place::{Place, Pools};
use super::process::Daemon;
use super::{NODES, Tools, snapshot_metadata};
use crate::failure::{Context, Result, ensure};
use crate::lab::entries;
use std::path::Path;
use std::time::Duration;

const NAMESPACE: &str = "hawser";
const VALUES: &str = include_str!("manifests/values.yaml");
const START_LIMIT: Duration = Duration::from_secs(240);

/// The chart, by helm. The snapshot controller is the cluster's, not hawser's, and runs beside the API server.
pub(super) fn install(cluster: &Cluster, tools: &Tools, place: &Place, admin: &Path, chart: &Path) -> Result<Daemon> {
    let definitions = tools.directories.iter().map(|directory| directory.join("crds"));
    let mut files: Vec<_> = definitions.flat_map(|directory| entries(&directory)).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    ensure(!files.is_empty(), || format!("{:?} have no definitions", tools.directories))?;
    for file in &files {
        cluster.apply(&std::fs::read_to_string(file)?).context(|| file.display().to_string())?;
    }
    let mut snapshots = tools.command("snapshot-controller")?;
    snapshots.arg("--kubeconfig").arg(admin).args(["--feature-gates=CSIVolumeGroupSnapshot=true", "--http-endpoint="]);
    let snapshots = Daemon::start("snapshot-controller", snapshots, place.logs())?;
    cluster.kubectl(&["create", "namespace", NAMESPACE], None)?;
    let authority = snapshot_metadata::make_certificate(cluster, place)?;
    let values = place.directory("chart")?.join("values.yaml");
    std::fs::write(&values, VALUES)?;
    let mut helm = tools.command("helm")?;
    helm.args(["install", "hawser"]).arg(chart).arg("--kubeconfig").arg(admin).args(["--namespace", NAMESPACE]);
    helm.arg("--values").arg(&values).arg("--set").arg(format!("snapshotMetadata.caBundle={authority}"));
    if place.pools() == Pools::Local {
        helm.args(["--set", "pool.scope=local"]);
    }
    if place.has_pages() {
        helm.args(["--set", "metrics.enabled=true"]);
    }
    if place.attaches_by_nodes() {
        helm.args(["--set", "csiDriver.attachRequired=false"]);
    }
    let output = helm.output()?;
    ensure(output.status.success(), || format!("helm: {}", String::from_utf8_lossy(&output.stderr)))?;
    cluster.wait("hawser's controllers", START_LIMIT, || {
        let controller = cluster.get("/apis/apps/v1/namespaces/hawser/deployments/hawser-controller")?;
        let is_ready = controller["status"]["readyReplicas"] == controller["spec"]["replicas"];
        Ok(if is_ready { Ok(()) } else { Err(pods(cluster)) })
    })?;
    for node in NODES {
        cluster.wait(&format!("hawser on {node}"), START_LIMIT, || {
            let drivers = cluster.find(&format!("/apis/storage.k8s.io/v1/csinodes/{node}"))?;
            let drivers = drivers.map(|object| object["spec"]["drivers"].clone()).unwrap_or_default();
            let is_there = drivers.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "csi.hawser.dev"));
            Ok(if is_there { Ok(()) } else { Err(pods(cluster)) })
        })?;
    }
    Ok(snapshots)
}

/// What hawser's pods are at.
fn pods(cluster: &Cluster) -> String {
    let pods = cluster.list("/api/v1/namespaces/hawser/pods").unwrap_or_default();
    let states = pods.iter().map(|pod| {
        let containers = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let waiting = containers.iter().filter(|container| container["ready"] != true);
        let waiting: Vec<String> = waiting.map(|one| format!("{} {}", one["name"], one["state"])).collect();
        format!("{} {} {}", pod["metadata"]["name"], pod["status"]["phase"], waiting.join(", "))
    });
    format!("{}; {}", states.collect::<Vec<_>>().join("; "), cluster.warnings("hawser"))
}
