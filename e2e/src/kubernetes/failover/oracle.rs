//! What must hold of one workload after a failover. Each check can be seen to fail: controls.rs.

use super::pool;
use super::room::Room;
use super::watch::{Seen, Subject};
use super::workload::Ack;
use crate::failure::{Failure, Result, ensure};
use serde_json::{Value, json};

#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Acks of all its pods.
    pub(super) acked: usize,
    /// Acks of the old pod that began after the fence had returned.
    pub(super) late: usize,
    /// Acks of the old pod that began before that and ended after.
    pub(super) in_flight: usize,
    /// Blocks of the old pod that reached an image after the fence had returned.
    pub(super) late_blocks: usize,
    /// When the last write of the old pod that is acknowledged was durable.
    pub(super) last_ns: Option<u64>,
    /// What `hawser workload verify` found.
    pub(super) ledger: Value,
    /// What is wrong, in words.
    pub(super) problems: Vec<String>,
}

/// After the node that failed has gone on again for a while.
pub(super) fn judge(space: &Room, subject: &Subject, seen: &Seen) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let starts = subject.workload.starts()?;
    let acks = subject.workload.acks()?;
    verdict.acked = acks.len();
    let old: Vec<u64> = starts.iter().filter(|start| start.uid == subject.old.uid).map(|start| start.epoch).collect();
    verdict.last_ns = last_of(&acks, &old);
    if let Some(fence_ns) = seen.moments.fenced {
        (verdict.in_flight, verdict.late) = after_fence(&acks, &old, fence_ns);
        if verdict.late > 0 {
            verdict.problems.push(format!("{} acks of the old pod began after the fence", verdict.late));
        }
    }
    match &seen.at_fence {
        Some(before) => {
            verdict.late_blocks = pool::written_between(before, &subject.old_blocks()?);
            if verdict.late_blocks > 0 {
                verdict.problems.push(format!("{} blocks of the old pod changed after the fence", verdict.late_blocks));
            }
        }
        None if seen.moments.first.is_some() => verdict.problems.push("no fence was recorded".to_owned()),
        None => {}
    }
    let states = pool::states(&subject.directory)?;
    verdict.note("holders", pool::ensure_one_holder(&states));
    if seen.moments.first.is_some() {
        let ledger = subject.workload.ledger_of(|epoch| old.contains(&epoch))?;
        match findings(space, subject, &ledger) {
            Ok(findings) => {
                verdict.note("ledger", ensure_passed(&findings));
                verdict.ledger = findings;
            }
            Err(failure) => verdict.problems.push(format!("ledger: {failure}")),
        }
    } else {
        verdict.problems.push(format!("it does not write elsewhere: {}", space.lab.cluster.warnings(&space.name)));
    }
    Ok(verdict)
}

/// What [`findings`] finds, when every ack is there and the ledger is whole.
pub(super) fn verify(space: &Room, subject: &Subject, ledger: &str) -> Result<Value> {
    let findings = findings(space, subject, ledger)?;
    ensure_passed(&findings)?;
    Ok(findings)
}

fn ensure_passed(findings: &Value) -> Result<()> {
    ensure(findings["pass"] == true, || findings.to_string())
}

/// Looks for every ack of the ledger on the volume, in the pod that has it now.
fn findings(space: &Room, subject: &Subject, ledger: &str) -> Result<Value> {
    let uid = &subject.old.uid;
    let starts = subject.workload.starts()?;
    let pod = starts.iter().rev().find(|start| start.uid != *uid).ok_or("it has no other pod")?;
    let nonce = subject.workload.nonce.to_string();
    let at_least = (4 * subject.workload.writers).to_string();
    let verify = [
        "--namespace",
        &space.name,
        "exec",
        "--stdin",
        &pod.pod,
        "--",
        "/hawser",
        "workload",
        "verify",
        "--json",
        "--target",
        subject.workload.access.target(),
        "--ledger",
        "/dev/stdin",
        "--nonce",
        &nonce,
        "--at-least",
        &at_least,
    ];
    let (_, said, complaint) = space.lab.cluster.kubectl_said(&verify, Some(ledger))?;
    let findings = serde_json::from_str::<Value>(&said).ok().filter(|findings| findings["pass"].is_boolean());
    findings.ok_or_else(|| format!("hawser workload verify: {said:?}, {complaint:?}").into())
}

/// When the last ack of these epochs ended.
fn last_of(acks: &[Ack], epochs: &[u64]) -> Option<u64> {
    acks.iter().filter(|ack| epochs.contains(&ack.epoch)).map(|ack| ack.end_ns).max()
}

/// Acks of these epochs that ended after the fence: those that began before it, and those that did not.
pub(super) fn after_fence(acks: &[Ack], epochs: &[u64], fence_ns: u64) -> (usize, usize) {
    let ended = acks.iter().filter(|ack| epochs.contains(&ack.epoch) && ack.end_ns > fence_ns);
    let (in_flight, late): (Vec<&Ack>, Vec<&Ack>) = ended.partition(|ack| ack.begin_ns <= fence_ns);
    (in_flight.len(), late.len())
}

impl Verdict {
    pub(super) fn note(&mut self, what: &str, checked: Result<()>) {
        if let Err(failure) = checked {
            self.problems.push(format!("{what}: {failure}"));
        }
    }

    pub(super) fn to_result(&self) -> Result<()> {
        if self.problems.is_empty() { Ok(()) } else { Err(Failure::from(self.problems.join("; "))) }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "acked": self.acked,
            "late": self.late,
            "in_flight": self.in_flight,
            "late_blocks": self.late_blocks,
            "ledger": self.ledger,
            "problems": self.problems,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_after_a_fence() {
        let ack = |epoch, begin_ns, end_ns| Ack { epoch, begin_ns, end_ns };
        let acks = [ack(1, 1, 2), ack(1, 3, 7), ack(1, 6, 8), ack(2, 9, 10), ack(3, 9, 10)];
        assert_eq!(after_fence(&acks, &[1, 3], 5), (1, 2));
        assert_eq!(after_fence(&acks, &[1], 20), (0, 0));
        assert_eq!((last_of(&acks, &[1]), last_of(&acks, &[4])), (Some(8), None));
    }
}
