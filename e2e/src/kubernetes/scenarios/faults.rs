//! Processes and nodes that are killed.

use crate::failure::{Result, ensure};
use crate::kubernetes::NODES;
use crate::kubernetes::space::{LIMIT, Space, Volume, claim, on_node, pod};
use crate::lab::kernel::program;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const NODE_DRIVER: &str = "/hawser serve --mode=node";
const CONTROLLER: &str = "/hawser serve --mode=controller";

/// The driver on the node is killed while a pod writes: the pod goes on writing, and the driver comes back and unmounts.
pub(super) fn node_plugin_killed(space: &Space) -> Result<()> {
    while_writing(space, NODE_DRIVER)
}

pub(super) fn kubelet_killed(space: &Space) -> Result<()> {
    while_writing(space, "/kubelet --config")
}

pub(super) fn containerd_killed(space: &Space) -> Result<()> {
    while_writing(space, "containerd --config")
}

fn while_writing(space: &Space, part: &str) -> Result<()> {
    let mut app = on_node(pod("app", &[Volume::at("data", "/data")]), "node-3");
    let script =
        "n=0; while :; do n=$((n+1)); echo $n > /data/new && sync && mv /data/new /data/count; sleep 0.05; done";
    app["spec"]["containers"][0]["args"] = json!(["-c", script]);
    space.start(&claim("data", "hawser", "ReadWriteOnce", "1Gi"), &app)?;
    let count = || {
        space.look("the writer's count", || {
            // Nobody can look into a container while its runtime is away.
            let text = space.sh("app", "cat /data/count").map_err(|failure| failure.to_string());
            Ok(text.and_then(|text| text.parse::<u64>().map_err(|_| format!("it is {text:?}"))))
        })
    };
    let node = space.lab.node("node-3")?;
    // What supervises it names it as well.
    let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let is_it = |pid: &u32| !["sh", "nsenter"].contains(&name(*pid).trim());
    let find = || -> Vec<u32> { node.processes(part).into_iter().filter(is_it).collect() };
    let before = count()?;
    let killed = find();
    ensure(killed.len() == 1, || format!("node-3 has {killed:?} as {part}"))?;
    program("kill", &["-KILL", &killed[0].to_string()])?;
    space.look("it runs again", || {
        let again = find();
        Ok(if again.len() == 1 && again != killed { Ok(()) } else { Err(format!("{again:?}")) })
    })?;
    let between = count()?;
    std::thread::sleep(Duration::from_secs(1));
    let after = count()?;
    ensure(before < between && between < after, || format!("the writer stood still: {before}, {between}, {after}"))?;
    space.delete_pod("app")
}

/// Killed while claims are provisioned and while they are deleted: each is bound, and nothing is left of any.
pub(super) fn controller_killed(space: &Space) -> Result<()> {
    let names: Vec<String> = (0..20).map(|number| format!("data-{number}")).collect();
    let began = Instant::now();
    for name in &names {
        space.create_claim(&claim(name, "hawser", "ReadWriteOnce", "64Mi"))?;
    }
    kill_controller(space)?;
    for name in &names {
        space.wait_bound(name)?;
    }
    space.time("twenty claims bound, the controller killed meanwhile", began.elapsed());
    for name in &names {
        space.lab.cluster.delete(&space.path("persistentvolumeclaims", name))?;
    }
    kill_controller(space)?;
    names.iter().try_for_each(|name| space.lab.cluster.wait_gone(&space.path("persistentvolumeclaims", name), LIMIT))
}

fn kill_controller(space: &Space) -> Result<()> {
    let pid = space.look("the controller's process", || {
        let pids: Vec<u32> = space.lab.nodes.iter().flat_map(|node| node.processes(CONTROLLER)).collect();
        Ok(pids.first().copied().ok_or_else(|| "there is none".to_owned()))
    })?;
    program("kill", &["-KILL", &pid.to_string()]).map(drop)
}

/// A node dies. By hand, as a supervisor would: fence, taint, delete the pod. The pod runs elsewhere with what it had
/// synced, and the node comes back, lets go of what it had and runs pods again.
pub(super) fn node_killed(space: &Space) -> Result<()> {
    let cluster = &space.lab.cluster;
    let controller = controller_node(space)?;
    let lost = *NODES.iter().find(|node| **node != controller).ok_or("the controller is on every node")?;
    let app = pod("app", &[Volume::at("data", "/data")]);
    space.start(&claim("data", "hawser", "ReadWriteOnce", "1Gi"), &on_node(app, lost))?;
    space.write("app", "/data/file", "synced")?;
    let node = space.lab.node(lost)?;
    let began = Instant::now();
    node.kill()?;
    // Running it again is harmless, and the connection through the API server may break when a node goes.
    space.look("the node fenced", || {
        Ok(hawser(space, &["fence", lost]).map(drop).map_err(|failure| failure.to_string()))
    })?;
    space.time("from the kill to fenced", began.elapsed());
    let path = format!("/api/v1/nodes/{lost}");
    let taint = json!([{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]);
    cluster.patch(&path, &json!({"spec": {"taints": taint}}))?;
    let name = space.path("pods", "app");
    cluster.delete_at_once(&name)?;
    cluster.wait_gone(&name, LIMIT)?;
    // Under another name: the eviction that the taint brings deletes pods by their names, and may come late.
    space.create_pod(&pod("again", &[Volume::at("data", "/data")]))?;
    let elsewhere = space.wait_running("again")?;
    space.time("from the kill to running elsewhere", began.elapsed());
    ensure(elsewhere != lost, || format!("the pod is on {lost}, which is dead"))?;
    space.ensure_content("again", "/data/file", "synced")?;

    node.boot()?;
    // Kubernetes may not have noticed that it was away; its driver has.
    space.look("the node let in again", || {
        let nodes = hawser(space, &["node", "ls"]);
        let line = nodes.map(|all| all.lines().find(|line| line.contains(lost)).unwrap_or_default().to_owned());
        Ok(match line {
            Ok(line) if line.contains("live") => Ok(()),
            Ok(line) => Err(line),
            Err(failure) => Err(failure.to_string()),
        })
    })?;
    space.time("from the kill to the node let in again", began.elapsed());
    space.look("the driver registered again", || {
        let drivers = cluster.get(&format!("/apis/storage.k8s.io/v1/csinodes/{lost}"))?["spec"]["drivers"].to_string();
        Ok(if drivers.contains("csi.hawser.dev") { Ok(()) } else { Err(drivers) })
    })?;
    cluster.patch(&path, &json!({"spec": {"taints": Value::Null}}))?;
    space.start(
        &claim("more", "hawser", "ReadWriteOnce", "1Gi"),
        &on_node(pod("returned", &[Volume::at("more", "/data")]), lost),
    )
}

/// The command line, where the controller runs.
fn hawser(space: &Space, arguments: &[&str]) -> Result<String> {
    let exec = ["--namespace", "hawser", "exec", "deploy/hawser-controller", "--container", "hawser", "--", "/hawser"];
    let command = [&exec[..], &["--set", "backend.directory=/var/lib/hawser/pool"], arguments].concat();
    space.lab.cluster.kubectl(&command, None)
}

fn controller_node(space: &Space) -> Result<String> {
    let pods = space.lab.cluster.list("/api/v1/namespaces/hawser/pods?labelSelector=app%3Dhawser-controller")?;
    let node = pods.first().and_then(|pod| pod["spec"]["nodeName"].as_str());
    node.map(str::to_owned).ok_or_else(|| "the controller is on no node".into())
}
