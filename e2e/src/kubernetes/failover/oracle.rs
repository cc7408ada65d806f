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
    /// When the last write of the old pod that was acknowledged before the fence was durable. What was on its way when a node
    /// was frozen is acknowledged after the thaw, and nobody was served by it meanwhile.
    pub(super) last_ns: Option<u64>,
    /// With a fence that is a fork alone, for how long the old pod went on acknowledging; none where it did not.
    pub(super) late_for_ms: Option<f64>,
    /// What `hawser workload verify` found.
    pub(super) ledger: Value,
    /// What is wrong, in words.
    pub(super) problems: Vec<String>,
}

/// What a fence promises of the old writer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Promise {
    /// Nothing that it acknowledges after the fence, or writes, is anywhere.
    Stopped,
    /// Nothing of it reaches the new holder. Until its own node stops it, it may acknowledge what is in the orphan alone:
    /// counted from here.
    Orphaned { since_ns: u64 },
}

/// How long an orphan may be acknowledged into: the node looks every second whether it was fenced, on a busy machine.
pub(super) const ORPHAN_LIMIT_MS: f64 = 3000.0;

/// After the node that failed has gone on again for a while.
pub(super) fn judge(space: &Room, subject: &Subject, seen: &Seen, promise: Promise) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let starts = subject.workload.starts()?;
    let acks = subject.workload.acks()?;
    verdict.acked = acks.len();
    let old: Vec<u64> = starts.iter().filter(|start| start.uid == subject.old.uid).map(|start| start.epoch).collect();
    let states = pool::states(&subject.directory)?;
    let given_back = pool::given_back_at(&states, &subject.old.node);
    let end_ns = seen.moments.fenced.or(given_back);
    verdict.last_ns = last_of(&acks, &old, end_ns.unwrap_or(u64::MAX));
    if let Some(fence_ns) = end_ns {
        (verdict.in_flight, verdict.late) = after_fence(&acks, &old, fence_ns);
        match promise {
            Promise::Stopped if verdict.late > 0 => {
                verdict.problems.push(format!("{} acks of the old pod began after the fence", verdict.late));
            }
            Promise::Stopped => {}
            Promise::Orphaned { since_ns } => {
                verdict.late_for_ms = late_for_ms(&acks, &old, fence_ns, since_ns);
                if let Some(ms) = verdict.late_for_ms.filter(|ms| *ms > ORPHAN_LIMIT_MS) {
                    verdict.problems.push(format!("the old pod went on acknowledging into the orphan for {ms:.0} ms"));
                }
            }
        }
    }
    match &seen.at_fence {
        Some(before) => {
            let now = subject.old_blocks()?;
            verdict.late_blocks = match promise {
                Promise::Stopped => pool::written_between(before, &now),
                Promise::Orphaned { .. } => pool::written_outside_orphans(before, &now),
            };
            if verdict.late_blocks > 0 {
                verdict.problems.push(format!("{} blocks of the old pod changed after the fence", verdict.late_blocks));
            }
        }
        None if seen.moments.first.is_some() && given_back.is_none() => {
            verdict.problems.push("it moved, and neither a fence nor a release was recorded".to_owned());
        }
        None => {}
    }
    verdict.note("holders", pool::ensure_one_holder(&states));
    if seen.moments.first.is_some() {
        // What was acknowledged into an orphan is lost, and is counted above.
        let fence_ns = seen.moments.fenced.unwrap_or(u64::MAX);
        let is_promised = |ack: &Ack| matches!(promise, Promise::Stopped) || ack.end_ns <= fence_ns;
        let ledger = subject.workload.ledger_of(|ack| old.contains(&ack.epoch) && is_promised(ack))?;
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

/// As [`verify`], in the pod that has had it all along.
pub(super) fn verify_where_it_was(space: &Room, subject: &Subject, ledger: &str) -> Result<Value> {
    let findings = findings_in(space, subject, &subject.old.pod, ledger)?;
    ensure_passed(&findings)?;
    Ok(findings)
}

/// Looks for every ack of the ledger on the volume, in the pod that has it now.
fn findings(space: &Room, subject: &Subject, ledger: &str) -> Result<Value> {
    let uid = &subject.old.uid;
    let starts = subject.workload.starts()?;
    let pod = starts.iter().rev().find(|start| start.uid != *uid).ok_or("it has no other pod")?;
    findings_in(space, subject, &pod.pod, ledger)
}

fn findings_in(space: &Room, subject: &Subject, pod: &str, ledger: &str) -> Result<Value> {
    let nonce = subject.workload.nonce.to_string();
    let at_least = (4 * subject.workload.writers).to_string();
    let verify = [
        "--namespace",
        &space.name,
        "exec",
        "--stdin",
        pod,
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

/// When the last ack of these epochs ended, of those that ended in time.
fn last_of(acks: &[Ack], epochs: &[u64], until_ns: u64) -> Option<u64> {
    let ended = acks.iter().filter(|ack| epochs.contains(&ack.epoch)).map(|ack| ack.end_ns);
    ended.filter(|end_ns| *end_ns <= until_ns).max()
}

/// Acks of these epochs that ended after the fence: those that began before it, and those that did not.
pub(super) fn after_fence(acks: &[Ack], epochs: &[u64], fence_ns: u64) -> (usize, usize) {
    let ended = acks.iter().filter(|ack| epochs.contains(&ack.epoch) && ack.end_ns > fence_ns);
    let (in_flight, late): (Vec<&Ack>, Vec<&Ack>) = ended.partition(|ack| ack.begin_ns <= fence_ns);
    (in_flight.len(), late.len())
}

/// From a moment to the last ack of these epochs that ended after the fence.
fn late_for_ms(acks: &[Ack], epochs: &[u64], fence_ns: u64, since_ns: u64) -> Option<f64> {
    let late = acks.iter().filter(|ack| epochs.contains(&ack.epoch) && ack.end_ns > fence_ns);
    late.map(|ack| ack.end_ns).max().map(|last| last.saturating_sub(since_ns) as f64 / 1e6)
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
            "late_for_ms": self.late_for_ms,
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
        assert_eq!((last_of(&acks, &[1], 9), last_of(&acks, &[4], 9)), (Some(8), None));
        assert_eq!(last_of(&acks, &[1], 5), Some(2), "what ends after the fence was on its way");
        assert_eq!(late_for_ms(&acks, &[1], 5, 6), Some(2e-6));
        assert_eq!(late_for_ms(&acks, &[1], 20, 6), None);
    }
}
