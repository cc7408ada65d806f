//! What of hawser is in the cluster, and its command line there.

use crate::failure::Result;
use crate::kubernetes::Lab;
use crate::kubernetes::cluster::has_condition;
use crate::kubernetes::driver::{PODS, unready};
use crate::kubernetes::space::{LIMIT, name_of};
use serde_json::Value;
use std::time::Duration;

const NAMESPACE: &str = "hawser";
const CONTROLLER: &str = "hawser-controller";
const NODE: &str = "hawser-node";
/// The switch, and the consent that it asks for.
const NO_FENCE: [&str; 2] = ["HAWSER_TEST_NO_FENCE", CONSENT];
const CONSENT: &str = "HAWSER_THIS_IS_A_TEST";
const NETWORK_POOL: &str = "HAWSER_TEST_NETWORK_POOL";
/// As the chart's pool.allowForkOnlyFence sets it in the file.
const FORK_ONLY: &str = "HAWSER_BACKEND_ALLOW_FORK_ONLY_FENCE";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/hawser/leases/hawser-supervisor";
/// The chart's `metrics.port`.
const PAGES_PORT: u16 = 9810;
const HISTORY: &str = "/api/v1/namespaces/hawser/configmaps/hawser-failover";

/// Whether something watches nodes by itself.
pub(super) fn has_supervisor(lab: &Lab) -> Result<bool> {
    Ok(lab.cluster.find(LEASE)?.is_some())
}

/// The supervisor's history, as it is kept.
pub(in crate::kubernetes) fn history(lab: &Lab) -> Result<Value> {
    Ok(lab.cluster.find(HISTORY)?.map(|object| object["data"].clone()).unwrap_or_default())
}

/// The node of the controller that leads; without a supervisor of any controller.
pub(in crate::kubernetes) fn leader(lab: &Lab) -> Result<String> {
    let lease = lab.cluster.find(LEASE)?.unwrap_or_default();
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
    let pods = controllers(lab)?;
    let leads = |pod: &&Value| !holder.is_empty() && holder.contains(name_of(pod));
    let pod = pods.iter().find(leads).or(pods.first()).ok_or("there is no controller")?;
    Ok(node_of(pod).to_owned())
}

pub(super) fn controller_nodes(lab: &Lab) -> Result<Vec<String>> {
    Ok(controllers(lab)?.iter().map(|pod| node_of(pod).to_owned()).collect())
}

fn controllers(lab: &Lab) -> Result<Vec<Value>> {
    let mut pods = lab.cluster.list(PODS)?;
    pods.retain(|pod| name_of(pod).starts_with(CONTROLLER) && !node_of(pod).is_empty());
    Ok(pods)
}

/// Runs hawser's command line in the node pod of a node that is not one of `dead`.
pub(super) fn hawser(lab: &Lab, dead: &[&str], arguments: &[&str]) -> Result<String> {
    hawser_in(lab, NODE, dead, arguments)
}

/// Runs hawser's command line in a controller's pod on a node that is not one of `dead`.
pub(super) fn hawser_at_controller(lab: &Lab, dead: &[&str], arguments: &[&str]) -> Result<String> {
    hawser_in(lab, CONTROLLER, dead, arguments)
}

fn hawser_in(lab: &Lab, part: &str, dead: &[&str], arguments: &[&str]) -> Result<String> {
    let pods = lab.cluster.list(PODS)?;
    let lives =
        |pod: &&Value| name_of(pod).starts_with(part) && has_condition(pod, "Ready") && !dead.contains(&node_of(pod));
    let pod = pods.iter().find(lives).ok_or_else(|| format!("no pod of {part} lives"))?;
    let exec = ["--namespace", NAMESPACE, "exec", name_of(pod), "--container", "hawser", "--", "/hawser"];
    lab.cluster.kubectl(&[&exec[..], arguments].concat(), None)
}

/// What the controllers have logged lately, in their containers' present lives and the ones before.
pub(super) fn logs(lab: &Lab, lately: Duration) -> Result<String> {
    let mut logs = String::new();
    for pod in controllers(lab)? {
        let since = format!("--since={}s", lately.as_secs() + 1);
        let log = ["--namespace", NAMESPACE, "logs", name_of(&pod), "--container=hawser", &since];
        logs.push_str(&lab.cluster.kubectl(&log, None)?);
        // Where it has not started again there is none before.
        logs.push_str(&lab.cluster.kubectl(&[&log[..], &["--previous"]].concat(), None).unwrap_or_default());
    }
    Ok(logs)
}

/// How often containers of hawser's pods have started again.
pub(super) fn restarts(lab: &Lab) -> Result<u64> {
    let pods = lab.cluster.list(PODS)?;
    let containers = pods.iter().filter_map(|pod| pod["status"]["containerStatuses"].as_array()).flatten();
    Ok(containers.filter_map(|container| container["restartCount"].as_u64()).sum())
}

/// How long ago the controller that leads has heard of each node, in milliseconds. It needs its pages on a port.
pub(super) fn heartbeat_ages(lab: &Lab) -> Result<Vec<(String, f64)>> {
    let pods = controllers(lab)?;
    let mut pages =
        pods.iter().map(|pod| lab.cluster.get(&format!("{PODS}/{}:{PAGES_PORT}/proxy/metrics", name_of(pod))));
    let leads = |page: &Result<Value>| {
        let text = page.as_ref().ok().and_then(Value::as_str);
        text.is_some_and(|text| text.lines().any(|line| line == "hawser_supervisor_is_leader 1"))
    };
    let page = pages.find(leads).ok_or("no controller says that it leads")??;
    Ok(page.as_str().unwrap_or_default().lines().filter_map(age).collect())
}

fn age(line: &str) -> Option<(String, f64)> {
    let (node, age) = line.strip_prefix("hawser_node_heartbeat_age_seconds{node=\"")?.split_once("\"} ")?;
    Some((node.to_owned(), age.parse::<f64>().ok()? * 1e3))
}

/// Switches the supervisor off, or on again.
pub(super) fn set_supervisor(lab: &Lab, is_on: bool) -> Result<()> {
    if has_supervisor(lab)? {
        set_environment(lab, &format!("deployment/{CONTROLLER}"), &[&format!("HAWSER_FAILOVER_ENABLED={is_on}")])?;
    }
    Ok(())
}

/// Makes fences that only say so, or real ones again. They are carried out where the pool is: on the nodes.
pub(super) fn set_fences(lab: &Lab, are_real: bool) -> Result<()> {
    let settings = NO_FENCE.map(|name| if are_real { format!("{name}-") } else { format!("{name}=yes") });
    set_environment(lab, &format!("daemonset/{NODE}"), &settings.each_ref().map(String::as_str))
}

/// What the pool counts as on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolOn {
    /// The local file system that it is on.
    Local,
    /// A network file system, on which nothing may be fenced.
    Network,
    /// A network file system, on which a fork may be all of a fence.
    NetworkForkOnly,
}

/// On all nodes: each then sees its own loops alone.
pub(super) fn set_pool(lab: &Lab, on: PoolOn) -> Result<()> {
    let (network, allowed) = (on != PoolOn::Local, on == PoolOn::NetworkForkOnly);
    let switch =
        |name: &str, is_on: bool, value: &str| if is_on { format!("{name}={value}") } else { format!("{name}-") };
    let settings =
        [switch(NETWORK_POOL, network, "yes"), switch(CONSENT, network, "yes"), switch(FORK_ONLY, allowed, "true")];
    set_environment(lab, &format!("daemonset/{NODE}"), &settings.each_ref().map(String::as_str))
}

/// Sets variables of hawser's container, or with `NAME-` removes them, and waits until all pods have them.
fn set_environment(lab: &Lab, of: &str, settings: &[&str]) -> Result<()> {
    let set = ["--namespace", NAMESPACE, "set", "env", of, "--containers=hawser"];
    lab.cluster.kubectl(&[&set[..], settings].concat(), None)?;
    let rolled = ["--namespace", NAMESPACE, "rollout", "status", of, "--timeout=180s"];
    lab.cluster.kubectl(&rolled, None).map(drop)
}

/// Until all nodes take part, and all of hawser runs.
pub(in crate::kubernetes) fn wait_ready(lab: &Lab) -> Result<()> {
    lab.cluster.wait("hawser on all nodes", LIMIT, || {
        let running = lab.nodes.iter().filter(|node| node.is_running());
        let nodes: Vec<&str> = running.map(|node| node.name.as_str()).collect();
        for node in &nodes {
            let object = lab.cluster.get(&format!("/api/v1/nodes/{node}"))?;
            if !has_condition(&object, "Ready") || object["spec"]["taints"].is_array() {
                return Ok(Err(format!("{node}: {}", object["spec"]["taints"])));
            }
        }
        Ok(unready(&lab.cluster, &nodes)?.map_or(Ok(()), Err))
    })
}

pub(super) fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}
