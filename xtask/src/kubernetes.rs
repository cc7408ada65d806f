//! `cargo xtask e2e kubernetes`: a real Kubernetes on this machine (docs/kubernetes-lab.md), and what it is made of.
//!
//! Its programs are built from their Go modules, which e2e/tools pins, once into the cache, which takes long. All but its
//! longest scenarios are a step of `cargo xtask test`.

use crate::binaries::Binaries;
use crate::counts::{Counts, count_line};
use crate::install::{self, Sources};
use crate::kind::Kind;
use crate::process::{self, Log};
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct EndToEndArguments {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(clap::Subcommand)]
enum Suite {
    /// A Kubernetes of three nodes, with hawser in it
    Kubernetes(KubernetesArguments),
}

#[derive(clap::Args)]
struct KubernetesArguments {
    /// Only scenarios whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Leaves the cluster up, after the scenarios, until this is interrupted.
    #[arg(long)]
    keep: bool,
    /// Shows one failover on the terminal, in place of the scenarios.
    #[arg(long, conflicts_with = "filter")]
    show: bool,
    /// Takes `hawser` and `e2e` from this directory instead of building them.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// In the lab each node has a pool of its own in place of one that all share.
    #[arg(long, conflicts_with_all = ["kubeconfig", "kind"])]
    local_pools: bool,
    /// In the lab with VolumeAttachments: the controller attaches (csiDriver.attachRequired: true).
    #[arg(long, conflicts_with_all = ["kubeconfig", "kind"])]
    attach_by_controller: bool,
    /// Makes no cluster, but runs what needs no power over nodes in the current context of this file, where hawser is
    /// installed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keep", "kind"])]
    kubeconfig: Option<PathBuf>,
    /// As --kubeconfig, in a cluster of three workers that kind makes in Docker and that is deleted at the end.
    #[arg(long, requires = "install")]
    kind: bool,
    /// Installs this chart first, with helm, in a cluster that is not the lab's.
    #[arg(long, value_name = "CHART")]
    install: Option<PathBuf>,
    /// Values for the chart, as in `helm --set` (repeatable).
    #[arg(long, value_name = "KEY=VALUE", requires = "install")]
    set: Vec<String>,
    /// Archives of images that kind's nodes are given (repeatable).
    #[arg(long, value_name = "FILE", requires = "kind")]
    image: Vec<PathBuf>,
}

/// A program that shows whether the package is there, and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 9] = [
    ("etcd", "etcd-server"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("openssl", "openssl"),
    ("setpriv", "util-linux"),
    ("tar", "tar"),
    ("sha256sum", "coreutils"),
];
const NETWORK_PLUGINS: (&str, &str) = ("/usr/lib/cni/bridge", "containernetworking-plugins");

const KUBERNETES_VERSION: &str = "v1.36.3";
const KUBERNETES: [&str; 5] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"];
/// Names, and the packages of Go.
const SIDECARS: [(&str, &str); 4] = [
    ("csi-attacher", "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher"),
    ("csi-provisioner", "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"),
    ("csi-snapshotter", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter"),
    ("snapshot-controller", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller"),
];
/// Where the definitions of snapshots are, in `config/crd`.
const DEFINITIONS_MODULE: &str = "github.com/kubernetes-csi/external-snapshotter/client/v8";
/// The service of changed blocks: name, and the package of Go.
const SNAPSHOT_METADATA: (&str, &str) =
    ("csi-snapshot-metadata", "github.com/kubernetes-csi/external-snapshot-metadata/cmd/csi-snapshot-metadata");
const SERVICE_DEFINITION_MODULE: &str = "github.com/kubernetes-csi/external-snapshot-metadata/client";
/// Of the definitions, as their files are named.
const GROUPS: [&str; 2] = ["snapshot.storage.k8s.io_", "cbt.storage.k8s.io_"];
/// Programs whose modules need no help: name, package, version.
const INSTALLED: [(&str, &str, &str); 2] =
    [("csi-resizer", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer", "v2.3.0"), HELM];
pub(crate) const HELM: (&str, &str, &str) = ("helm", "helm.sh/helm/v3/cmd/helm", "v3.22.0");
/// On two busy processors.
const BUILD_DEADLINE: Duration = Duration::from_secs(90 * 60);
const INSTALL_DEADLINE: Duration = Duration::from_secs(6 * 60);
const RUN_DEADLINE: Duration = Duration::from_secs(60 * 60);

/// `cargo xtask e2e`: whether nothing failed.
pub(crate) fn end_to_end(arguments: &EndToEndArguments) -> Result<bool, String> {
    let Suite::Kubernetes(arguments) = &arguments.suite;
    let workspace = Workspace::load()?;
    let mut log = Log::create(&workspace.log_directory(), "kubernetes")?;
    if arguments.install.is_some() && arguments.kubeconfig.is_none() && !arguments.kind {
        return Err("--install is for --kubeconfig and --kind; the lab installs hawser by itself".to_owned());
    }
    let kind = if arguments.kind { Some(Kind::create(&workspace, &arguments.image, &mut log)?) } else { None };
    let kubeconfig = kind.as_ref().map(|kind| kind.kubeconfig.clone()).or_else(|| arguments.kubeconfig.clone());
    let tools = match &kubeconfig {
        None => None,
        Some(_) => Some(tools_elsewhere(&workspace, arguments.install.is_some(), &mut log)?),
    };
    if let (Some(chart), Some(kubeconfig), Some(tools)) = (&arguments.install, &kubeconfig, &tools) {
        install_chart(tools, chart, &arguments.set, kubeconfig, &mut log)?;
    }
    let lab =
        Lab { binaries: arguments.binaries.as_deref().map(Binaries::in_directory).transpose()?, logs: "kubernetes" };
    let mut command = match &tools {
        None => lab.command(&workspace, &mut log)?,
        Some(tools) => lab.command_with(tools, &workspace, &mut log)?,
    };
    if let Some(filter) = &arguments.filter {
        command.arg("--filter").arg(filter);
    }
    if arguments.keep && kind.is_none() {
        command.arg("--keep");
    }
    if arguments.local_pools {
        command.arg("--local-pools");
    }
    if arguments.attach_by_controller {
        command.arg("--attach-by-controller");
    }
    if let Some(kubeconfig) = &kubeconfig {
        command.arg("--kubeconfig").arg(kubeconfig);
    }
    if arguments.show {
        // It draws, so it has the terminal for itself.
        let status = command.arg("--show").status().map_err(|error| format!("cannot start the lab: {error}"))?;
        return Ok(status.success());
    }
    let mut counts = Counts::default();
    let deadline = if arguments.keep { Duration::from_secs(u64::from(u32::MAX)) } else { RUN_DEADLINE };
    let ended = process::run(&mut command, deadline, &mut log, &mut |line| {
        println!("{line}");
        count_line(&mut counts, line);
    });
    if let Err(error) = ended
        && counts.failures.is_empty()
    {
        counts.failures.push(error);
    }
    if let Some(kind) = kind {
        kind.end(arguments.keep, &mut log)?;
    }
    println!("{}", counts.summary());
    if !counts.failures.is_empty() {
        println!("log: {}, and those of all components beside it in kubernetes/", log.path.display());
    }
    Ok(counts.failures.is_empty())
}

/// What `e2e kubernetes` needs.
pub(crate) struct Lab {
    /// Built before; else they are built now.
    pub(crate) binaries: Option<Binaries>,
    /// The directory of the components' logs, below that of xtask.
    pub(crate) logs: &'static str,
}

impl Lab {
    /// Why there can be none on this machine.
    pub(crate) fn lacking() -> Option<&'static str> {
        if !install::is_root() {
            return Some("namespaces, mounts and loop devices need root");
        }
        // A node is frozen by the one and weighed by the other.
        let has = |controller: &str| Path::new("/sys/fs/cgroup").join(controller).join("cgroup.procs").is_file();
        if has("freezer") && has("cpu") { None } else { Some("there are no cgroups of version 1 for freezer and cpu") }
    }

    /// The command, with everything that it needs installed and built.
    pub(crate) fn command(&self, workspace: &Workspace, log: &mut Log) -> Result<Command, String> {
        if let Some(lacking) = Self::lacking() {
            return Err(lacking.to_owned());
        }
        install_packages(log)?;
        self.command_with(&tools(workspace, log)?, workspace, log)
    }

    /// With these tools, in whichever cluster.
    fn command_with(&self, tools: &[PathBuf], workspace: &Workspace, log: &mut Log) -> Result<Command, String> {
        let binaries = match &self.binaries {
            Some(binaries) => binaries.clone(),
            None => Binaries::build(workspace, log)?,
        };
        let mut command = Command::new(&binaries.e2e);
        command.arg("--hawser").arg(&binaries.hawser).arg("kubernetes");
        for directory in tools {
            command.arg("--tools").arg(directory);
        }
        command.arg("--chart").arg(workspace.root.join("charts/hawser"));
        command.arg("--logs").arg(workspace.log_directory().join(self.logs));
        Ok(command)
    }
}

/// A line of the lab's that says how far it is, or what failed.
pub(crate) fn is_for_people(line: &str) -> bool {
    ["time: ", "ok ", "FAILED ", "in a run: ", "failovers: "].iter().any(|beginning| line.starts_with(beginning))
}

/// As a user would, and waits until all of it is ready.
fn install_chart(
    tools: &[PathBuf],
    chart: &Path,
    values: &[String],
    kubeconfig: &Path,
    log: &mut Log,
) -> Result<(), String> {
    let built = tools.iter().map(|directory| directory.join("helm")).find(|path| path.is_file());
    let mut helm = Command::new(built.unwrap_or_else(|| PathBuf::from("helm")));
    helm.arg("upgrade").args(["--install", "hawser"]).arg(chart).arg("--kubeconfig").arg(kubeconfig);
    helm.args(["--namespace", "hawser", "--create-namespace", "--wait", "--timeout", "5m"]);
    for value in values {
        helm.args(["--set", value]);
    }
    process::run(&mut helm, INSTALL_DEADLINE, log, &mut |_| {})
        .map_err(|error| format!("helm could not install hawser: {error}"))
}

fn install_packages(log: &mut Log) -> Result<(), String> {
    install::packages(log)?;
    let (file, package) = NETWORK_PLUGINS;
    let mut missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !process::is_installed(program)).map(|(_, package)| *package).collect();
    if !Path::new(file).is_file() {
        missing.push(package);
    }
    if missing.is_empty() { Ok(()) } else { install::apt_install(&missing, log) }
}

/// The directories in which the programs are.
fn tools(workspace: &Workspace, log: &mut Log) -> Result<Vec<PathBuf>, String> {
    let mut directories =
        vec![kubernetes(workspace, log)?, sidecars(workspace, log)?, snapshot_metadata(workspace, log)?];
    for tool in INSTALLED {
        directories.push(installed(tool, log)?);
    }
    Ok(directories)
}

/// What a cluster needs that is not the lab's: kubectl, and helm where a chart is to be installed. Those of this machine
/// will do.
fn tools_elsewhere(workspace: &Workspace, has_chart: bool, log: &mut Log) -> Result<Vec<PathBuf>, String> {
    let mut directories = Vec::new();
    if !process::is_installed("kubectl") {
        directories.push(kubernetes(workspace, log)?);
    }
    if has_chart && !process::is_installed("helm") {
        directories.push(installed(HELM, log)?);
    }
    Ok(directories)
}

/// The directory of one of the programs that need no help.
pub(crate) fn installed((name, package, version): (&str, &str, &str), log: &mut Log) -> Result<PathBuf, String> {
    install::cached(&format!("{name}-{version}"), name, log, |building, go, log| {
        say(name);
        let mut install = Command::new(go);
        install.args(["install", "-ldflags", "-s -w", &format!("{package}@{version}")]).env("GOBIN", building);
        install::run_go(&mut install, BUILD_DEADLINE, log)
    })
}

fn kubernetes(workspace: &Workspace, log: &mut Log) -> Result<PathBuf, String> {
    let sources = Sources::of(workspace, "kubernetes")?;
    install::cached(&sources.name, KUBERNETES[0], log, |building, go, log| {
        say("Kubernetes");
        let version = KUBERNETES_VERSION.trim_start_matches('v');
        let mut numbers = version.split('.');
        let set = |key: &str, value: &str| format!("-X k8s.io/component-base/version.{key}={value}");
        let flags = [
            "-s -w".to_owned(),
            set("gitVersion", KUBERNETES_VERSION),
            set("gitMajor", numbers.next().unwrap_or_default()),
            set("gitMinor", numbers.next().unwrap_or_default()),
        ];
        let mut build = Command::new(go);
        build.args(["build", "-ldflags", &flags.join(" "), "-o"]).arg(format!("{}/", building.display()));
        build.args(KUBERNETES.map(|name| format!("k8s.io/kubernetes/cmd/{name}"))).current_dir(&sources.directory);
        install::run_go(&mut build, BUILD_DEADLINE, log)
    })
}

fn sidecars(workspace: &Workspace, log: &mut Log) -> Result<PathBuf, String> {
    let sources = Sources::of(workspace, "csi-sidecars")?;
    install::cached(&sources.name, SIDECARS[0].0, log, |building, go, log| {
        say("the sidecars");
        let mut build = Command::new(go);
        build.args(["build", "-ldflags", "-s -w", "-o"]).arg(format!("{}/", building.display()));
        build.args(SIDECARS.map(|(_, package)| package)).current_dir(&sources.directory);
        install::run_go(&mut build, BUILD_DEADLINE, log)?;
        copy_definitions(DEFINITIONS_MODULE, &sources, go, building)
    })
}

/// The sidecar, and a client that does what backup programs do. Its module has versions of its own of much that the other
/// sidecars use.
fn snapshot_metadata(workspace: &Workspace, log: &mut Log) -> Result<PathBuf, String> {
    let sources = Sources::of(workspace, "csi-snapshot-metadata")?;
    install::cached(&sources.name, SNAPSHOT_METADATA.0, log, |building, go, log| {
        say(SNAPSHOT_METADATA.0);
        let mut build = Command::new(go);
        build.args(["build", "-ldflags", "-s -w", "-o"]).arg(format!("{}/", building.display()));
        build.args([".", SNAPSHOT_METADATA.1]).current_dir(&sources.directory);
        install::run_go(&mut build, BUILD_DEADLINE, log)?;
        copy_definitions(SERVICE_DEFINITION_MODULE, &sources, go, building)
    })
}

/// From a module's `config/crd`, those that end in the group of snapshots or of changed blocks; beside them are files that
/// are for kustomize.
fn copy_definitions(module: &str, sources: &Sources, go: &Path, building: &Path) -> Result<(), String> {
    let mut list = Command::new(go);
    list.args(["list", "-m", "-f", "{{.Dir}}", module]).current_dir(&sources.directory);
    let directory = process::output(list.env("GOTOOLCHAIN", "auto"))?;
    let (from, to) = (&Path::new(directory.trim()).join("config/crd"), &building.join("crds"));
    let failed = |error: std::io::Error| format!("cannot copy {} to {}: {error}", from.display(), to.display());
    std::fs::create_dir_all(to).map_err(failed)?;
    let entries = std::fs::read_dir(from).map_err(failed)?.flatten();
    let wanted = entries.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        GROUPS.iter().any(|group| name.contains(group))
    });
    let mut copied = 0;
    for entry in wanted {
        // By its bytes: the module cache is read-only, and copies are not.
        let bytes = std::fs::read(entry.path()).map_err(failed)?;
        std::fs::write(to.join(entry.file_name()), bytes).map_err(failed)?;
        copied += 1;
    }
    if copied == 0 { Err(format!("{} holds no definitions of snapshots", from.display())) } else { Ok(()) }
}

fn say(what: &str) {
    println!("building {what}, once; this takes minutes");
}
