//! Samples as `e2e bench` prints them, one series a line of JSON, and what is said of them.

use serde::Deserialize;
use serde_json::{Value, json};

/// Of one run, in the order of their lines.
#[derive(Default)]
pub(super) struct AllSeries(Vec<Series>);

#[derive(Deserialize)]
pub(super) struct Series {
    pub(super) measure: String,
    #[serde(rename = "series")]
    pub(super) name: String,
    #[serde(default)]
    pub(super) unit: String,
    /// In the order in which they were taken.
    #[serde(default)]
    pub(super) samples: Vec<f64>,
    /// Why there are none.
    #[serde(default)]
    pub(super) unmeasured: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statistic {
    P50,
    P99,
    Max,
}

impl AllSeries {
    /// Lines that are no JSON objects are only for the log.
    pub(super) fn read_line(&mut self, line: &str) -> Result<(), String> {
        if !line.starts_with('{') {
            return Ok(());
        }
        let series: Series = serde_json::from_str(line).map_err(|error| format!("cannot read {line:?}: {error}"))?;
        if series.unmeasured.is_none() && (series.samples.is_empty() || series.samples.iter().any(|s| !s.is_finite())) {
            return Err(format!("{}: {} has no samples, or none that are numbers", series.measure, series.name));
        }
        self.0.push(series);
        Ok(())
    }

    pub(super) fn find(&self, measure: &str, name: &str) -> Option<&Series> {
        self.0.iter().find(|series| series.measure == measure && series.name == name)
    }

    /// Those whose names begin so and that have samples.
    pub(super) fn with_prefix<'a>(&'a self, measure: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a Series> {
        let wanted = move |series: &&Series| series.measure == measure && series.name.starts_with(prefix);
        self.0.iter().filter(wanted).filter(|series| !series.samples.is_empty())
    }

    pub(super) fn to_json(&self) -> Value {
        let series = self.0.iter().map(|series| match &series.unmeasured {
            Some(why) => json!({"measure": series.measure, "series": series.name, "unmeasured": why}),
            None => json!({
                "measure": series.measure,
                "series": series.name,
                "unit": series.unit,
                "count": series.samples.len(),
                "p50": series.statistic(Statistic::P50),
                "p95": percentile(&series.sorted(), 95),
                "p99": series.statistic(Statistic::P99),
                "max": series.statistic(Statistic::Max),
                "samples": series.samples,
            }),
        });
        Value::Array(series.collect())
    }
}

impl Series {
    pub(super) fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted
    }

    /// `None` of nothing.
    pub(super) fn statistic(&self, statistic: Statistic) -> Option<f64> {
        percentile(
            &self.sorted(),
            match statistic {
                Statistic::P50 => 50,
                Statistic::P99 => 99,
                Statistic::Max => 100,
            },
        )
    }
}

/// The nearest rank: the smallest sample that at least `percent` of all do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        for (percent, expected) in [(0, 1.0), (1, 1.0), (50, 50.0), (99, 99.0), (100, 100.0)] {
            assert_eq!(percentile(&hundred, percent), Some(expected), "{percent}");
        }
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 50), Some(2.0));
        assert_eq!(percentile(&[1.0, 2.0], 50), Some(1.0));
        assert_eq!(percentile(&[4.0], 99), Some(4.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn lines_of_e2e() {
        let mut all = AllSeries::default();
        all.read_line("lab 0").unwrap();
        all.read_line(r#"{"measure":"path","series":"up bare","unit":"ms","samples":[3.0,1.0,2.5]}"#).unwrap();
        all.read_line(r#"{"measure":"snapshots","series":"delta","unmeasured":"Unimplemented: not yet"}"#).unwrap();
        assert_eq!(all.find("path", "up bare").unwrap().statistic(Statistic::P50), Some(2.5));
        assert_eq!(all.find("path", "up bare").unwrap().statistic(Statistic::Max), Some(3.0));
        assert!(all.find("snapshots", "delta").unwrap().unmeasured.is_some());
        assert!(all.find("path", "delta").is_none());
        assert_eq!(all.with_prefix("path", "up").count(), 1);
        for wrong in [r#"{"measure":"path","series":"x","unit":"ms","samples":[]}"#, "{broken", r#"{"series":"x"}"#] {
            assert!(all.read_line(wrong).is_err(), "{wrong}");
        }
        assert_eq!(all.to_json()[0]["p50"], 2.5);
    }
}
