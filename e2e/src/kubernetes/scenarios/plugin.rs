//! The driver's pod on the node goes while a pod writes: it is killed, upgraded, or away for a while.

use super::writer::Writer;
use crate::failure::{Result, ensure};
use crate::kubernetes::ground::DRIVER;
use crate::kubernetes::space::{Space, Volume, claim, name_of, on_node, pod};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const DAEMON_SET: &str = "/apis/apps/v1/namespaces/hawser/daemonsets/hawser-node";
const PODS: &str = "/api/v1/namespaces/hawser/pods";
/// No node has it.
const NOWHERE: &str = "hawser.dev/e2e-nowhere";
const AWAY: Duration = Duration::from_secs(5);

/// All nodes get another pod of the driver, one after another, as by `helm upgrade`.
pub(super) fn upgraded(space: &Space) -> Result<()> {
    let writer = Writer::start(space, space.node(2))?;
    let before = uids(space)?;
    let began = Instant::now();
    let mark = format!("{:?}", std::time::SystemTime::now());
    let change = json!({"spec": {"template": {"metadata": {"annotations": {"hawser.dev/e2e": mark}}}}});
    space.cluster.patch(DAEMON_SET, &change)?;
    wait_rolled_out(space)?;
    space.time("rolled out on all nodes", began.elapsed());
    let after = uids(space)?;
    ensure(before.iter().all(|uid| !after.contains(uid)), || format!("of {before:?} some are among {after:?}"))?;
    writer.ensure_goes_on()?;
    writer.verify(space.node(1))
}

/// Away from all nodes for some seconds. What is mounted goes on; what is to be mounted waits for its return.
pub(super) fn absent(space: &Space) -> Result<()> {
    let node = space.node(2);
    let writer = Writer::start(space, node)?;
    let away = json!({"spec": {"template": {"spec": {"nodeSelector": {NOWHERE: "true"}}}}});
    space.cluster.patch(DAEMON_SET, &away)?;
    let seen = while_away(space, node, &writer);
    // Back whatever was seen: other scenarios need it.
    let back = json!({"spec": {"template": {"spec": {"nodeSelector": {NOWHERE: Value::Null}}}}});
    space.cluster.patch(DAEMON_SET, &back)?;
    let began = Instant::now();
    wait_rolled_out(space)?;
    seen?;
    space.wait_running("late")?;
    space.time("from the driver's return to the waiting pod running", began.elapsed());
    space.look("the driver registered again", || {
        let drivers =
            space.cluster.get(&format!("/apis/storage.k8s.io/v1/csinodes/{node}"))?["spec"]["drivers"].to_string();
        Ok(if drivers.contains(DRIVER) { Ok(()) } else { Err(drivers) })
    })?;
    writer.verify(space.node(1))
}

fn while_away(space: &Space, node: &str, writer: &Writer) -> Result<()> {
    space.look("the driver away", || {
        let left = uids(space)?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
    })?;
    space.create_claim(&claim("late", "hawser", "ReadWriteOnce", "1Gi"))?;
    space.create_pod(&on_node(pod("late", &[Volume::at("late", "/data")]), node))?;
    std::thread::sleep(AWAY);
    writer.ensure_goes_on()?;
    let late = space.cluster.get(&space.path("pods", "late"))?["status"]["phase"].clone();
    ensure(late == "Pending", || format!("without the driver a pod that needs it is {late}"))
}

/// Of the pods of the set, whatever labels the chart gives them.
fn uids(space: &Space) -> Result<Vec<String>> {
    let pods = space.cluster.list(PODS)?;
    let own = pods.iter().filter(|pod| {
        let owners = pod["metadata"]["ownerReferences"].as_array();
        owners.is_some_and(|all| {
            all.iter()
                .any(|owner| owner["kind"] == "DaemonSet" && name_of(&json!({"metadata": owner})) == "hawser-node")
        })
    });
    Ok(own.map(|pod| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()).collect())
}

fn wait_rolled_out(space: &Space) -> Result<()> {
    space.look("the driver on all nodes", || {
        let set = space.cluster.get(DAEMON_SET)?;
        let status = &set["status"];
        let wanted = &status["desiredNumberScheduled"];
        let is_done = status["observedGeneration"] == set["metadata"]["generation"]
            && *wanted != 0
            && status["updatedNumberScheduled"] == *wanted
            && status["numberAvailable"] == *wanted;
        Ok(if is_done { Ok(()) } else { Err(status.to_string()) })
    })
}
