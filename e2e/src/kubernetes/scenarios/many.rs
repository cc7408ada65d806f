//! A hundred pods on one node.

use crate::failure::{Result, ensure};
use crate::kubernetes::cluster::has_condition;
use crate::kubernetes::space::{Space, Volume, claim, on_node, pod};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const ATTACHMENTS: &str = "/apis/storage.k8s.io/v1/volumeattachments";
const DRIVER: &str = "/apis/storage.k8s.io/v1/csidrivers/csi.hawser.dev";
/// In the path where kubelet has a volume staged.
const STAGED: &str = "/globalmount";
const PODS: usize = 100;
/// With volumes against without.
const GOAL: f64 = 1.1;
/// Lists of a hundred are work for the API server.
const PAUSE: Duration = Duration::from_millis(500);

/// Something that comes to each of the pods, one after the other.
struct Phase<'a> {
    name: &'static str,
    count: Box<dyn Fn() -> Result<usize> + 'a>,
    half: Option<Duration>,
    all: Option<Duration>,
}

/// Each with a volume of its own, timed against as many with an emptyDir: with claims that are made with the pods, and with
/// claims that are bound before. Ratios are told, not judged: what else the machine does meanwhile is not known.
pub(super) fn hundred_pods(space: &Space) -> Result<()> {
    let empty = timed(space, "without volumes", |name| {
        let mut pod = pod(name, &[Volume::at("data", "/data")]);
        pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        Ok(pod)
    })?;
    let own = timed(space, "with a volume each", |name| {
        space.create_claim(&own_claim(name))?;
        with_own(name)
    })?;
    let names: Vec<String> = (0..PODS).map(name).collect();
    let began = Instant::now();
    names.iter().try_for_each(|name| space.create_claim(&own_claim(name)))?;
    names.iter().try_for_each(|name| space.wait_bound(name).map(drop))?;
    space.time(&format!("{PODS} claims bound without pods"), began.elapsed());
    let bound = timed(space, "with a volume each that was bound before", with_own)?;
    for (what, took) in [("volumes", own), ("volumes that were bound before", bound)] {
        let ratio = took.as_secs_f64() / empty.as_secs_f64();
        println!(
            "time: {}: {PODS} pods with {what} take {ratio:.2} times as long as without (goal {GOAL})",
            space.name
        );
    }
    Ok(())
}

fn own_claim(name: &str) -> Value {
    claim(name, "hawser", "ReadWriteOnce", "64Mi")
}

fn with_own(name: &str) -> Result<Value> {
    Ok(pod(name, &[Volume::at(name, "/data")]))
}

/// Of a pod and its claim.
fn name(number: usize) -> String {
    format!("app-{number}")
}

/// From the first object to all running.
fn timed(space: &Space, what: &str, make: impl Fn(&str) -> Result<Value>) -> Result<Duration> {
    let began = Instant::now();
    for number in 0..PODS {
        space.create_pod(&on_node(make(&name(number))?, space.node(0)))?;
    }
    let took = wait_phases(space, what, began, phases(space)?)?;
    let last = name(PODS - 1);
    let mounted = space.sh(&last, "grep -c ' /data ' /proc/mounts")?;
    ensure(mounted == "1", || format!("{last} has {mounted} mounts at /data"))?;
    let began = Instant::now();
    space.empty()?;
    space.time(&format!("{PODS} pods {what} removed"), began.elapsed());
    Ok(took)
}

/// What there is to see on the way to running pods.
fn phases<'a>(space: &'a Space) -> Result<Vec<Phase<'a>>> {
    let list = |kind: &str| format!("/api/v1/namespaces/{}/{kind}", space.name);
    let (pods, claims) = (list("pods"), list("persistentvolumeclaims"));
    let mut phases = Vec::new();
    if !space.cluster.list(&claims)?.is_empty() {
        phases.push(Phase::new("claims bound", move || {
            count(space, &claims, |claim| claim["status"]["phase"] == "Bound")
        }));
        if space.cluster.get(DRIVER)?["spec"]["attachRequired"] != false {
            phases.push(Phase::new("volumes attached", || {
                count(space, ATTACHMENTS, |one| one["status"]["attached"] == true)
            }));
        }
        if let Some(lab) = space.ground.lab {
            let node = lab.node(space.node(0))?;
            phases.push(Phase::new("volumes staged", || node.mounts(STAGED).map(|mounts| mounts.len())));
        }
    }
    phases.push(Phase::new("pods running", move || count(space, &pods, |pod| has_condition(pod, "Ready"))));
    Ok(phases)
}

fn count(space: &Space, list: &str, holds: impl Fn(&Value) -> bool) -> Result<usize> {
    Ok(space.cluster.list(list)?.iter().filter(|object| holds(object)).count())
}

impl<'a> Phase<'a> {
    fn new(name: &'static str, count: impl Fn() -> Result<usize> + 'a) -> Self {
        Self { name, count: Box::new(count), half: None, all: None }
    }
}

/// How long it took until the last was through.
fn wait_phases(space: &Space, what: &str, began: Instant, mut phases: Vec<Phase>) -> Result<Duration> {
    space.look(&format!("{PODS} pods {what}"), || {
        std::thread::sleep(PAUSE);
        let mut waits = None;
        for phase in phases.iter_mut().filter(|phase| phase.all.is_none()) {
            let (done, now) = ((phase.count)()?, began.elapsed());
            if done * 2 >= PODS {
                phase.half.get_or_insert(now);
            }
            if done >= PODS {
                phase.all = Some(now);
            } else {
                waits.get_or_insert_with(|| format!("{done} of {PODS} {}", phase.name));
            }
            // Nothing of the next is there yet.
            if done == 0 {
                break;
            }
        }
        Ok(waits.map_or(Ok(()), Err))
    })?;
    let seconds = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64();
    for Phase { name, half, all, .. } in &phases {
        println!("time: {}: {what}: {name}: half {:.1} s, all {:.1} s", space.name, seconds(*half), seconds(*all));
    }
    Ok(phases.last().and_then(|phase| phase.all).unwrap_or_default())
}
