//! The figures, for people and for programs.

use super::figures::{Figures, Summary, code_name};
use super::steps::Step;
use super::target::Target;
use crate::cli::BenchArgs;
use crate::output::{Table, printable};
use crate::units::{format_duration, format_size};
use serde_json::{Value, json};
use std::time::Duration;

pub fn to_json(args: &BenchArgs, target: &Target, figures: &Figures, left: &[String], was_interrupted: bool) -> Value {
    let summary = |samples: &[u32]| Summary::of(samples).map(|summary| summary.as_json());
    let calls: serde_json::Map<String, Value> =
        figures.calls.iter().filter_map(|(step, s)| Some((step.as_str().to_owned(), summary(s)?))).collect();
    json!({
        "driver": {"name": target.name, "version": target.version, "node": target.node_id},
        "volumes": args.volumes,
        "concurrency": args.concurrency,
        "rounds": args.rounds,
        "access": access(args),
        "size_bytes": args.size_bytes,
        "steps": target.up.iter().map(|step| step.as_str()).collect::<Vec<_>>(),
        "calls": calls,
        "up": summary(&figures.up),
        "down": summary(&figures.down),
        "up_per_second": per_second(figures.up.len(), figures.up_in_all),
        "down_per_second": per_second(figures.down.len(), figures.down_in_all),
        "errors": figures.errors_as_json(),
        "failed": figures.failed,
        "left_behind": left,
        "interrupted": was_interrupted,
    })
}

pub fn to_text(args: &BenchArgs, target: &Target, figures: &Figures, left: &[String]) -> String {
    let mut text = format!(
        "{} {} on node {}: {} volumes ({}, {}), {} at a time, {} rounds\n",
        printable(&target.name),
        printable(&target.version),
        printable(&target.node_id),
        args.volumes,
        access(args),
        format_size(args.size_bytes),
        args.concurrency,
        args.rounds
    );
    for (step, missing) in [
        (Step::ControllerPublish, "not advertised, so it is not called: ControllerPublishVolume\n"),
        (Step::NodeStage, "not advertised, so it is not called: NodeStageVolume\n"),
    ] {
        if !target.has(step) {
            text.push_str(missing);
        }
    }
    text.push('\n');
    text.push_str(&times(figures).to_string());
    for (what, count, took) in
        [("up", figures.up.len(), figures.up_in_all), ("down", figures.down.len(), figures.down_in_all)]
    {
        if let Some(rate) = per_second(count, took) {
            text.push_str(&format!("\n{count} volumes {what} in {}: {rate:.1} a second", format_duration(took)));
        }
    }
    text.push('\n');
    if !figures.errors.is_empty() {
        let mut table = Table::new(&["REFUSED", "CODE", "TIMES", "THE FIRST SAID"]);
        for ((step, code), refusals) in &figures.errors {
            let cells = [code_name(*code), refusals.count.to_string(), refusals.message.clone()];
            table.row([step.as_str().to_owned()].into_iter().chain(cells));
        }
        text.push_str(&format!("\n{table}"));
    }
    if !left.is_empty() {
        text.push_str(&format!(
            "\nLEFT BEHIND\n{}\n",
            left.iter().map(|l| printable(l)).collect::<Vec<_>>().join("\n")
        ));
    }
    text
}

fn times(figures: &Figures) -> Table {
    let mut table = Table::new(&["CALL", "COUNT", "P50", "P95", "P99", "MAX"]);
    let mut row = |name: &str, samples: &[u32]| {
        if let Some(summary) = Summary::of(samples) {
            let times = [summary.p50, summary.p95, summary.p99, summary.max];
            let times = times.map(|us| format_duration(Duration::from_micros(us.into())));
            table.row([name.to_owned(), summary.count.to_string()].into_iter().chain(times));
        }
    };
    for step in Step::ALL {
        row(step.as_str(), figures.calls.get(&step).map_or(&[], Vec::as_slice));
    }
    row("whole path up", &figures.up);
    row("whole path down", &figures.down);
    table
}

fn access(args: &BenchArgs) -> &str {
    if args.block { "block" } else { &args.fs }
}

/// `None` when nothing was done.
fn per_second(count: usize, took: Duration) -> Option<f64> {
    let seconds = took.as_secs_f64();
    let count = u32::try_from(count).ok().filter(|count| *count > 0 && seconds > 0.0)?;
    Some(f64::from(count) / seconds)
}
