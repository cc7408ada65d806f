//! A volume whose class says `failover: "off"` stays with its node when that is lost, alone on it or beside volumes that
//! move; and it is whole when the node is back.

use super::clock::now_ns;
use super::fault::Fault;
use super::oracle::{self, Promise};
use super::pool;
use super::room::{Room, pool_of};
use super::run::victims;
use super::watch::{Subject, watch};
use super::workload::{CLASS, Kind};
use super::{Failovers, LIMIT, installed, said, stays};
use crate::failure::{Context, Result};
use crate::kubernetes::ground::DRIVER;
use crate::kubernetes::node::Node;
use serde_json::json;
use std::time::Duration;

const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
const OPTED_OUT: &str = "hawser-failover-off";
/// How long nothing may happen to it. A node with an ordinary volume is fenced within 3 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// Long after everything that was queued on the node was written or refused.
const AFTER_RETURN: Duration = Duration::from_secs(2);

pub(super) fn stays_where_it_is(failovers: &Failovers) -> Result<()> {
    let lab = failovers.lab;
    installed::wait_ready(lab)?;
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": OPTED_OUT},
        "provisioner": DRIVER,
        "parameters": {"failover": "off"},
    });
    lab.cluster.create(CLASSES, &class)?;
    let room = Room::open(lab, failovers.ground, "failover-opted-out")?;
    let node = *victims(lab, failovers.mover, 0, 1)?.first().ok_or("there is no node")?;
    let ran = in_room(&room, node);
    if ran.is_err() && !node.is_running() {
        // The next run needs it as well.
        let _ = node.boot();
    }
    let ended = match &ran {
        Ok(()) => room.close(),
        Err(_) => {
            room.abandon();
            Ok(())
        }
    };
    lab.cluster.delete(&format!("{CLASSES}/{OPTED_OUT}"))?;
    ran.and(ended)
}

fn in_room(room: &Room, node: &Node) -> Result<()> {
    let staying = stays::start(room, OPTED_OUT, Kind::StatefulSet, node)?;
    alone(room, &staying, node).context(|| "alone on its node".to_owned())?;
    beside_another(room, &staying, node).context(|| "beside a volume that moves".to_owned())
}

/// Nothing of the node moves, so it is not even fenced; why is said.
fn alone(room: &Room, staying: &Subject, node: &Node) -> Result<()> {
    Fault::NodeKilled.strike(&[node])?;
    said::wait_refused(room, &node.name, "has opted out")?;
    stays::ensure_for(room, staying, PATIENCE)?;
    stays::ensure_not_given_up(room, &node.name)?;
    stays::wait_back(room, staying, node)?;
    installed::wait_ready(room.lab)?;
    said::wait_nothing_said(room, &node.name)
}

/// The node is fenced for the other volume's sake, and the one that has opted out is cut off with it; yet nobody else gets it.
fn beside_another(room: &Room, staying: &Subject, node: &Node) -> Result<()> {
    let moving = stays::start(room, CLASS, Kind::Deployment, node)?;
    let struck_ns = Fault::NodeKilled.strike(&[node])?;
    let seen = watch(room.lab, &room.name, std::slice::from_ref(&moving), LIMIT, &|| None)?;
    let seen = seen.first().ok_or("nothing was watched")?;
    let first_ns = seen.moments.first.ok_or("the ordinary volume did not move")?;
    room.time("from the loss to the ordinary one's first write elsewhere", between(struck_ns, first_ns));
    stays::ensure_for(room, staying, PATIENCE)?;
    let mended_ns = now_ns()?;
    stays::wait_back(room, staying, node)?;
    std::thread::sleep(AFTER_RETURN);
    oracle::judge(room, &moving, seen, Promise::Stopped)?.to_result().context(|| "the ordinary one".to_owned())?;
    installed::wait_ready(room.lab)?;
    room.look("the fence lifted", || {
        let is_fenced = pool::is_fenced(&pool_of(room.lab), &node.name)?;
        Ok(if is_fenced { Err("it is fenced".to_owned()) } else { Ok(()) })
    })?;
    room.time("from the node's start to no fence and no taint", between(mended_ns, now_ns()?));
    said::wait_nothing_said(room, &node.name)
}

fn between(from_ns: u64, to_ns: u64) -> Duration {
    Duration::from_nanos(to_ns.saturating_sub(from_ns))
}
