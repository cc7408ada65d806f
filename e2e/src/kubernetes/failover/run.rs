//! One run: workloads on a node, a fault, the failover, the node's return, and what must hold all along.

use super::clock::now_ns;
use super::fault::{Acts, Fault};
use super::history::History;
use super::installed;
use super::mover::{Mover, has_taint};
use super::oracle::{self, ORPHAN_LIMIT_MS, Promise, Verdict};
use super::pool;
use super::room::{Room, pool_of};
use super::watch::{Moments, Seen, Subject, watch};
use super::workload::{Access, CLASS, Kind, Workload};
use crate::failure::{Context, Result, ensure};
use crate::kubernetes::Lab;
use crate::kubernetes::cluster::has_condition;
use crate::kubernetes::ground::Ground;
use crate::kubernetes::node::Node;
use crate::kubernetes::space::LIMIT;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(super) struct Plan<'a> {
    pub(super) lab: &'a Lab,
    pub(super) ground: &'a Ground<'a>,
    pub(super) fault: Fault,
    pub(super) mover: Mover,
    /// Of all runs in this cluster; names its namespace, and chooses nodes.
    pub(super) number: usize,
    /// Chooses writers and kinds of volumes.
    pub(super) turn: usize,
    pub(super) writers: u32,
    /// How long the workload may take until it writes elsewhere.
    pub(super) limit: Duration,
    pub(super) status_frequency: &'a str,
    /// The pool counts as on a network file system, where a fence is a fork alone.
    pub(super) is_fork_only: bool,
    /// A look at each workload once it has moved.
    pub(super) inspect: Option<&'a Inspect<'a>>,
}

pub(super) type Inspect<'a> = dyn Fn(&Room, &Subject) -> Result<()> + Sync + 'a;

/// What became of one workload.
pub(super) struct Outcome {
    pub(super) kind: Kind,
    pub(super) access: Access,
    pub(super) from: String,
    pub(super) moments: Moments,
    pub(super) verdict: Verdict,
}

pub(super) struct Outcomes {
    pub(super) fault_ns: u64,
    pub(super) acts: Acts,
    /// The supervisor that led ran on a node that failed.
    pub(super) leader_failed: bool,
    pub(super) each: Vec<Outcome>,
    pub(super) history: History,
    /// From the end of the fault to the node being as before.
    pub(super) returned_ms: u64,
}

/// Long after everything that was queued when a node was frozen or cut off has been written or refused.
const AFTER_MENDING: Duration = Duration::from_secs(2);
/// How long the workload writes before the fault, and elsewhere before the node comes back.
pub(super) const WRITING: Duration = Duration::from_millis(700);
/// Between two writes of one writer, for the writers of a pod together not to take all of the machine.
pub(super) fn pause_ms(writers: u32) -> u64 {
    5 + u64::from(writers) / 4
}

impl Plan<'_> {
    pub(super) fn run(&self) -> Result<Outcomes> {
        installed::wait_ready(self.lab)?;
        let space = Room::open(self.lab, self.ground, &format!("failover-{}", self.number))?;
        let ran = self.run_in(&space);
        match &ran {
            // What a run that failed leaves would stand in the way of the next one.
            Err(_) => space.abandon(),
            Ok(_) => space.close().context(|| "removing everything".to_owned())?,
        }
        ran
    }

    fn run_in(&self, space: &Room) -> Result<Outcomes> {
        let victims = victims(self.lab, self.mover, self.number, self.fault.victims())?;
        let subjects = self.subjects(space, &victims)?;
        std::thread::sleep(WRITING);
        let leader = installed::leader(self.lab)?;
        let leader_failed = victims.iter().any(|node| node.name == leader);
        let fault_ns = self.fault.strike(&victims)?;
        let ended = self.follow(space, &victims, &subjects, fault_ns);
        if ended.is_err() {
            // The next run needs these nodes as well.
            let _ = self.fault.mend(&victims);
            victims.iter().for_each(|node| drop(self.mover.readmit(self.lab, &node.name)));
        }
        ended.map(|outcomes| Outcomes { leader_failed, ..outcomes })
    }

    /// From the fault to the node's return.
    fn follow(&self, space: &Room, victims: &[&Node], subjects: &[Subject], fault_ns: u64) -> Result<Outcomes> {
        let names: Vec<&str> = victims.iter().map(|node| node.name.as_str()).collect();
        let by_hand = AtomicU64::new(0);
        let (seen, moved, acts) = std::thread::scope(|scope| {
            let acts = scope.spawn(|| self.fault.go_on(self.lab, victims));
            let moved = scope.spawn(|| {
                let fenced = self.mover.act(self.lab, &space.name, &names)?;
                by_hand.store(fenced.unwrap_or_default(), Ordering::SeqCst);
                Ok(())
            });
            let fenced = || Some(by_hand.load(Ordering::SeqCst)).filter(|at_ns| *at_ns > 0);
            let seen = watch(self.lab, &space.name, subjects, self.limit, &fenced);
            (seen, join(moved), join(acts))
        });
        let (seen, acts) = (seen?, acts?);
        // What is refused now is let in later.
        let refusals = History::since(self.lab, fault_ns)?.refusals;
        moved.context(|| "moving the workload by hand".to_owned())?;
        std::thread::sleep(WRITING);
        let mended_ns = now_ns()?;
        self.fault.mend(victims)?;
        // For an orphan so long that silence is seen after the limit.
        let limit = Duration::from_millis(if self.is_fork_only { ORPHAN_LIMIT_MS as u64 } else { 0 });
        std::thread::sleep(AFTER_MENDING + limit);
        let mut each = Vec::new();
        for (subject, seen) in subjects.iter().zip(&seen) {
            each.push(self.outcome(space, subject, seen, mended_ns)?);
        }
        if let Some(inspect) = self.inspect {
            subjects.iter().try_for_each(|subject| inspect(space, subject))?;
        }
        let is_moved = each.iter().all(|outcome| outcome.moments.first.is_some());
        for node in victims {
            // Where nothing was fenced the old holders still hold their volumes, and their workloads end with the run.
            let returned =
                if is_moved { self.ensure_returned(node, subjects) } else { self.mover.readmit(self.lab, &node.name) };
            each.iter_mut()
                .filter(|one| one.from == node.name)
                .for_each(|one| one.verdict.note("return", returned.clone()));
        }
        let returned_ms = (now_ns()? - mended_ns) / 1_000_000;
        let history = History { refusals, ..History::since(self.lab, fault_ns)? };
        Ok(Outcomes { fault_ns, acts, leader_failed: false, each, history, returned_ms })
    }

    /// One workload of each kind, on one node, or with two nodes on one each. Which of them has a raw volume takes turns.
    fn subjects(&self, space: &Room, victims: &[&Node]) -> Result<Vec<Subject>> {
        let accesses =
            if self.turn.is_multiple_of(2) { [Access::Ext4, Access::Block] } else { [Access::Block, Access::Ext4] };
        let mut started = Vec::new();
        for (index, (kind, access)) in Kind::ALL.into_iter().zip(accesses).enumerate() {
            let node = victims.get(index % victims.len()).ok_or("no node is to fail")?;
            let workload =
                Workload::start(space, CLASS, kind, access, self.writers, pause_ms(self.writers), &node.name)?;
            started.push((workload, node));
        }
        let mut subjects = Vec::new();
        for (workload, node) in started {
            subjects.push(Subject::placed(space, workload, &node.name)?);
        }
        Ok(subjects)
    }

    fn outcome(&self, space: &Room, subject: &Subject, seen: &Seen, mended_ns: u64) -> Result<Outcome> {
        let promise = match (self.is_fork_only, self.fault, seen.moments.fenced) {
            (false, ..) => Promise::Stopped,
            // It was fenced while it could do nothing.
            (true, Fault::NodeFrozen, _) | (true, _, None) => Promise::Orphaned { since_ns: mended_ns },
            (true, _, Some(fenced_ns)) => Promise::Orphaned { since_ns: fenced_ns },
        };
        let verdict = oracle::judge(space, subject, seen, promise)?;
        Ok(Outcome {
            kind: subject.workload.kind,
            access: subject.workload.access,
            from: subject.old.node.clone(),
            moments: seen.moments.clone(),
            verdict,
        })
    }

    /// The node takes part again: nothing of its earlier life is there, no taint, no fence.
    fn ensure_returned(&self, node: &Node, subjects: &[Subject]) -> Result<()> {
        self.mover.readmit(self.lab, &node.name)?;
        let cluster = &self.lab.cluster;
        cluster.wait(&format!("{} as before", node.name), LIMIT, || {
            let Some(object) = cluster.find(&format!("/api/v1/nodes/{}", node.name))? else {
                return Ok(Err("it has not registered again".to_owned()));
            };
            if has_taint(&object) || !has_condition(&object, "Ready") {
                return Ok(Err(format!("{} {}", object["spec"]["taints"], object["status"]["conditions"])));
            }
            if pool::is_fenced(&pool_of(self.lab), &node.name)? {
                return Ok(Err("it is fenced".to_owned()));
            }
            for subject in subjects.iter().filter(|subject| subject.old.node == node.name) {
                let mounts = node.mounts(&subject.volume)?;
                if !mounts.is_empty() {
                    return Ok(Err(format!("mounts of its earlier life: {}", mounts.join("; "))));
                }
            }
            let (loops, volumes) = (self.lab.place.volume_loops()?, subjects.len());
            Ok(if loops.len() == volumes { Ok(()) } else { Err(format!("{loops:?} are for {volumes} volumes")) })
        })
    }

    /// As lines of the raw log, one for each workload.
    pub(super) fn lines(&self, outcomes: &Outcomes) -> Vec<Value> {
        let since = |at_ns: Option<u64>| at_ns.map(|at_ns| at_ns.saturating_sub(outcomes.fault_ns) as f64 / 1e6);
        let acts: Vec<Value> =
            outcomes.acts.0.iter().map(|(what, at_ns)| json!({"act": what, "at_ms": since(Some(*at_ns))})).collect();
        let stages = outcomes.history.stages.iter();
        let stages: Vec<Value> = stages
            .map(|stage| json!({"node": stage.node, "stage": stage.name, "at_ms": since(Some(stage.at_ns))}))
            .collect();
        let line = |outcome: &Outcome| {
            let moments = &outcome.moments;
            // Negative where the old pod still wrote when the new one did, which is a mistake that the checks tell.
            let outage = moments.first.zip(outcome.verdict.last_ns);
            let outage = outage.map(|(first, last)| (first as f64 - last as f64) / 1e6);
            json!({
                "run": self.number,
                "fault": self.fault.name(),
                "mover": self.mover.name(),
                "workload": outcome.kind.name(),
                "volume": outcome.access.name(),
                "writers": self.writers,
                "status_frequency": self.status_frequency,
                "attach_by_nodes": !self.lab.place.attaches_by_controller(),
                "fork_only": self.is_fork_only,
                "nodes": self.lab.nodes.iter().filter(|node| node.is_running()).count(),
                "from": outcome.from,
                "to": moments.node,
                "leader_failed": outcomes.leader_failed,
                "limit_ms": u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX),
                "total_ms": since(moments.first),
                "outage_ms": outage,
                "at_ms": {
                    "detected": since(outcomes.history.detected(&outcome.from)),
                    "fenced": since(moments.fenced),
                    "tainted": since(moments.tainted),
                    "evicted": since(moments.evicted),
                    "created": since(moments.created),
                    "scheduled": since(moments.scheduled),
                    "granted": since(moments.granted),
                    "attached": since(moments.attached),
                    "started": since(moments.started),
                },
                "acts": acts,
                "returned_ms": outcomes.returned_ms,
                "verdict": outcome.verdict.to_json(),
                "stages": stages,
                "refusals": outcomes.history.refusals,
            })
        };
        outcomes.each.iter().map(line).collect()
    }
}

impl Outcomes {
    pub(super) fn ensure_held(&self) -> Result<()> {
        self.each.iter().try_for_each(|outcome| outcome.verdict.to_result().context(|| outcome.kind.name().to_owned()))
    }
}

/// Nodes in turn. By hand not the one whose controller has to move the volumes; there is only one then.
pub(super) fn victims(lab: &Lab, mover: Mover, number: usize, wanted: usize) -> Result<Vec<&Node>> {
    let spared = if mover.is_by_hand() { installed::controller_nodes(lab)? } else { Vec::new() };
    let running = lab.nodes.iter().filter(|node| node.is_running() && !spared.contains(&node.name));
    let running: Vec<&Node> = running.collect();
    ensure(running.len() > wanted, || format!("{} nodes are too few for {wanted} to fail", running.len()))?;
    Ok((0..wanted).filter_map(|at| running.get((number + at) % running.len()).copied()).collect())
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err("it panicked".into()))
}
