//! A real Kubernetes on this one machine: etcd, the control plane, and nodes that are namespaces, with hawser in pods.
//! docs/kubernetes-lab.md says how it is made and what it cannot show.
//!
//! Everything runs in a process, mount and network namespace of its own. Its first process is this program again; when
//! that ends, however it ends, the kernel ends all the others and their mounts and links go with them. What outlives
//! processes (loop devices, cgroups, files) the process outside removes, or the next run if that was killed too.

mod cluster;
mod control_plane;
mod credentials;
mod driver;
mod failover;
mod ground;
mod http;
mod images;
mod network;
mod node;
mod place;
mod process;
mod scenarios;
mod snapshot_metadata;
mod space;

use crate::client::{is_interrupted, survive_interrupts};
use crate::failure::{Context, Result, ensure};
use crate::lab::kernel::program;
use crate::report::Report;
use cluster::Cluster;
use control_plane::ControlPlane;
use driver::Release;
use ground::Ground;
use node::Node;
use place::{Place, Pools};
use process::Daemon;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where the programs of Kubernetes and the sidecars are (repeatable).
    #[arg(long, value_name = "DIR")]
    tools: Vec<PathBuf>,
    /// The chart that hawser is installed from.
    #[arg(long, value_name = "DIR")]
    chart: PathBuf,
    /// Where the logs of all components are kept.
    #[arg(long, value_name = "DIR")]
    logs: PathBuf,
    /// Leaves the cluster up, after the scenarios, until this is interrupted.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    failover: failover::FailoverArguments,
    /// Each node has a pool of its own in place of one that all share.
    #[arg(long)]
    local_pools: bool,
    /// With VolumeAttachments: the controller attaches.
    #[arg(long)]
    attach_by_controller: bool,
    /// Makes no cluster, but uses the current context of this file, where hawser is installed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keep", "local_pools", "attach_by_controller"])]
    kubeconfig: Option<PathBuf>,
}

impl Arguments {
    fn pools(&self) -> Pools {
        if self.local_pools { Pools::Local } else { Pools::Shared }
    }
}

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// Started for failovers of two nodes at once, where most of the nodes must still be seen.
const SPARE_NODES: [&str; 2] = ["node-4", "node-5"];

/// Names the lab's directory to the process inside.
const PLACE: &str = "E2E_KUBERNETES";
/// Holds the id of the process inside, as it is known outside.
const INSIDE_ID: &str = "inside";
/// How long the process inside may take to end once it was asked to.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const NODE_LIMIT: Duration = Duration::from_secs(180);

pub(crate) fn is_inside() -> bool {
    std::env::var_os(PLACE).is_some()
}

/// Whether it makes a cluster of namespaces, in which this program must be started again.
pub(crate) fn has_inside(arguments: &Arguments) -> bool {
    arguments.kubeconfig.is_none()
}

/// The process outside: starts this program in namespaces of its own, and clears up after it.
pub(crate) fn outside(arguments: &Arguments) -> ExitCode {
    match run_inside(arguments) {
        Ok(code) => code,
        Err(failure) => {
            println!("FAILED set-up: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run_inside(arguments: &Arguments) -> Result<ExitCode> {
    ensure(nix::unistd::geteuid().is_root(), || "a Kubernetes of namespaces needs root".to_owned())?;
    survive_interrupts()?;
    place::clear_left_behind();
    let (place, _lock) = Place::create(&arguments.logs, arguments.pools())?;
    let mut inside = Command::new("setpriv");
    inside.args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--propagation", "private", "--net", "--pid"]);
    inside.args(["--fork", "--kill-child", "--mount-proc", "--"]).arg(std::env::current_exe()?);
    inside.args(std::env::args_os().skip(1)).env(PLACE, place.root());
    let ended =
        inside.spawn().context(|| "cannot start setpriv(1)".to_owned()).and_then(|mut child| wait(&mut child, &place));
    place.clear()?;
    ended
}

fn wait(child: &mut Child, place: &Place) -> Result<ExitCode> {
    let mut inside = None;
    let mut asked = None;
    loop {
        if let Some(status) = child.try_wait()? {
            // Its tests have said what failed; a signal is nothing that they could say.
            return match (status.code(), status.signal()) {
                (Some(0), _) => Ok(ExitCode::SUCCESS),
                (Some(_), _) => Ok(ExitCode::FAILURE),
                (None, signal) => Err(format!("the process inside was ended by signal {signal:?}").into()),
            };
        }
        if inside.is_none() {
            inside = process::child_of(child.id());
            let id = inside.map(|id| id.to_string()).unwrap_or_default();
            std::fs::write(place.root().join(INSIDE_ID), id)?;
        }
        if is_interrupted() {
            let since = asked.get_or_insert_with(|| {
                // The first of its processes hears of signals that it waits for alone.
                let _ = inside.map(|id| program("kill", &["-TERM", &id.to_string()]));
                Instant::now()
            });
            place.thaw_all();
            if since.elapsed() > STOP_LIMIT {
                child.kill()?;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The scenarios; in the lab this is the process inside.
pub(crate) fn suite(report: &Report, hawser: &Path, arguments: &Arguments) -> Result<()> {
    survive_interrupts()?;
    let tools = Tools { directories: arguments.tools.clone() };
    if let Some(kubeconfig) = &arguments.kubeconfig {
        std::fs::create_dir_all(&arguments.logs)?;
        let cluster = Cluster::connect(&arguments.logs, &arguments.logs, &tools, kubeconfig)?;
        let ground = Ground::of_cluster(&cluster)?;
        scenarios::all(report, &ground);
        return ground.leave();
    }
    let place = Place::inside(std::env::var_os(PLACE).unwrap_or_default().into(), &arguments.logs, arguments.pools())?;
    let place =
        place.attach_by_controller(arguments.attach_by_controller).with_pages(arguments.failover.reads_metrics());
    let lab = Lab::start(place, &tools, hawser, &arguments.chart)?;
    let ground = Ground::of_lab(&lab);
    if !failover::instead(report, &lab, &ground, &arguments.failover) {
        scenarios::all(report, &ground);
        if lab.place.pools() == Pools::Shared {
            failover::all(report, &lab, &ground);
        }
    }
    if arguments.keep {
        lab.explain()?;
        while !is_interrupted() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    lab.keep_pod_logs();
    Ok(())
}

/// Programs by name; those of the machine where these directories have none.
#[derive(Clone)]
pub(crate) struct Tools {
    directories: Vec<PathBuf>,
}

impl Tools {
    fn find(&self, name: &str) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = self.directories.iter().cloned().chain(std::env::split_paths(&path));
        let found = directories.map(|directory| directory.join(name)).find(|path| path.exists());
        found.ok_or_else(|| format!("there is no {name} in {:?}", self.directories).into())
    }

    fn command(&self, name: &str) -> Result<Command> {
        Ok(Command::new(self.find(name)?))
    }
}

/// The cluster with hawser in it. Fields are dropped in this order.
struct Lab {
    _snapshot_controller: Daemon,
    cluster: Cluster,
    /// The spare ones as well, which may not run.
    nodes: Vec<Node>,
    /// The binary under test.
    hawser: PathBuf,
    control_plane: ControlPlane,
    release: Release,
    place: Place,
    tools: Tools,
}

impl Lab {
    fn start(place: Place, tools: &Tools, hawser: &Path, chart: &Path) -> Result<Self> {
        let began = Instant::now();
        let step = |what: &str| println!("time: {what}: {:.1} s after the start", began.elapsed().as_secs_f64());
        place.join_control_plane()?;
        place.mount_file_systems()?;
        network::create()?;
        // Images are made while the control plane starts.
        let (control_plane, images) = std::thread::scope(|scope| {
            let images = scope.spawn(|| images::prepare(&place, tools, hawser));
            let control_plane = ControlPlane::start(&place, tools);
            if control_plane.is_ok() {
                step("API server ready");
            }
            (control_plane, images.join().unwrap_or_else(|_| Err("making the images panicked".into())))
        });
        let control_plane = control_plane?;
        let cluster = Cluster::connect(&place.directory("proxy")?, place.logs(), tools, &control_plane.admin)?;
        images?;
        step("images made");
        let mut nodes = Vec::new();
        for (index, name) in NODES.iter().enumerate() {
            nodes.push(Node::start(&place, tools, &control_plane, name, index + 1)?);
        }
        wait_for_nodes(&cluster, &nodes)?;
        step("three nodes ready");
        for (name, number) in SPARE_NODES.iter().zip(nodes.len() + 1..) {
            nodes.push(Node::spare(&place, tools, &control_plane, name, number)?);
        }
        let (snapshot_controller, release) = driver::install(&cluster, tools, &place, &control_plane.admin, chart)?;
        step("hawser and the sidecars ready");
        Ok(Self {
            _snapshot_controller: snapshot_controller,
            cluster,
            nodes,
            hawser: hawser.to_owned(),
            control_plane,
            release,
            place,
            tools: tools.clone(),
        })
    }

    /// How to look into the cluster while it is kept.
    fn explain(&self) -> Result<()> {
        let id = std::fs::read_to_string(self.place.root().join(INSIDE_ID))?;
        println!("the cluster is up until this is interrupted; in it, from another terminal:");
        println!(
            "    nsenter --target {id} --mount --net --pid -- {} get pods --all-namespaces",
            self.cluster.kubectl_line()
        );
        Ok(())
    }

    /// What the containers said, beside the logs of the components.
    fn keep_pod_logs(&self) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            let kept = self.place.logs().join(&node.name);
            let _ = program(
                "cp",
                &["--recursive", "--dereference", &node.pod_logs().to_string_lossy(), &kept.to_string_lossy()],
            );
        }
    }

    fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| format!("there is no node {name}").into())
    }
}

fn wait_for_nodes(cluster: &Cluster, nodes: &[Node]) -> Result<()> {
    for node in nodes {
        cluster.wait(&format!("node {} ready", node.name), NODE_LIMIT, || {
            Ok(match cluster.find(&format!("/api/v1/nodes/{}", node.name))? {
                Some(object) if cluster::has_condition(&object, "Ready") => Ok(()),
                Some(object) => Err(object["status"]["conditions"].to_string()),
                None => Err("it has not registered".to_owned()),
            })
        })?;
    }
    Ok(())
}
