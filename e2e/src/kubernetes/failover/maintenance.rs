//! `hawser node cordon`, `uncordon` and `drain`: a node in maintenance may be switched off, and what is asked to leave it
//! leaves with all that it has written.

use super::fault::Fault;
use super::pool;
use super::room::Room;
use super::run::victims;
use super::watch::Subject;
use super::workload::{CLASS, Kind};
use super::{Failovers, installed, oracle, said, stays};
use crate::failure::{Context, Result, ensure};
use crate::kubernetes::node::Node;
use std::time::{Duration, Instant};

/// How long a node in maintenance is off. Another one is fenced within 3 s.
const OFF: Duration = Duration::from_secs(15);
const ANNOTATION: &str = "hawser.dev/maintenance";

pub(super) fn node_drain(failovers: &Failovers) -> Result<()> {
    let lab = failovers.lab;
    installed::wait_ready(lab)?;
    let room = Room::open(lab, failovers.ground, "node-drain")?;
    let node = *victims(lab, failovers.mover, 0, 1)?.first().ok_or("there is no node")?;
    let ran = in_room(&room, node);
    if ran.is_err() {
        // The next run needs it as well.
        let _ = if node.is_running() { Ok(()) } else { node.boot() };
        let _ = maintain(&room, "uncordon", &node.name);
        room.abandon();
        return ran;
    }
    room.close()
}

fn in_room(room: &Room, node: &Node) -> Result<()> {
    let subject = stays::start(room, CLASS, Kind::StatefulSet, node)?;
    switched_off(room, &subject, node).context(|| "switched off in maintenance".to_owned())?;
    drained(room, &subject, node).context(|| "drained".to_owned())
}

/// Not failed over: neither fenced nor tainted, and its pod goes on when it is back.
fn switched_off(room: &Room, subject: &Subject, node: &Node) -> Result<()> {
    let name = &node.name;
    maintain(room, "cordon", name)?;
    ensure_in_maintenance(room, name, true)?;
    let killed = Instant::now();
    Fault::NodeKilled.strike(&[node])?;
    said::wait_refused(room, name, "it is in maintenance")?;
    stays::ensure_for(room, subject, OFF.saturating_sub(killed.elapsed()))?;
    stays::ensure_not_given_up(room, name)?;
    stays::wait_back(room, subject, node)?;
    maintain(room, "uncordon", name)?;
    ensure_in_maintenance(room, name, false)?;
    installed::wait_ready(room.lab)?;
    said::wait_nothing_said(room, name)
}

/// Its pod goes elsewhere, without a fence and with everything that was acknowledged.
fn drained(room: &Room, subject: &Subject, node: &Node) -> Result<()> {
    let Subject { workload, old, .. } = subject;
    let began = Instant::now();
    let said = maintain(room, "drain", &node.name)?;
    room.time("hawser node drain", began.elapsed());
    ensure(said.contains("1 pod(s) with volumes have left"), || format!("hawser node drain says {said:?}"))?;
    ensure_in_maintenance(room, &node.name, true)?;
    let (start, first) = room.look("the evicted workload writes elsewhere", || {
        Ok(workload.first_ack_elsewhere(&old.uid)?.ok_or_else(|| "no ack yet".to_owned()))
    })?;
    ensure(start.node != node.name, || format!("{} is on {} again", start.pod, start.node))?;
    let starts = workload.starts()?;
    let of_old = |epoch| starts.iter().any(|start| start.epoch == epoch && start.uid == old.uid);
    let last_ns = workload.acks()?.iter().filter(|ack| of_old(ack.epoch)).map(|ack| ack.end_ns).max();
    let outage_ns = last_ns.map_or(0, |last_ns| first.end_ns.saturating_sub(last_ns));
    room.time("without an acknowledged write", Duration::from_nanos(outage_ns));
    let findings = oracle::verify(room, subject, &workload.ledger_of(|ack| of_old(ack.epoch))?)?;
    println!("{}: of {} acks of the pod that left, {} are lost", room.name, findings["acked"], findings["lost"]);
    let states = pool::states(&subject.directory)?;
    pool::ensure_one_holder(&states)?;
    let fenced = states.iter().filter_map(|state| state.holder.as_ref()).find(|held| held.is_fenced);
    ensure(fenced.is_none(), || format!("a drain fenced: {fenced:?}"))?;
    maintain(room, "uncordon", &node.name)?;
    ensure_in_maintenance(room, &node.name, false)
}

/// As docs/kubernetes.md has it: in a controller's pod. What it said.
fn maintain(room: &Room, verb: &str, node: &str) -> Result<String> {
    installed::hawser_at_controller(room.lab, &[], &["node", verb, node])
}

fn ensure_in_maintenance(room: &Room, node: &str, is_in: bool) -> Result<()> {
    let object = room.lab.cluster.get(&format!("/api/v1/nodes/{node}"))?;
    let found = [object["metadata"]["annotations"][ANNOTATION] == "true", object["spec"]["unschedulable"] == true];
    ensure(found == [is_in; 2], || format!("{node}: in maintenance and unschedulable are {found:?}, not {is_in}"))
}
