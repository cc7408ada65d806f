//! Failovers on a pool that counts as on a network file system: nobody but the old node stops what that writes, and the new
//! holder has a fork. What was acknowledged before the fence must be there; what the old node acknowledges afterwards is lost,
//! which is measured, and must end because that node shuts its file systems down.

use super::fault::Fault;
use super::installed::{self, PoolOn};
use super::{FREQUENCIES, Failovers};
use crate::failure::{Result, ensure};
use std::time::Duration;

/// Several times what a failover takes here.
const REFUSED_FOR: Duration = Duration::from_secs(15);

/// From now on.
pub(super) fn begin(failovers: &Failovers) -> Result<()> {
    installed::set_pool(failovers.lab, PoolOn::NetworkForkOnly)?;
    failovers.is_fork_only.set(true);
    Ok(())
}

fn end(failovers: &Failovers) -> Result<()> {
    failovers.is_fork_only.set(false);
    installed::set_pool(failovers.lab, PoolOn::Local)
}

/// Without the opt-in nothing moves; with it everything that was acknowledged before the fence does.
pub(super) fn moves_what_was_acked_before(failovers: &Failovers) -> Result<()> {
    let ran = refused(failovers).and_then(|()| moved(failovers));
    end(failovers)?;
    ran
}

fn refused(failovers: &Failovers) -> Result<()> {
    installed::set_pool(failovers.lab, PoolOn::Network)?;
    for outcome in failovers.run(Fault::NodeFrozen, failovers.mover, FREQUENCIES[0], REFUSED_FOR)?.each {
        let (name, moments) = (outcome.kind.name(), &outcome.moments);
        ensure(moments.fenced.is_none(), || format!("{name}: fenced without the opt-in"))?;
        ensure(moments.granted.is_none() && moments.first.is_none(), || format!("{name}: moved without the opt-in"))?;
    }
    Ok(())
}

fn moved(failovers: &Failovers) -> Result<()> {
    begin(failovers)?;
    let outcomes = failovers.run(Fault::NodeFrozen, failovers.mover, FREQUENCIES[0], super::LIMIT)?;
    for outcome in &outcomes.each {
        let verdict = &outcome.verdict;
        println!(
            "time: {} on {}: after the thaw {} late acks into the orphan and {} in flight, the last after {}",
            outcome.kind.name(),
            outcome.access.name(),
            verdict.late,
            verdict.in_flight,
            verdict.late_for_ms.map_or("none".to_owned(), |ms| format!("{ms:.0} ms")),
        );
    }
    outcomes.ensure_held()
}
