//! A workload that nobody moves: it stays what it was while its node is lost, and goes on where it is once the node is back.

use super::WRITERS;
use super::mover::has_taint;
use super::oracle;
use super::pool;
use super::room::{Room, pool_of};
use super::run::{WRITING, pause_ms};
use super::watch::Subject;
use super::workload::{Access, Kind, Workload};
use crate::failure::{Context, Result, ensure};
use crate::kubernetes::node::Node;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Between two looks at what must not change.
const PAUSE: Duration = Duration::from_millis(500);

/// One that writes on the node.
pub(super) fn start(room: &Room, class: &str, kind: Kind, node: &Node) -> Result<Subject> {
    let writers = WRITERS[1];
    let workload = Workload::start(room, class, kind, Access::Ext4, writers, pause_ms(writers), &node.name)?;
    let subject = Subject::placed(room, workload, &node.name)?;
    std::thread::sleep(WRITING);
    Ok(subject)
}

/// Its pod and its volume are its node's for all this time, and nobody else's.
pub(super) fn ensure_for(room: &Room, subject: &Subject, length: Duration) -> Result<()> {
    let until = Instant::now() + length;
    while Instant::now() < until {
        ensure_untouched(room, subject)?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Nobody has given the node up.
pub(super) fn ensure_not_given_up(room: &Room, node: &str) -> Result<()> {
    let object = room.lab.cluster.get(&format!("/api/v1/nodes/{node}"))?;
    ensure(!has_taint(&object), || format!("{node} was given up: {}", object["spec"]["taints"]))?;
    ensure(!pool::is_fenced(&pool_of(room.lab), node)?, || format!("{node} was fenced"))
}

/// Starts the node, and waits until the workload writes there again, in the same pod; everything that this acknowledged in
/// all its lives is there.
pub(super) fn wait_back(room: &Room, subject: &Subject, node: &Node) -> Result<()> {
    let Subject { workload, old, .. } = subject;
    let before = workload.starts()?.len();
    let began = Instant::now();
    node.boot()?;
    let least = 4 * workload.writers as usize;
    room.look(&format!("{} writes on {} again", old.pod, old.node), || {
        let starts = workload.starts()?;
        let Some(last) = starts.last().filter(|_| starts.len() > before) else {
            return Ok(Err("its writer has not started".to_owned()));
        };
        ensure((&last.uid, &last.node) == (&old.uid, &old.node), || format!("{last:?} is not {old:?}"))?;
        let acks = workload.acks()?.iter().filter(|ack| ack.epoch == last.epoch).count();
        Ok(if acks >= least { Ok(()) } else { Err(format!("{acks} acks")) })
    })?;
    room.time(&format!("from the node's start to {} writing there again", old.pod), began.elapsed());
    ensure_untouched(room, subject)?;
    let ledger = workload.ledger_of(|_| true)?;
    let findings = oracle::verify_where_it_was(room, subject, &ledger)?;
    println!("{}: of {} acks of {}, {} are lost", room.name, findings["acked"], old.pod, findings["lost"]);
    Ok(())
}

fn ensure_untouched(room: &Room, subject: &Subject) -> Result<()> {
    let Subject { old, volume, directory, .. } = subject;
    let cluster = &room.lab.cluster;
    let pod = cluster.find(&room.path("pods", &old.pod))?.unwrap_or_default()["metadata"].clone();
    ensure(pod["uid"] == *old.uid && pod["deletionTimestamp"].is_null(), || format!("the pod was moved: it is {pod}"))?;
    if room.lab.place.attaches_by_controller() {
        let attachments = cluster.list("/apis/storage.k8s.io/v1/volumeattachments")?;
        let own = attachments.iter().filter(|one| one["spec"]["source"]["persistentVolumeName"] == **volume);
        let nodes: Vec<&Value> = own.map(|one| &one["spec"]["nodeName"]).collect();
        ensure(nodes == [old.node.as_str()], || format!("{volume} is attached to {nodes:?}"))?;
    }
    let states = pool::states(directory)?;
    let strange = states.iter().filter_map(|state| state.holder.as_ref()).find(|held| held.node != old.node);
    ensure(strange.is_none(), || format!("{volume} was granted: {strange:?}"))?;
    ensure(states.last().is_some_and(|state| state.holder.is_some()), || format!("{volume} was given back"))
        .context(|| old.pod.clone())
}
