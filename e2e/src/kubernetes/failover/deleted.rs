//! A node that is lost and whose object is deleted, as by `kubectl delete node`: what ran there is failed over, and when the
//! machine starts again it is a node like any other.

use super::fault::Fault;
use super::{Failovers, installed};
use crate::failure::{Result, ensure};
use crate::kubernetes::Lab;
use crate::kubernetes::space::{Space, Volume, claim, name_of, on_node, pod};
use serde_json::Value;

const BACK: &str = "failover-node-back";

pub(super) fn is_failed_over_and_registers_again(failovers: &Failovers) -> Result<()> {
    let lab = failovers.lab;
    let before = nodes(lab)?;
    let outcomes = failovers.one(Fault::NodeDeleted)?;
    outcomes.ensure_held()?;
    let name = &outcomes.each.first().ok_or("no workload ran")?.from;
    installed::wait_ready(lab)?;
    let uid = |all: &[Value]| all.iter().find(|node| name_of(node) == name).map(|node| node["metadata"]["uid"].clone());
    ensure(uid(&before) != uid(&nodes(lab)?), || format!("the object of {name} was never deleted"))?;
    let space = Space::open(failovers.ground, BACK)?;
    space.start(
        &claim("data", "hawser", "ReadWriteOnce", "64Mi"),
        &on_node(pod("app", &[Volume::at("data", "/data")]), name),
    )?;
    space.write("app", "/data/file", "here")?;
    space.close()
}

fn nodes(lab: &Lab) -> Result<Vec<Value>> {
    lab.cluster.list("/api/v1/nodes")
}
