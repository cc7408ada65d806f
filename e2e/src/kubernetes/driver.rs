//! hawser in the cluster, with what the cluster needs for it.

use super::cluster::{Cluster, has_condition};
use super::ground::DRIVER;
use super::place::{Place, Pools};
use super::process::Daemon;
use super::space::name_of;
use super::{NODES, Tools, snapshot_metadata};
use crate::failure::{Context, Result, ensure};
use crate::lab::entries;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const NAMESPACE: &str = "hawser";
pub(super) const PODS: &str = "/api/v1/namespaces/hawser/pods";
/// Of the command lines of its processes.
pub(super) const NODE_DRIVER: &str = "/hawser serve --mode=node";
pub(super) const CONTROLLER: &str = "/hawser serve --mode=controller";
const VALUES: &str = include_str!("manifests/values.yaml");
const START_LIMIT: Duration = Duration::from_secs(240);

/// The installation of the chart, by helm.
pub(super) struct Release {
    helm: PathBuf,
    chart: PathBuf,
    /// The administrator's kubeconfig.
    kubeconfig: PathBuf,
    values: PathBuf,
    /// Beside those, as in `helm --set`.
    settings: Vec<String>,
}

impl Release {
    /// hawser runs on all nodes when this returns.
    pub(super) fn install(&self, cluster: &Cluster) -> Result<()> {
        self.run_with_values("install", &[])?;
        self.wait(cluster)
    }

    /// With these settings beside those of the installation. Returns when all pods were replaced.
    pub(super) fn upgrade(&self, cluster: &Cluster, settings: &[String]) -> Result<()> {
        self.run_with_values("upgrade", settings)?;
        for part in ["deployment/hawser-controller", "daemonset/hawser-node"] {
            let rolled = ["--namespace", NAMESPACE, "rollout", "status", part, "--timeout=180s"];
            cluster.kubectl(&rolled, None)?;
        }
        self.wait(cluster)
    }

    /// Until its pods are gone.
    pub(super) fn uninstall(&self, cluster: &Cluster) -> Result<()> {
        run(self.command("uninstall"))?;
        cluster.wait("hawser's pods gone", START_LIMIT, || {
            let left = cluster.list(PODS)?;
            Ok(if left.is_empty() { Ok(()) } else { Err(pods(cluster)) })
        })
    }

    fn run_with_values(&self, verb: &str, settings: &[String]) -> Result<()> {
        let mut helm = self.command(verb);
        helm.arg(&self.chart).arg("--values").arg(&self.values);
        for setting in self.settings.iter().chain(settings) {
            helm.args(["--set", setting]);
        }
        run(helm)
    }

    fn command(&self, verb: &str) -> Command {
        let mut helm = Command::new(&self.helm);
        helm.args([verb, "hawser", "--namespace", NAMESPACE, "--kubeconfig"]).arg(&self.kubeconfig);
        helm
    }

    fn wait(&self, cluster: &Cluster) -> Result<()> {
        cluster.wait("hawser on all nodes", START_LIMIT, || {
            Ok(unready(cluster, &NODES)?.map_or(Ok(()), |what| Err(format!("{what}; {}", pods(cluster)))))
        })
    }
}

/// What of hawser is not as it is to be: its controllers, its pods, and the driver on these nodes.
pub(super) fn unready(cluster: &Cluster, nodes: &[&str]) -> Result<Option<String>> {
    let controller = cluster.get("/apis/apps/v1/namespaces/hawser/deployments/hawser-controller")?;
    if controller["status"]["readyReplicas"] != controller["spec"]["replicas"] {
        return Ok(Some("not all controllers are ready".to_owned()));
    }
    let pods = cluster.list(PODS)?;
    let waits =
        pods.iter().filter(|pod| !has_condition(pod, "Ready") || !pod["metadata"]["deletionTimestamp"].is_null());
    let waits: Vec<&str> = waits.map(name_of).collect();
    if !waits.is_empty() {
        return Ok(Some(format!("not ready: {}", waits.join(", "))));
    }
    for node in nodes {
        if !pods.iter().any(|pod| pod["spec"]["nodeName"] == *node && name_of(pod).contains("-node-")) {
            return Ok(Some(format!("no node pod on {node}")));
        }
        let drivers = cluster.find(&format!("/apis/storage.k8s.io/v1/csinodes/{node}"))?.unwrap_or_default();
        let drivers = drivers["spec"]["drivers"].as_array().cloned().unwrap_or_default();
        if !drivers.iter().any(|driver| driver["name"] == DRIVER) {
            return Ok(Some(format!("no driver is registered on {node}")));
        }
    }
    Ok(None)
}

fn run(mut helm: Command) -> Result<()> {
    let output = helm.output()?;
    ensure(output.status.success(), || format!("{helm:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The chart, by helm. The snapshot controller is the cluster's, not hawser's, and runs beside the API server.
pub(super) fn install(
    cluster: &Cluster,
    tools: &Tools,
    place: &Place,
    admin: &Path,
    chart: &Path,
) -> Result<(Daemon, Release)> {
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
    let mut settings = vec![format!("snapshotMetadata.caBundle={authority}")];
    if place.pools() == Pools::Local {
        settings.push("pool.scope=local".to_owned());
    }
    if place.has_pages() {
        settings.push("metrics.enabled=true".to_owned());
    }
    if place.attaches_by_controller() {
        settings.push("csiDriver.attachRequired=true".to_owned());
    }
    let (helm, chart, kubeconfig) = (tools.find("helm")?, chart.to_owned(), admin.to_owned());
    let release = Release { helm, chart, kubeconfig, values, settings };
    release.install(cluster)?;
    Ok((snapshots, release))
}

/// What hawser's pods are at.
fn pods(cluster: &Cluster) -> String {
    let pods = cluster.list(PODS).unwrap_or_default();
    let states = pods.iter().map(|pod| {
        let containers = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let waiting = containers.iter().filter(|container| container["ready"] != true);
        let waiting: Vec<String> = waiting.map(|one| format!("{} {}", one["name"], one["state"])).collect();
        format!("{} {} {}", pod["metadata"]["name"], pod["status"]["phase"], waiting.join(", "))
    });
    format!("{}; {}", states.collect::<Vec<_>>().join("; "), cluster.warnings("hawser"))
}
