//! One line of the raw log that is of no failover: a node that was busy, and what the supervisor made of it.

use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    load: Load,
}

#[derive(Deserialize)]
pub(super) struct Load {
    node: String,
    seconds: f64,
    acked: u64,
    loadavg: String,
    suspicions: u64,
    refusals: u64,
    fences: u64,
    restarts: u64,
    samples: u64,
    samples_missed: u64,
    each: Vec<OfNode>,
}

#[derive(Deserialize)]
struct OfNode {
    node: String,
    largest_age_ms: f64,
    gaps: u64,
    gap_p50_ms: Option<f64>,
    gap_p99_ms: Option<f64>,
    gap_max_ms: Option<f64>,
}

impl Load {
    /// `None`: the line is of something else.
    pub(super) fn parse(line: &str) -> Option<Self> {
        serde_json::from_str::<Line>(line).ok().map(|line| line.load)
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "{} loaded for {:.0} s: {} suspicions, {} fences, {} refusals, {} restarts; {} acked, load {}, {} samples and {} missed\n",
            self.node,
            self.seconds,
            self.suspicions,
            self.fences,
            self.refusals,
            self.restarts,
            self.acked,
            self.loadavg,
            self.samples,
            self.samples_missed,
        );
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
        for of in &self.each {
            text.push_str(&format!(
                "  {}: largest heartbeat age {:.0} ms; gaps between {} heartbeats: P50 {}, P99 {}, MAX {} ms\n",
                of.node,
                of.largest_age_ms,
                of.gaps,
                ms(of.gap_p50_ms),
                ms(of.gap_p99_ms),
                ms(of.gap_max_ms),
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_load_says() {
        let line = r#"{"load":{"node":"node-1","seconds":600.0,"acked":7,"loadavg":"9 8 7","suspicions":1,"refusals":2,
            "fences":3,"restarts":0,"samples":5,"samples_missed":0,"each":[{"node":"node-1","largest_age_ms":410.4,
            "gaps":4,"gap_p50_ms":250.0,"gap_p99_ms":300.0,"gap_max_ms":null}]}}"#;
        let text = Load::parse(line).unwrap().text();
        assert!(text.starts_with("node-1 loaded for 600 s: 1 suspicions, 3 fences, 2 refusals"), "{text}");
        assert!(text.contains("age 410 ms; gaps between 4 heartbeats: P50 250, P99 300, MAX - ms"), "{text}");
        assert!(Load::parse(super::super::phases::tests::LINE).is_none());
    }
}
