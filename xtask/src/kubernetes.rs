//! `cargo xtask e2e kubernetes`: a real Kubernetes on this machine (docs/kubernetes-lab.md), and what it is made of.
//!
//! Its programs are built from their Go modules, which e2e/tools pins, once into the cache. That takes long; nothing of it
//! is part of `cargo xtask test`.

use crate::binaries::Binaries;
use crate::counts::{Counts, count_line};
use crate::install::{self, Sources};
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
/// Programs whose modules need no help: name, package, version.
const INSTALLED: [(&str, &str, &str); 2] = [
    ("csi-resizer", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer", "v2.3.0"),
    ("helm", "helm.sh/helm/v3/cmd/helm", "v3.22.0"),
];
/// On two busy processors.
const BUILD_DEADLINE: Duration = Duration::from_secs(90 * 60);
const RUN_DEADLINE: Duration = Duration::from_secs(60 * 60);

/// `cargo xtask e2e`: whether nothing failed.
pub(crate) fn end_to_end(arguments: &EndToEndArguments) -> Result<bool, String> {
    let Suite::Kubernetes(arguments) = &arguments.suite;
    let workspace = Workspace::load()?;
    let mut log = Log::create(&workspace.log_directory(), "kubernetes")?;
    let lab = Lab { binaries: arguments.binaries.clone(), logs: "kubernetes" };
    let mut command = lab.command(&workspace, &mut log)?;
    if let Some(filter) = &arguments.filter {
        command.arg("--filter").arg(filter);
    }
    if arguments.keep {
        command.arg("--keep");
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
    println!("{}", counts.summary());
    if !counts.failures.is_empty() {
        println!("log: {}, and those of all components beside it in kubernetes/", log.path.display());
    }
    Ok(counts.failures.is_empty())
}

/// What `e2e kubernetes` needs.
pub(crate) struct Lab {
    /// Where `hawser` and `e2e` are; else they are built.
    pub(crate) binaries: Option<PathBuf>,
    /// The directory of the components' logs, below that of xtask.
    pub(crate) logs: &'static str,
}

impl Lab {
    /// The command, with everything that it needs installed and built.
    pub(crate) fn command(&self, workspace: &Workspace, log: &mut Log) -> Result<Command, String> {
        if !install::is_root() {
            return Err("namespaces, mounts and loop devices need root".to_owned());
        }
        install_packages(log)?;
        let tools = tools(workspace, log)?;
        let binaries = match &self.binaries {
            Some(directory) => Binaries::in_directory(directory)?,
            None => Binaries::build(workspace, log)?,
        };
        let mut command = Command::new(&binaries.e2e);
        command.arg("--hawser").arg(&binaries.hawser).arg("kubernetes");
        for directory in &tools {
            command.arg("--tools").arg(directory);
        }
        command.arg("--logs").arg(workspace.log_directory().join(self.logs));
        Ok(command)
    }
}

/// A line of the lab's that says how far it is, or what failed.
pub(crate) fn is_for_people(line: &str) -> bool {
    ["time: ", "ok ", "FAILED ", "in a run: ", "failovers: "].iter().any(|beginning| line.starts_with(beginning))
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
    let mut directories = vec![kubernetes(workspace, log)?, sidecars(workspace, log)?];
    for (name, _, _) in INSTALLED {
        directories.push(installed(name, log)?);
    }
    Ok(directories)
}

/// The directory of one of the programs that need no help.
pub(crate) fn installed(program: &str, log: &mut Log) -> Result<PathBuf, String> {
    let found = INSTALLED.iter().find(|(name, _, _)| *name == program);
    let (name, package, version) = found.ok_or_else(|| format!("nobody knows how to install {program}"))?;
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
        let mut list = Command::new(go);
        list.args(["list", "-m", "-f", "{{.Dir}}", DEFINITIONS_MODULE]).current_dir(&sources.directory);
        let module = process::output(list.env("GOTOOLCHAIN", "auto"))?;
        copy_definitions(&Path::new(module.trim()).join("config/crd"), &building.join("crds"))
    })
}

/// Those of snapshots and of snapshots of groups; beside them are files that are for kustomize.
fn copy_definitions(from: &Path, to: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot copy {} to {}: {error}", from.display(), to.display());
    std::fs::create_dir_all(to).map_err(failed)?;
    let entries = std::fs::read_dir(from).map_err(failed)?.flatten();
    let wanted = entries.filter(|entry| entry.file_name().to_string_lossy().contains("snapshot.storage.k8s.io_"));
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
