//! One line of the raw log: a workload in a run, and how long each phase of its failover took.

use serde::Deserialize;
use serde_json::Value;

pub(super) struct Sample {
    pub(super) fault: String,
    pub(super) mover: String,
    pub(super) workload: String,
    pub(super) status_frequency: String,
    pub(super) attach_by_nodes: bool,
    pub(super) end: End,
    /// Milliseconds from the last ack of the old pod to the first new one. Logs of earlier versions have none.
    pub(super) outage_ms: Option<f64>,
    /// Phases that were seen, in milliseconds, in the order of `NAMES`.
    pub(super) phases: [Option<f64>; NAMES.len()],
    pub(super) acked: u64,
    pub(super) lost: u64,
    pub(super) late: u64,
    /// What did not stand the checks, or why the run failed.
    pub(super) problems: Vec<String>,
}

pub(super) enum End {
    /// Milliseconds from the fault to the first new ack.
    Moved(f64),
    /// It did not write again within so many milliseconds.
    NotWithin(f64),
    /// The run itself failed.
    Failed,
}

/// From the fault to a supervisor that counts the node as lost; to the fence's proof; to the new pod; to the volume attached
/// to its node; to the new process; to its first write that is durable.
pub(super) const NAMES: [&str; 6] = ["detect", "fence", "evict", "attach", "start", "fsync"];

/// How movers are named that are no supervisor.
const BY_HAND: &str = "by-hand";

#[derive(Deserialize)]
struct Line {
    fault: String,
    mover: String,
    #[serde(default)]
    workload: String,
    #[serde(default)]
    status_frequency: String,
    #[serde(default)]
    attach_by_nodes: bool,
    #[serde(default)]
    total_ms: Option<f64>,
    #[serde(default)]
    outage_ms: Option<f64>,
    #[serde(default)]
    limit_ms: f64,
    #[serde(default)]
    at_ms: Moments,
    #[serde(default)]
    verdict: Verdict,
    #[serde(default)]
    failure: Option<String>,
}

#[derive(Deserialize, Default)]
struct Moments {
    detected: Option<f64>,
    fenced: Option<f64>,
    created: Option<f64>,
    attached: Option<f64>,
    started: Option<f64>,
}

#[derive(Deserialize, Default)]
struct Verdict {
    #[serde(default)]
    acked: u64,
    #[serde(default)]
    late: u64,
    #[serde(default)]
    late_blocks: u64,
    #[serde(default)]
    ledger: Value,
    #[serde(default)]
    problems: Vec<String>,
}

impl Sample {
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let line: Line = serde_json::from_str(line).map_err(|error| format!("{error} in {line:?}"))?;
        let at = &line.at_ms;
        // By hand nothing is detected.
        let by_hand = line.mover.starts_with(BY_HAND).then_some(0.0);
        let detected = at.detected.or(by_hand);
        let moments = [detected, at.fenced, at.created, at.attached, at.started, line.total_ms];
        let mut before = Some(0.0);
        let phases = moments.map(|moment| {
            // Two things that are seen by different eyes may be seen in the wrong order, by milliseconds.
            let took = before.zip(moment).map(|(before, moment): (f64, f64)| (moment - before).max(0.0));
            before = moment.or(before);
            took
        });
        let end = match (&line.failure, line.total_ms) {
            (Some(_), _) => End::Failed,
            (None, Some(total_ms)) => End::Moved(total_ms),
            (None, None) => End::NotWithin(line.limit_ms),
        };
        let lost = line.verdict.ledger["lost"].as_u64().unwrap_or(0);
        let mut problems = line.verdict.problems;
        problems.extend(line.failure);
        Ok(Self {
            fault: line.fault,
            mover: line.mover,
            workload: line.workload,
            status_frequency: line.status_frequency,
            attach_by_nodes: line.attach_by_nodes,
            end,
            outage_ms: line.outage_ms,
            phases,
            acked: line.verdict.acked,
            lost,
            late: line.verdict.late + line.verdict.late_blocks,
            problems,
        })
    }

    /// As it is said while the bench runs.
    pub(super) fn to_line(&self) -> String {
        let end = match self.end {
            End::Moved(ms) => match self.outage_ms {
                Some(outage_ms) => format!("{:.2} s, an outage of {:.2} s", ms / 1e3, outage_ms / 1e3),
                None => format!("{:.2} s", ms / 1e3),
            },
            End::NotWithin(ms) => format!("not within {:.0} s", ms / 1e3),
            End::Failed => "failed".to_owned(),
        };
        let problems = if self.problems.is_empty() { String::new() } else { format!("; {}", self.problems.join("; ")) };
        format!("{} {} by {}: {end}, {} acked{problems}", self.fault, self.workload, self.mover, self.acked)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench::failover) const LINE: &str = r#"{"run":0,"fault":"node-killed","mover":"supervisor",
        "workload":"deployment","status_frequency":"1s","attach_by_nodes":true,"limit_ms":120000,"total_ms":3500.0,"outage_ms":3450.0,
        "at_ms":{"detected":2100.0,"fenced":2500.0,"created":2600.0,"attached":2590.0,"started":3400.0},
        "verdict":{"acked":100,"late":0,"ledger":{"lost":0},"problems":[]}}"#;

    #[test]
    fn phases_add_up() {
        let sample = Sample::parse(LINE).unwrap();
        assert!(matches!(sample.end, End::Moved(ms) if ms == 3500.0));
        assert_eq!(sample.phases, [Some(2100.0), Some(400.0), Some(100.0), Some(0.0), Some(810.0), Some(100.0)]);
    }

    #[test]
    fn what_did_not_come_back_is_no_figure() {
        let line = LINE.replace("\"total_ms\":3500.0", "\"total_ms\":null");
        assert!(matches!(Sample::parse(&line).unwrap().end, End::NotWithin(ms) if ms == 120_000.0));
        let line = r#"{"fault":"two-nodes","mover":"by-hand","failure":"it broke"}"#;
        let sample = Sample::parse(line).unwrap();
        assert!(matches!(sample.end, End::Failed));
        assert_eq!(sample.problems, ["it broke"]);
        assert!(Sample::parse("{}").is_err());
    }
}
