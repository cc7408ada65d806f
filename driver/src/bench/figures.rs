//! What was measured: how long each call took, and what was refused.

use super::steps::Step;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::{Code, Status};

#[derive(Debug, Default, Clone)]
pub struct Figures {
    /// Calls that succeeded, each in microseconds and without the tries before it.
    pub calls: BTreeMap<Step, Vec<u32>>,
    /// From the first call of a volume to the last answer, with what was waited and repeated.
    pub up: Vec<u32>,
    pub down: Vec<u32>,
    /// How long all volumes of all rounds took.
    pub up_in_all: Duration,
    pub down_in_all: Duration,
    pub errors: BTreeMap<(Step, i32), Refusals>,
    /// Volumes that did not come up.
    pub failed: u64,
}

#[derive(Debug, Clone)]
pub struct Refusals {
    pub count: u64,
    /// Of the first of them.
    pub message: String,
}

/// In microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub count: usize,
    pub p50: u32,
    pub p95: u32,
    pub p99: u32,
    pub max: u32,
}

impl Figures {
    pub fn answered(&mut self, step: Step, took: Duration) {
        self.calls.entry(step).or_default().push(micros(took));
    }

    pub fn refused(&mut self, step: Step, status: &Status) {
        let new = || Refusals { count: 0, message: status.message().to_owned() };
        self.errors.entry((step, i32::from(status.code()))).or_insert_with(new).count += 1;
    }

    pub fn errors_as_json(&self) -> Vec<Value> {
        let errors = self.errors.iter();
        errors
            .map(|((step, code), refusals)| {
                json!({"call": step.as_str(), "code": code_name(*code), "count": refusals.count, "message": refusals.message})
            })
            .collect()
    }
}

impl Summary {
    /// `None` of nothing.
    pub fn of(samples: &[u32]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let max = *sorted.last()?;
        let at = |percent| percentile(&sorted, percent);
        Some(Self { count: sorted.len(), p50: at(50), p95: at(95), p99: at(99), max })
    }

    pub fn as_json(&self) -> Value {
        json!({"count": self.count, "p50_us": self.p50, "p95_us": self.p95, "p99_us": self.p99, "max_us": self.max})
    }
}

/// As tonic's `Code` writes itself.
pub fn code_name(code: i32) -> String {
    format!("{:?}", Code::from(code))
}

pub fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// The nearest rank: the smallest sample that at least `percent` of all do not exceed.
fn percentile(sorted: &[u32], percent: usize) -> u32 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let hundred: Vec<u32> = (1..=100).rev().collect();
        let summary = Summary::of(&hundred).unwrap();
        assert_eq!((summary.p50, summary.p95, summary.p99, summary.max, summary.count), (50, 95, 99, 100, 100));
        let three = Summary::of(&[30, 10, 20]).unwrap();
        assert_eq!((three.p50, three.p95, three.p99, three.max), (20, 30, 30, 30));
        let one = Summary::of(&[7]).unwrap();
        assert_eq!((one.p50, one.p99), (7, 7));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn refusals_are_counted_by_call_and_code() {
        let mut figures = Figures::default();
        for message in ["first", "second"] {
            figures.refused(Step::NodeStage, &Status::aborted(message));
        }
        figures.refused(Step::NodeStage, &Status::internal("other"));
        let errors = figures.errors_as_json();
        assert_eq!(errors[0]["code"], "Aborted");
        assert_eq!((errors[0]["count"].as_u64(), errors[0]["message"].as_str()), (Some(2), Some("first")));
        assert_eq!(errors.len(), 2);
    }

    #[test]
    fn what_takes_too_long_to_count_is_the_longest() {
        assert_eq!(micros(Duration::from_secs(100_000)), u32::MAX);
    }
}
