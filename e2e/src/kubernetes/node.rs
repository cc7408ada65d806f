//! A node: namespaces with a containerd and a kubelet in them.
//!
//! Each sees a `/var/lib`, `/var/log` and `/run` of its own at the usual paths, and the pool that all share.

use super::control_plane::ControlPlane;
use super::place::Place;
use super::process::{Daemon, child_of, wait_until};
use super::{Tools, images, network, place};
use crate::failure::{Context, Result, ensure};
use crate::lab::kernel::program;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) struct Node {
    pub(super) name: String,
    number: usize,
    directory: PathBuf,
    logs: PathBuf,
    pool: PathBuf,
    /// Where the images are that it starts with.
    place: PathBuf,
    freezer: PathBuf,
    processors: PathBuf,
    cgroups: Vec<PathBuf>,
    kubelet: Vec<String>,
    running: Mutex<Option<Running>>,
}

/// What ends with the node.
struct Running {
    /// The first process of its process namespace; with it all others end.
    init: u32,
    kubelet: Option<Daemon>,
    _daemons: [Daemon; 2],
}

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const START_LIMIT: Duration = Duration::from_secs(90);
/// A process that waits for its disk is frozen once it has it. Less than it takes until a node is taken for lost.
const FREEZE_LIMIT: Duration = Duration::from_secs(1);
/// A volume is mounted only after the node's status names it, and detached only after it no longer does. The default of
/// 10 s would be most of the time of every scenario.
const STATUS_FREQUENCY: &str = "1s";

/// The first process: makes the mounts, then waits for the orphans of containers. Mounts are bound before they are shared,
/// else what is mounted on one would appear on the other too.
const INIT: &str = r#"set -e
hostname "$1"
mount --bind "$2/lib" /var/lib
mount --bind "$2/log" /var/log
mount -t tmpfs none /run
mount --bind "$3" /var/lib/hawser/pool
mount --make-rshared /
echo 1 > /proc/sys/net/ipv4/ip_forward
touch "$2/ready"
while :; do sleep 1000 & wait; done"#;

/// Joins two cgroups before it becomes the program, so that everything it starts is in them.
const JOIN: &str = r#"echo $$ > "$0/cgroup.procs" && echo $$ > "$1/cgroup.procs" && shift && exec "$@""#;

/// As a service manager does. A kubelet ends when it finds its containerd still starting.
const SUPERVISE: &str = r#"while :; do "$@"; sleep 0.3; done"#;

impl Node {
    pub(super) fn start(
        place: &Place,
        tools: &Tools,
        control_plane: &ControlPlane,
        name: &str,
        number: usize,
    ) -> Result<Self> {
        let node = Self::spare(place, tools, control_plane, name, number)?;
        node.boot()?;
        Ok(node)
    }

    /// One that does not run yet.
    pub(super) fn spare(
        place: &Place,
        tools: &Tools,
        control_plane: &ControlPlane,
        name: &str,
        number: usize,
    ) -> Result<Self> {
        let directory = place.node(name);
        std::fs::create_dir_all(directory.join("lib"))?;
        Ok(Self {
            name: name.to_owned(),
            number,
            kubelet: kubelet(place, tools, control_plane, name, number, &directory)?,
            directory,
            logs: place.logs().to_owned(),
            pool: place.pool_of(name),
            place: place.root().to_owned(),
            freezer: place.freezer(name),
            processors: place.processors(name),
            cgroups: place.cgroups(name)?,
            running: Mutex::new(None),
        })
    }

    /// Starts it, with the state that it had when it was killed.
    pub(super) fn boot(&self) -> Result<()> {
        let name = &self.name;
        prepare(&self.place, &self.directory, self.number)?;
        // Kubelet would ask its containerd for each container of an earlier life, for seconds each.
        self.cgroups.iter().try_for_each(|path| place::empty_cgroup(path))?;
        let ready = self.directory.join("ready");
        let _ = std::fs::remove_file(&ready);
        let namespace = self.namespace()?;
        let init = wait_until(&format!("{name}'s first process"), START_LIMIT, || {
            Ok(child_of(namespace.id()).filter(|_| ready.exists()).ok_or_else(|| namespace.last_lines()))
        })?;
        network::connect_node(self.number, init).context(|| format!("the network of {name}"))?;
        let containerd = ["containerd", "--config", "/var/lib/containerd.toml"].map(str::to_owned);
        let containerd = self.supervise(init, "containerd", &containerd)?;
        wait_until(&format!("{name}'s containerd"), START_LIMIT, || {
            let version = run_inside(init, &["ctr", "--timeout", "5s", "version"]);
            Ok(version.map(drop).map_err(|failure| format!("{failure}; {}", containerd.last_lines())))
        })?;
        let kubelet = Some(self.supervise(init, "kubelet", &self.kubelet)?);
        *self.running() = Some(Running { init, kubelet, _daemons: [containerd, namespace] });
        Ok(())
    }

    fn supervise(&self, init: u32, program: &str, arguments: &[String]) -> Result<Daemon> {
        let mut supervised = inside(init, "sh");
        supervised.args(["-c", SUPERVISE, "sh"]).args(arguments);
        Daemon::start(&format!("{program}-{}", self.name), self.join(&supervised), &self.logs)
    }

    /// The command in the node's cgroups of the freezer and of processor time, where containers have theirs below them.
    fn join(&self, command: &Command) -> Command {
        let mut join = Command::new("sh");
        join.args(["-c", JOIN])
            .arg(&self.freezer)
            .arg(&self.processors)
            .arg(command.get_program())
            .args(command.get_args());
        join
    }

    pub(super) fn is_running(&self) -> bool {
        self.running().is_some()
    }

    /// Stops every process of it, those of containers too, where they are. The kernel still writes what they wrote.
    ///
    /// False when one of them cannot be stopped, and then all go on: a process of several threads that starts a program waits
    /// for its other threads to end, which they do not once they are frozen.
    pub(super) fn freeze(&self) -> Result<bool> {
        let state = self.freezer.join("freezer.state");
        std::fs::write(&state, "FROZEN").context(|| format!("freezing {}", self.name))?;
        let began = Instant::now();
        loop {
            if std::fs::read_to_string(&state)?.trim() == "FROZEN" {
                return Ok(true);
            }
            if began.elapsed() > FREEZE_LIMIT {
                return self.thaw().map(|()| false);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(super) fn thaw(&self) -> Result<()> {
        std::fs::write(self.freezer.join("freezer.state"), "THAWED").context(|| format!("thawing {}", self.name))
    }

    /// Nobody reaches the node's own address any more, nor it anybody. Storage and the clients of its pods go on.
    pub(super) fn cut(&self) -> Result<()> {
        network::set_control_link(self.number, false)
    }

    pub(super) fn heal(&self) -> Result<()> {
        network::set_control_link(self.number, true)
    }

    /// Kubelet alone, and what would start it again.
    pub(super) fn kill_kubelet(&self) -> Result<()> {
        ensure(self.signal("KILL", "/kubelet --config")? > 0, || format!("{} has no kubelet", self.name))?;
        if let Some(running) = self.running().as_mut() {
            running.kubelet = None;
        }
        Ok(())
    }

    /// Where it does not run.
    pub(super) fn start_kubelet(&self) -> Result<()> {
        let mut running = self.running();
        if let Some(running) = running.as_mut().filter(|running| running.kubelet.is_none()) {
            running.kubelet = Some(self.supervise(running.init, "kubelet", &self.kubelet)?);
        }
        Ok(())
    }

    /// How often kubelet reports the node's status; its default is "10s".
    pub(super) fn set_status_frequency(&self, frequency: &str) -> Result<()> {
        let path = self.directory.join("lib/kubelet.json");
        let mut settings: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path)?).map_err(|error| error.to_string())?;
        settings["nodeStatusUpdateFrequency"] = json!(frequency);
        std::fs::write(path, settings.to_string())?;
        if self.is_running() {
            self.kill_kubelet()?;
            self.start_kubelet()?;
        }
        Ok(())
    }

    /// Mounts in it whose line contains `part` (proc_pid_mountinfo(5)).
    pub(super) fn mounts(&self, part: &str) -> Result<Vec<String>> {
        let Some(init) = self.running().as_ref().map(|running| running.init) else { return Ok(Vec::new()) };
        let table = std::fs::read_to_string(format!("/proc/{init}/mountinfo"))?;
        Ok(table.lines().filter(|line| line.contains(part)).map(str::to_owned).collect())
    }

    /// At once, with everything that runs on it and its network.
    pub(super) fn kill(&self) -> Result<()> {
        let loops = self.loops_on_devices()?;
        let running = self.running().take().ok_or_else(|| format!("{} does not run", self.name))?;
        program("kill", &["-KILL", &running.init.to_string()])?;
        drop(running);
        // They would be gone with the machine; as it is they would hold the devices of volumes for ever.
        loops.iter().try_for_each(|device| program("losetup", &["--detach", device]).map(drop))
    }

    /// The loop devices by which its kubelet holds on to the raw block devices of pods.
    fn loops_on_devices(&self) -> Result<Vec<String>> {
        let lines = self.mounts("/volumeDevices/")?;
        let held: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').nth(4)).collect();
        let of = |device: &str| std::fs::read_to_string(format!("/sys/block/{device}/loop/backing_file")).ok();
        let names = std::fs::read_dir("/sys/block")?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let own = names.filter(|name| of(name).is_some_and(|file| held.contains(&file.trim_end())));
        Ok(own.map(|name| format!("/dev/{name}")).collect())
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn namespace(&self) -> Result<Daemon> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        unshare.args(["--propagation", "private", "--", "sh", "-c", INIT, "sh", &self.name]);
        unshare.arg(&self.directory).arg(&self.pool);
        Daemon::start(&format!("namespace-{}", self.name), self.join(&unshare), &self.logs)
    }

    /// A program of the machine's in the node's namespaces; what it printed.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String> {
        let init = self.running().as_ref().map(|running| running.init);
        run_inside(init.ok_or_else(|| format!("{} does not run", self.name))?, arguments)
    }

    /// What the containers wrote to their standard output, as kubelet keeps it.
    pub(super) fn pod_logs(&self) -> PathBuf {
        self.directory.join("log/pods")
    }

    /// Ids of the node's processes, as seen from outside of it, whose command line contains `part`: its own by their
    /// network, those of containers by their cgroups.
    pub(super) fn processes(&self, part: &str) -> Vec<u32> {
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let Some(own) = self.running().as_ref().and_then(|running| namespace(running.init)) else { return Vec::new() };
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let command_line = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let cgroup = format!("/{}/", self.name);
        let is_here = |pid: u32| {
            namespace(pid).as_ref() == Some(&own)
                || std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|of| of.contains(&cgroup))
        };
        let is_wanted =
            |pid: &u32| String::from_utf8_lossy(&command_line(*pid)).replace('\0', " ").contains(part) && is_here(*pid);
        pids.filter(is_wanted).collect()
    }

    /// Sends a signal to all processes that [`Node::processes`] finds; how many there are.
    pub(super) fn signal(&self, name: &str, part: &str) -> Result<usize> {
        let ids: Vec<String> = self.processes(part).iter().map(u32::to_string).collect();
        if !ids.is_empty() {
            let arguments: Vec<&str> = ["-s", name].into_iter().chain(ids.iter().map(String::as_str)).collect();
            program("kill", &arguments)?;
        }
        Ok(ids.len())
    }
}

/// What its files are before it starts for the first time.
fn prepare(place: &Path, directory: &Path, number: usize) -> Result<()> {
    let lib = directory.join("lib");
    if lib.join("cni").exists() {
        return Ok(());
    }
    for part in ["lib/kubelet", "lib/hawser/pool", "lib/cni/conf", "log"] {
        std::fs::create_dir_all(directory.join(part))?;
    }
    images::clone_into(place, &lib.join("containerd"))?;
    std::fs::write(
        lib.join("containerd.toml"),
        containerd_settings(Path::new("/var/lib/containerd"), CONTAINERD_SOCKET),
    )?;
    let pods = json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [{
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": network::pod_subnet(number)}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    std::fs::write(lib.join("cni/conf/lab.conflist"), pods.to_string())?;
    Ok(())
}

/// A program in all namespaces of the process `init`.
fn inside(init: u32, program: &str) -> Command {
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &init.to_string(), "--mount", "--uts", "--net", "--pid", "--", program]);
    nsenter
}

fn run_inside(init: u32, arguments: &[&str]) -> Result<String> {
    let target = init.to_string();
    let namespaces = ["--target", &target, "--mount", "--uts", "--net", "--pid", "--"];
    program("nsenter", &[&namespaces, arguments].concat())
}

/// For a containerd of version 1.6. Without CAP_SYS_RESOURCE nobody may lower an oom_score_adj, so it must not try.
pub(super) fn containerd_settings(root: &Path, socket: &str) -> String {
    let state = Path::new(socket).parent().unwrap_or(Path::new("/run")).display();
    format!(
        r#"version = 2
root = "{}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/var/lib/cni/conf"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#,
        root.display(),
        images::PAUSE
    )
}

fn kubelet(
    place: &Place,
    tools: &Tools,
    control_plane: &ControlPlane,
    name: &str,
    number: usize,
    directory: &Path,
) -> Result<Vec<String>> {
    let settings = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "clusterDNS": [network::HOST],
        // It listens in the lab's own network alone, and the API server has no certificate to show to it.
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": place.create_cgroup(name)?,
        "failCgroupV1": false,
        "nodeStatusUpdateFrequency": STATUS_FREQUENCY,
        // How soon a pod is looked at again, whose volume has grown: a minute by default.
        "syncFrequency": "10s",
        "enforceNodeAllocatable": [],
        "resolvConf": "",
        "makeIPTablesUtilChains": false,
        "failSwapOn": false,
        // The disk is the machine's, and so are its other users.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "maxPods": 250,
        // A container that was killed often starts again at once: by default it would wait up to five minutes.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
    });
    let path = directory.join("lib/kubelet.json");
    std::fs::write(&path, settings.to_string())?;
    Ok(vec![
        tools.find("kubelet")?.display().to_string(),
        "--config=/var/lib/kubelet.json".to_owned(),
        format!("--kubeconfig={}", control_plane.credentials.kubeconfig(name)?.display()),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", network::node_address(number)),
        "--root-dir=/var/lib/kubelet".to_owned(),
    ])
}
