//! What the demo tells while it runs, and its table and verdict at the end.

use crate::cli::{DemoArgs, Fault};
use crate::output::{Output, Table};
use crate::units::format_duration;
use serde_json::{Value, json};
use std::time::Duration;
use volume::Error;

pub struct Report {
    output: Output,
    fault: &'static str,
    steps: Vec<Step>,
    /// What the demo claims, and whether it held.
    checks: Vec<(String, bool)>,
    skipped: Vec<String>,
    /// Times that people ask for, from the fault on.
    times: Vec<(&'static str, Duration)>,
}

struct Step {
    who: String,
    what: String,
    took: Duration,
    note: String,
}

impl Report {
    pub fn new(output: Output, args: &DemoArgs) -> Self {
        let fault = match args.fault {
            Fault::Kill => "kill",
            Fault::Freeze => "freeze",
        };
        Self { output, fault, steps: Vec::new(), checks: Vec::new(), skipped: Vec::new(), times: Vec::new() }
    }

    /// One line of the story.
    pub fn say(&self, line: &str) {
        if !self.output.json {
            self.output.print(&Value::Null, line);
        }
    }

    /// A line without a time.
    pub fn aside(&self, line: &str) {
        self.say(&format!("  {:>9}  {line}", ""));
    }

    pub fn chapter(&self, title: &str) {
        self.say(&format!("\n{title}"));
    }

    pub fn step(&mut self, who: &str, what: &str, took: Duration, note: &str) {
        self.say(&format!(
            "  {:>9}  {who:<10} {what}{}{note}",
            format_duration(took),
            if note.is_empty() { "" } else { "  " }
        ));
        self.steps.push(Step { who: who.to_owned(), what: what.to_owned(), took, note: note.to_owned() });
    }

    /// Something that must hold, and does or does not.
    pub fn check(&mut self, claim: &str, holds: bool) {
        self.say(&format!("  {:>9}  {claim}", if holds { "ok" } else { "FAILED" }));
        self.checks.push((claim.to_owned(), holds));
    }

    pub fn skip(&mut self, what: &str) {
        self.say(&format!("  {:>9}  {what}", "SKIPPED"));
        self.skipped.push(what.to_owned());
    }

    pub fn time(&mut self, what: &'static str, took: Duration) {
        self.times.push((what, took));
    }

    pub fn is_pass(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|(_, holds)| *holds)
    }

    /// Prints the table of times and the verdict.
    pub fn finish(&self, error: Option<&Error>) {
        let pass = error.is_none() && self.is_pass();
        let verdict = if pass { "PASS" } else { "FAIL" };
        let value = json!({
            "verdict": verdict,
            "fault": self.fault,
            "error": error.map(Error::chain),
            "steps": self.steps.iter().map(|s| {
                json!({"who": s.who, "what": s.what, "took_us": micros(s.took), "note": s.note})
            }).collect::<Vec<_>>(),
            "times": self.times.iter().map(|(what, took)| json!({"what": what, "took_us": micros(*took)})).collect::<Vec<_>>(),
            "checks": self.checks.iter().map(|(claim, holds)| json!({"claim": claim, "holds": holds})).collect::<Vec<_>>(),
            "skipped": self.skipped,
        });
        self.output.print(&value, &self.text(verdict, error));
    }

    fn text(&self, verdict: &str, error: Option<&Error>) -> String {
        let mut table = Table::new(&["STEP", "WHERE", "TIME"]);
        for step in &self.steps {
            table.row([step.what.clone(), step.who.clone(), format_duration(step.took)]);
        }
        for (what, took) in &self.times {
            table.row([(*what).to_owned(), String::new(), format_duration(*took)]);
        }
        let mut text = format!("\n{table}\n");
        for (claim, _) in self.checks.iter().filter(|(_, holds)| !holds) {
            text.push_str(&format!("does not hold: {claim}\n"));
        }
        for skipped in &self.skipped {
            text.push_str(&format!("skipped: {skipped}\n"));
        }
        let held = self.checks.iter().filter(|(_, holds)| *holds).count();
        text.push_str(&format!("verdict: {verdict} ({held} of {} checks hold)", self.checks.len()));
        if let Some(error) = error {
            text.push_str(&format!("\nbecause: {}", error.chain()));
        }
        text
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
