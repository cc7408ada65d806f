//! A node that is busy is no lost node: all the load on one that it can take, while the supervisor watches. Nobody may be
//! suspected, refused or fenced.

use super::clock::now_ns;
use super::history::History;
use super::room::{Room, pool_of};
use super::run::pause_ms;
use super::workload::{Access, CLASS, Kind, Workload};
use super::{Failovers, WRITERS, installed, pool};
use crate::client::is_interrupted;
use crate::failure::{Result, ensure};
use crate::kubernetes::images::BUSYBOX_IMAGE;
use crate::kubernetes::process::wait_until;
use crate::kubernetes::space::{LIMIT, on_node, pod};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::num::NonZero;
use std::time::{Duration, Instant};

/// Together 2 GiB, whatever the machine has: the kernel ends processes when there is no memory, and which is chance.
const HOGS: usize = 4;
const HOG: &str = "512M";
/// Well below the time between two heartbeats, so that each is seen.
const BETWEEN_SAMPLES: Duration = Duration::from_millis(50);
/// An age that is so much less than it would be without a heartbeat is that of a new one. It crossed the API server.
const JITTER_MS: f64 = 60.0;

/// Loads the first node for so long, and says what the supervisor made of it.
pub(super) fn load(failovers: &Failovers, length: Duration) -> Result<()> {
    let lab = failovers.lab;
    ensure(installed::has_supervisor(lab)?, || {
        "there is no supervisor in this cluster that could be wrong".to_owned()
    })?;
    installed::wait_ready(lab)?;
    let node = lab.nodes.first().ok_or("there is no node")?.name.clone();
    let space = Room::open(lab, failovers.ground, "load")?;
    let mut writing = Vec::new();
    for (kind, access) in Kind::ALL.into_iter().zip([Access::Ext4, Access::Block]) {
        let writers = WRITERS[2];
        writing.push(Workload::start(&space, CLASS, kind, access, writers, pause_ms(writers), &node)?);
    }
    for workload in &writing {
        let start = workload.wait_writing(&space)?;
        ensure(start.node == node, || format!("{} was placed on {}, not on {node}", start.pod, start.node))?;
    }
    let (before, began, restarts) = (now_ns()?, Instant::now(), installed::restarts(lab)?);
    let acked_before: usize = writing.iter().map(Workload::count).sum();
    for name in ["busy", "memory"] {
        space.create_pod(&hog(name, &node))?;
    }
    let mut ages = Ages::default();
    let mut missed = 0;
    while began.elapsed() < length && !is_interrupted() {
        match installed::heartbeat_ages(lab) {
            Ok(sample) => ages.take(&sample, now_ns()? as f64 / 1e6),
            // The one who looks is on the same machine.
            Err(_) => missed += 1,
        }
        std::thread::sleep(BETWEEN_SAMPLES);
    }
    let seconds = began.elapsed().as_secs_f64();
    let acked = writing.iter().map(Workload::count).sum::<usize>() - acked_before;
    let busy = std::fs::read_to_string("/proc/loadavg")?.trim().to_owned();
    for name in ["busy", "memory"] {
        let phase = patiently(|| lab.cluster.get(&space.path("pods", name)))?["status"]["phase"].clone();
        ensure(phase == "Running", || format!("the pod {name} is {phase}: there was no load"))?;
        patiently(|| lab.cluster.delete(&space.path("pods", name)))?;
    }
    let history = patiently(|| History::since(lab, before))?;
    let said = Said::of(&patiently(|| installed::logs(lab, began.elapsed()))?);
    let mut fenced = 0;
    for node in lab.nodes.iter().filter(|node| node.is_running()) {
        fenced += usize::from(pool::is_fenced(&pool_of(lab), &node.name)?);
    }
    let fences = history.stages.iter().filter(|stage| stage.name == "fencing").count().max(fenced);
    let line = json!({"load": {
        "node": node,
        "seconds": seconds.round(),
        "acked": acked,
        "loadavg": busy,
        "suspicions": said.suspicions,
        "refusals": said.refusals,
        "fences": fences,
        "restarts": patiently(|| installed::restarts(lab))?.saturating_sub(restarts),
        "samples": ages.samples,
        "samples_missed": missed,
        "each": ages.to_json(),
    }});
    println!("failover: {line}");
    // Who does not lead suspects nobody, so that nothing was suspected would say nothing.
    ensure(ages.samples > missed, || format!("most of the time nobody was seen to lead: {line}"))?;
    ensure(said.suspicions == 0 && fences == 0, || line.to_string())?;
    space.close()
}

/// The API server is as busy as everything else.
fn patiently<T>(mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    wait_until("an answer", LIMIT, || Ok(ask().map_err(|failure| failure.to_string())))
}

/// A pod that takes all of the processors, or memory, and touches it.
fn hog(name: &str, node: &str) -> Value {
    let processors = std::thread::available_parallelism().map_or(2, NonZero::get);
    let (count, work) = match name {
        "memory" => (HOGS, format!("dd if=/dev/zero of=/dev/null bs={HOG} count=8 2>/dev/null")),
        _ => (2 * processors + 2, ":".to_owned()),
    };
    let line = format!("for i in $(seq {count}); do while :; do {work}; done & done; wait");
    let mut pod = on_node(pod(name, &[]), node);
    pod["spec"]["containers"][0]["image"] = json!(BUSYBOX_IMAGE);
    pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", line]);
    pod
}

/// What the supervisors' logs say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    suspicions: usize,
    refusals: usize,
}

impl Said {
    fn of(log: &str) -> Self {
        let count = |what: &str| log.lines().filter(|line| line.contains(what)).count();
        Self { suspicions: count("the node is suspected"), refusals: count("not failed over") }
    }
}

/// Ages of the last heartbeats, and the gaps between heartbeats that follow from them, in milliseconds.
#[derive(Default)]
struct Ages {
    samples: usize,
    of_node: BTreeMap<String, OfNode>,
}

#[derive(Default)]
struct OfNode {
    largest_ms: f64,
    /// When the last heartbeat was, on the clock of the one who looks.
    heard_ms: Option<f64>,
    gaps_ms: Vec<f64>,
}

impl Ages {
    /// Nodes and their ages at `now_ms`.
    fn take(&mut self, sample: &[(String, f64)], now_ms: f64) {
        self.samples += 1;
        for (node, age_ms) in sample {
            let of = self.of_node.entry(node.clone()).or_default();
            of.largest_ms = of.largest_ms.max(*age_ms);
            let heard_ms = now_ms - age_ms;
            match of.heard_ms {
                Some(before_ms) if heard_ms - before_ms < JITTER_MS => {}
                Some(before_ms) => {
                    of.gaps_ms.push(heard_ms - before_ms);
                    of.heard_ms = Some(heard_ms);
                }
                None => of.heard_ms = Some(heard_ms),
            }
        }
    }

    fn to_json(&self) -> Value {
        let each = self.of_node.iter().map(|(node, of)| {
            let mut gaps = of.gaps_ms.clone();
            gaps.sort_by(f64::total_cmp);
            let at = |share: f64| gaps.get(((gaps.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied();
            json!({
                "node": node,
                "largest_age_ms": of.largest_ms,
                "gaps": gaps.len(),
                "gap_p50_ms": at(0.5),
                "gap_p99_ms": at(0.99),
                "gap_max_ms": at(1.0),
            })
        });
        each.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_follow_from_ages() {
        let mut ages = Ages::default();
        // Heartbeats at 1000, 1250 and, late, 2200.
        for (now_ms, age_ms) in [(1100.0, 100.0), (1200.0, 200.0), (1300.0, 50.0), (2100.0, 850.0), (2210.0, 10.0)] {
            ages.take(&[("node-1".to_owned(), age_ms)], now_ms);
        }
        let each = &ages.to_json()[0];
        assert_eq!((each["largest_age_ms"].as_f64(), each["gaps"].as_u64()), (Some(850.0), Some(2)));
        assert_eq!((each["gap_p50_ms"].as_f64(), each["gap_max_ms"].as_f64()), (Some(250.0), Some(950.0)));
    }

    #[test]
    fn a_suspicion_is_noticed() {
        let log = "WARN the node is suspected node=node-1 cause=Lost\nINFO the node is not suspected any more node=node-1\nWARN not failed over node=node-1";
        assert_eq!(Said::of(log), Said { suspicions: 1, refusals: 1 });
        assert_eq!(Said::of("INFO the agent is connected"), Said::default());
    }
}
