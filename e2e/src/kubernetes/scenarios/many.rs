//! A hundred pods on one node.

use crate::failure::{Result, ensure};
use crate::kubernetes::cluster::has_condition;
use crate::kubernetes::space::{Space, Volume, claim, on_node, pod};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

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
    let all = format!("/api/v1/namespaces/{}/pods", space.name);
    space.look("all running", || {
        // Of a hundred pods the list itself is work for the API server.
        std::thread::sleep(Duration::from_millis(200));
        let pods = space.cluster.list(&all)?;
        let running = pods.iter().filter(|pod| has_condition(pod, "Ready")).count();
        Ok(if running == PODS { Ok(()) } else { Err(format!("{running} of {PODS}")) })
    })?;
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
