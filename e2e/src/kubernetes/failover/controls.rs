//! That the checks notice what they are there for: a fence that did nothing, and a ledger that is not what was acknowledged.

use super::fault::Fault;
use super::mover::Mover;
use super::oracle;
use super::run::Inspect;
use super::{FREQUENCIES, Failovers, installed};
use crate::failure::{Result, ensure};
use crate::report::Report;
use std::time::Duration;
use uuid::Uuid;

/// Without a fence nobody gets the volume, however long one waits; a failover takes a third of this.
const NEVER: Duration = Duration::from_secs(20);

pub(super) fn all(report: &Report, failovers: &Failovers) {
    report.test("failover-control-without-fence-is-caught", || without_fence(failovers));
    report.test("failover-control-tampered-ledger-is-caught", || tampered(failovers));
}

/// A node that goes on writing after a fence that did nothing: its late acks and its late blocks are both seen. Its driver
/// stands still, which would otherwise see the record of the fence and shut the file systems down itself.
fn without_fence(failovers: &Failovers) -> Result<()> {
    let has_switch = failovers.mover == Mover::Supervisor;
    let mover = if has_switch {
        installed::set_fences(failovers.lab, false)?;
        Mover::Supervisor
    } else {
        Mover::ByHandWithoutFence
    };
    let ran = failovers.run(Fault::DriverStopped, mover, FREQUENCIES[0], NEVER);
    if has_switch {
        installed::set_fences(failovers.lab, true)?;
    }
    for outcome in ran?.each {
        let verdict = &outcome.verdict;
        ensure(verdict.late > 0, || format!("{}: no late ack was noticed: {verdict:?}", outcome.kind.name()))?;
        ensure(verdict.late_blocks > 0, || format!("{}: no late block was: {verdict:?}", outcome.kind.name()))?;
        let is_granted = outcome.moments.granted.is_some();
        ensure(has_switch || !is_granted, || format!("{}: granted without a fence", outcome.kind.name()))?;
    }
    Ok(())
}

/// A ledger that was changed in any of these ways is refused, and the same one unchanged is not.
fn tampered(failovers: &Failovers) -> Result<()> {
    let forge: &Inspect = &|space, subject| {
        let text = subject.workload.ledger_of(|ack| ack.epoch == subject.old.epoch)?;
        oracle::verify(space, subject, &text)?;
        // Its writer has later ones: that the last line of a writer is missing, nobody can know.
        let line = text.lines().next().ok_or("the ledger is empty")?;
        let nonce = subject.workload.nonce.to_string();
        let removed: String = text.lines().filter(|other| *other != line).map(|line| format!("{line}\n")).collect();
        let forged = [
            ("an ack that never was", format!("{text}{}\n", line.replace("\"seq\":", "\"seq\":9"))),
            ("a line that is gone", removed),
            ("another run's line", format!("{text}{}\n", line.replace(&nonce, &Uuid::new_v4().to_string()))),
            ("a line cut off", text.trim_end().trim_end_matches('}').to_owned() + "\n"),
            ("the same line twice", format!("{text}{line}\n")),
            ("an empty ledger", String::new()),
        ];
        for (what, text) in forged {
            ensure(oracle::verify(space, subject, &text).is_err(), || format!("{what} was not noticed"))?;
        }
        Ok(())
    };
    failovers.inspect(forge)?.ensure_held()
}
