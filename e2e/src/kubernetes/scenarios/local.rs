//! Pools of each node's own: a volume is where its pod is, and its pod waits for its node.

use super::places::{ensure_no_node_chosen, wait_unschedulable};
use crate::failure::{Result, ensure};
use crate::kubernetes::failover::{installed, said};
use crate::kubernetes::node::Node;
use crate::kubernetes::place::Pools;
use crate::kubernetes::space::{Space, Volume, claim, on_node, pod, pod_spec};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const POOL: &str = "/var/lib/hawser/pool";
/// Waits for the first pod, as all classes do with local pools.
const CLASS: &str = "hawser-wait";
const NODE_KEY: &str = "csi.hawser.dev/node";
/// How long nothing may happen to what was on a lost node, once it was said that nothing will. A lost node with a shared
/// pool is fenced within 3 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// What these scenarios stand on: no node sees another's pool.
pub(super) fn local_pools(space: &Space) -> Result<()> {
    let lab = space.lab()?;
    ensure(lab.place.pools() == Pools::Local, || "the pool is shared".to_owned())?;
    let running: Vec<&Node> = lab.nodes.iter().filter(|node| node.is_running()).collect();
    let mark = |node: &Node| format!("{POOL}/of-{}", node.name);
    for node in &running {
        node.run(&["touch", &mark(node)])?;
    }
    for node in &running {
        let seen = node.run(&["sh", "-c", &format!("ls -d {POOL}/of-* && stat -f -c %T {POOL}")])?;
        let wanted = format!("{}\nxfs", mark(node));
        ensure(seen.trim() == wanted, || format!("{} sees {seen:?}", node.name))?;
        node.run(&["rm", &mark(node)])?;
    }
    // Their sizes tell them apart.
    let sizes = running.iter().map(|node| node.run(&["stat", "-f", "-c", "%b", POOL]));
    let mut sizes = sizes.collect::<Result<Vec<_>>>()?;
    sizes.sort();
    sizes.dedup();
    ensure(sizes.len() == running.len(), || format!("the pools have {sizes:?} blocks"))
}

/// 6 GiB fit on the node with the largest pool alone, and nowhere while that is full: then no node is chosen, until there is
/// room again. Whatever fits elsewhere goes there.
pub(super) fn full_pool(space: &Space) -> Result<()> {
    let (lab, largest) = (space.lab()?, space.last_node());
    let node = lab.node(largest)?;
    wait_told(space, largest, true)?;
    let ballast = format!("{POOL}/e2e-ballast");
    node.run(&["sh", "-c", &format!("fallocate -l $(($(stat -f -c '%a * %S' {POOL}) - (8 << 20))) {ballast}")])?;
    let seen = while_full(space, largest);
    node.run(&["rm", &ballast])?;
    seen?;
    let began = Instant::now();
    let found = space.wait_running("large")?;
    space.time("from room in the pool to the waiting pod running", began.elapsed());
    ensure(found == largest, || format!("6 GiB are on {found}"))
}

fn while_full(space: &Space, full: &str) -> Result<()> {
    let began = Instant::now();
    wait_told(space, full, false)?;
    space.time("from a full pool to its capacity told", began.elapsed());
    space.create_claim(&claim("large", CLASS, "ReadWriteOnce", "6Gi"))?;
    space.create_pod(&pod("large", &[Volume::at("large", "/data")]))?;
    wait_unschedulable(space, "large", "did not have enough free storage")?;
    ensure_no_node_chosen(space, "large")?;
    space.start(&claim("small", CLASS, "ReadWriteOnce", "1Gi"), &pod("small", &[Volume::at("small", "/data")]))?;
    let found = space.wait_running("small")?;
    ensure(found != full, || format!("a volume was made on {full}, which is full"))?;
    ensure_no_node_chosen(space, "large")
}

/// Until the cluster knows that the node's pool has room, or has none.
fn wait_told(space: &Space, node: &str, has_room: bool) -> Result<()> {
    space.look(&format!("the capacity of {node} told"), || {
        let objects = space.cluster.list("/apis/storage.k8s.io/v1/csistoragecapacities")?;
        let is_of_it = |object: &&Value| {
            object["storageClassName"] == CLASS && object["nodeTopology"]["matchLabels"][NODE_KEY] == *node
        };
        let told = objects.iter().find(is_of_it).map(|object| object["capacity"].clone()).unwrap_or_default();
        Ok(if told.is_string() && (told != "0") == has_room { Ok(()) } else { Err(told.to_string()) })
    })
}

/// A node is lost: its pod is not moved, since its data is there; what is done about it is said, and the pod goes on when the
/// node is back.
pub(super) fn node_lost(space: &Space) -> Result<()> {
    let lab = space.lab()?;
    // Whoever leads says it; a lost leader is another matter.
    let leader = installed::leader(lab)?;
    let name = space.ground.nodes.iter().find(|name| **name != leader).ok_or("there is one node only")?.as_str();
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "db"},
        "spec": {
            "replicas": 1,
            "serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}},
            "template": on_node(json!({"metadata": {"labels": {"app": "db"}}, "spec": spec()}), name),
            "volumeClaimTemplates": [claim("data", CLASS, "ReadWriteOnce", "1Gi")],
        },
    });
    space.cluster.create(&format!("/apis/apps/v1/namespaces/{}/statefulsets", space.name), &set)?;
    space.wait_running("db-0")?;
    space.write("db-0", "/data/file", "kept")?;
    let before = space.cluster.get(&space.path("pods", "db-0"))?;
    let node = lab.node(name)?;
    node.kill()?;
    let seen = while_lost(space, name, &before);
    let began = Instant::now();
    node.boot()?;
    seen?;
    space.look("the pod's container started again", || {
        let status = space.cluster.get(&space.path("pods", "db-0"))?["status"]["containerStatuses"][0].clone();
        let is_new = status["containerID"] != before["status"]["containerStatuses"][0]["containerID"];
        Ok(if is_new && status["ready"] == true { Ok(()) } else { Err(status.to_string()) })
    })?;
    space.time("from the node's start to its pod running", began.elapsed());
    ensure_same(space, &before)?;
    space.ensure_content("db-0", "/data/file", "kept")?;
    space.write("db-0", "/data/file", "more")?;
    installed::wait_ready(lab)?;
    said::wait_nothing_said(space, name)
}

fn while_lost(space: &Space, node: &str, pod: &Value) -> Result<()> {
    let lab = space.lab()?;
    let why = format!("is of node {node} alone, so its volumes wait for the node");
    said::wait_refused(space, node, &why)?;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        ensure_same(space, pod)?;
        let taints = space.cluster.get(&format!("/api/v1/nodes/{node}"))?["spec"]["taints"].to_string();
        ensure(!taints.contains("out-of-service"), || format!("{node} was given up: {taints}"))?;
        // There are some only where the controller attaches.
        let attachments = space.cluster.list("/apis/storage.k8s.io/v1/volumeattachments")?;
        let elsewhere: Vec<&Value> =
            attachments.iter().map(|one| &one["spec"]["nodeName"]).filter(|name| **name != *node).collect();
        ensure(elsewhere.is_empty(), || format!("there are attachments to {elsewhere:?}"))?;
        std::thread::sleep(Duration::from_millis(500));
    }
    let history = installed::history(lab)?["history"].as_str().unwrap_or_default().to_owned();
    let is_fence = |line: &&str| line.contains(node) && (line.contains("fenc") || line.contains("evict"));
    ensure(!history.lines().any(|line| is_fence(&line)), || format!("a failover began: {history}"))
}

/// Not deleted, and not another one of its name.
fn ensure_same(space: &Space, before: &Value) -> Result<()> {
    let now = space.cluster.get(&space.path("pods", "db-0"))?["metadata"].clone();
    let is_same = now["uid"] == before["metadata"]["uid"] && now["deletionTimestamp"].is_null();
    ensure(is_same, || format!("the pod was moved: it is {now}"))
}

fn spec() -> Value {
    let mut spec = pod_spec(&[Volume::at("data", "/data")]);
    // The set adds the volume of each pod.
    spec["volumes"] = json!([]);
    spec
}
