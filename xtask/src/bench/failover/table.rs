//! The samples as a table: a line for each fault, workload and mover.

use super::super::table::rounded;
use super::phases::{End, NAMES, Sample};

const STOCK: &str = "stock";
const SHARES: [(&str, f64); 4] = [("P50", 0.5), ("P95", 0.95), ("P99", 0.99), ("MAX", 1.0)];

/// Seconds: from the fault to the first new durable write, and the outage, which begins with the last write of the old pod
/// that was acknowledged; phases by their median.
pub(super) fn text(samples: &[Sample]) -> String {
    let mut groups: Vec<Vec<&Sample>> = Vec::new();
    for sample in samples {
        match groups.iter_mut().find(|group| group.first().is_some_and(|first| key(first) == key(sample))) {
            Some(group) => group.push(sample),
            None => groups.push(vec![sample]),
        }
    }
    let mut header: Vec<String> = ["FAULT", "WORKLOAD", "BY", "RUNS"].map(str::to_owned).to_vec();
    header.extend(SHARES.map(|(name, _)| name.to_owned()));
    header.extend(SHARES.map(|(name, _)| format!("OUTAGE {name}")));
    header.extend(NAMES.map(str::to_uppercase));
    header.extend(["NOT MOVED", "LOST", "LATE", "OURS:STOCK"].map(str::to_owned));
    let mut lines = vec![header];
    lines.extend(groups.iter().map(|group| cells(group, samples)));
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    let problems: Vec<&String> = samples.iter().flat_map(|sample| &sample.problems).collect();
    if !problems.is_empty() {
        text.push_str(&format!("\n{} problems:\n", problems.len()));
        problems.iter().for_each(|problem| text.push_str(&format!("  {problem}\n")));
    }
    text
}

fn key(sample: &Sample) -> (&str, &str, &str, &str, bool) {
    (&sample.fault, &sample.workload, &sample.mover, &sample.status_frequency, sample.attach_by_nodes)
}

fn cells(group: &[&Sample], all: &[Sample]) -> Vec<String> {
    let (fault, workload, mover, frequency, attach_by_nodes) = key(group[0]);
    let mut mover = if frequency == "1s" || frequency.is_empty() {
        mover.to_owned()
    } else {
        format!("{mover}, status {frequency}")
    };
    if !attach_by_nodes {
        mover.push_str(", controller attaches");
    }
    let totals = sorted(group.iter().filter_map(|sample| moved_ms(sample)));
    let mut cells = vec![fault.to_owned(), workload.to_owned(), mover, group.len().to_string()];
    cells.extend(SHARES.map(|(_, share)| seconds(quantile(&totals, share))));
    let outages = sorted(group.iter().filter_map(|sample| sample.outage_ms));
    cells.extend(SHARES.map(|(_, share)| seconds(quantile(&outages, share))));
    for phase in 0..NAMES.len() {
        cells.push(seconds(quantile(&sorted(group.iter().filter_map(|sample| sample.phases[phase])), 0.5)));
    }
    cells.push((group.len() - totals.len()).to_string());
    cells.push(group.iter().map(|sample| sample.lost).sum::<u64>().to_string());
    cells.push(group.iter().map(|sample| sample.late).sum::<u64>().to_string());
    cells.push(ratio(group[0], quantile(&totals, 0.5), all));
    cells
}

/// Of the medians, on the same kind of workload. What stock did not do within its limit took at least that.
fn ratio(of: &Sample, ours: Option<f64>, all: &[Sample]) -> String {
    let stock = all.iter().filter(|sample| sample.mover == STOCK && sample.workload == of.workload);
    let stock: Vec<(f64, bool)> = stock
        .filter_map(|sample| match sample.end {
            End::Moved(ms) => Some((ms, true)),
            End::NotWithin(ms) => Some((ms, false)),
            End::Failed => None,
        })
        .collect();
    let median = quantile(&sorted(stock.iter().map(|(ms, _)| *ms)), 0.5);
    match ours.zip(median).filter(|_| of.mover != STOCK) {
        Some((ours, stock_ms)) => {
            let beyond = if stock.iter().any(|(_, moved)| !moved) { ">" } else { "" };
            format!("1:{beyond}{}", rounded(stock_ms / ours))
        }
        None => String::new(),
    }
}

fn moved_ms(sample: &Sample) -> Option<f64> {
    if let End::Moved(ms) = sample.end { Some(ms) } else { None }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The smallest value that so large a share does not exceed.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

fn seconds(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.2}", ms / 1e3))
}

#[cfg(test)]
mod tests {
    use super::super::phases::tests::LINE;
    use super::*;

    #[test]
    fn quantiles() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let of = |share| quantile(&values, share);
        assert_eq!((of(0.5), of(0.95), of(0.99), of(1.0)), (Some(50.0), Some(95.0), Some(99.0), Some(100.0)));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn what_stock_did_not_do_is_a_bound() {
        let stock = LINE.replace("supervisor", "stock").replace("\"total_ms\":3500.0", "\"total_ms\":null");
        let samples: Vec<Sample> = [LINE, &stock].into_iter().map(|line| Sample::parse(line).unwrap()).collect();
        let text = text(&samples);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("node-killed  deployment  supervisor  1     3.50"), "{text}");
        assert!(lines[1].ends_with("1:>34.3"), "{text}");
        assert!(lines[1].contains(" 3.45 "), "{text}");
        assert!(lines[2].contains("stock") && lines[2].contains(" -"), "{text}");
    }
}
