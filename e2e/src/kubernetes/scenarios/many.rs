//! A hundred pods on one node.

use crate::failure::{Result, ensure};
use crate::kubernetes::cluster::has_condition;
use crate::kubernetes::space::{Space, Volume, claim, on_node, pod};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const ATTACHMENTS: &str = "/apis/storage.k8s.io/v1/volumeattachments";
const PODS: usize = 100;
/// With volumes against without.
const GOAL: f64 = 1.1;

/// Each with a volume of its own, timed against as many with an emptyDir. The ratio is told, not judged: what else the
/// machine does meanwhile is not known.
pub(super) fn hundred_pods(space: &Space) -> Result<()> {
    let empty = timed(space, "without volumes", |name| {
        let mut pod = pod(name, &[Volume::at("data", "/data")]);
        pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        Ok(pod)
    })?;
    let own = timed(space, "with a volume each", |name| {
        space.create_claim(&claim(name, "hawser", "ReadWriteOnce", "64Mi"))?;
        Ok(pod(name, &[Volume::at(name, "/data")]))
    })?;
    let ratio = own.as_secs_f64() / empty.as_secs_f64();
    println!("time: {}: {PODS} pods with volumes take {ratio:.2} times as long as without (goal {GOAL})", space.name);
    Ok(())
}

/// From the first object to all running.
fn timed(space: &Space, what: &str, make: impl Fn(&str) -> Result<Value>) -> Result<Duration> {
    let began = Instant::now();
    for number in 0..PODS {
        space.create_pod(&on_node(make(&format!("app-{number}"))?, space.node(0)))?;
    }
    let in_space = |kind: &str| format!("/api/v1/namespaces/{}/{kind}", space.name);
    if !space.cluster.list(&in_space("persistentvolumeclaims"))?.is_empty() {
        wait_all(space, "bound", &in_space("persistentvolumeclaims"), |claim| claim["status"]["phase"] == "Bound")?;
        space.time(&format!("{PODS} claims bound"), began.elapsed());
        wait_all(space, "attached", ATTACHMENTS, |one| one["status"]["attached"] == true)?;
        space.time(&format!("{PODS} volumes attached"), began.elapsed());
    }
    wait_all(space, "running", &in_space("pods"), |pod| has_condition(pod, "Ready"))?;
    let took = began.elapsed();
    space.time(&format!("{PODS} pods {what} running"), took);
    let last = format!("app-{}", PODS - 1);
    let mounted = space.sh(&last, "grep -c ' /data ' /proc/mounts")?;
    ensure(mounted == "1", || format!("{last} has {mounted} mounts at /data"))?;
    let began = Instant::now();
    space.empty()?;
    space.time(&format!("{PODS} pods {what} removed"), began.elapsed());
    Ok(took)
}

fn wait_all(space: &Space, what: &str, list: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
    space.look(&format!("all {what}"), || {
        // Of a hundred the list itself is work for the API server.
        std::thread::sleep(Duration::from_millis(200));
        let done = space.cluster.list(list)?.iter().filter(|object| holds(object)).count();
        Ok(if done >= PODS { Ok(()) } else { Err(format!("{done} of {PODS}")) })
    })
}
