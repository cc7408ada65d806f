//! Which charts are drawn of which series.

use super::chart::{bars, curves};
use super::series::{AllSeries, Series, Statistic};

/// File name without ending, and the SVG; only of what was measured.
pub(super) fn all(all: &AllSeries) -> Vec<(&'static str, String)> {
    let curve = |name, title, measure, prefix| Some((name, of_prefix(all, title, measure, prefix)?));
    let plots = [
        curve("path-up", "From CreateVolume to a published ext4 of 10 GiB", "path", "up "),
        curve("path-down", "From NodeUnpublishVolume to DeleteVolume", "path", "down "),
        curve("scale-stage", "Staging with few and with many volumes there", "scale", "stage "),
        steps(all).map(|svg| ("path-steps", svg)),
        grouped(all, "Snapshots and clones, p50", "snapshots", &["snapshot ", "clone ", "allocated ", "delta "])
            .map(|svg| ("snapshots", svg)),
        grouped(all, "fio, 4 KiB random, median", "fio", &["4k randread ", "4k randwrite "]).map(|svg| ("fio-4k", svg)),
        grouped(all, "fio, 1 MiB sequential, median", "fio", &["1m read ", "1m write "]).map(|svg| ("fio-1m", svg)),
        grouped(all, "Memory of the node process", "scale", &["memory "]).map(|svg| ("scale-memory", svg)),
    ];
    plots.into_iter().flatten().collect()
}

fn of_prefix(all: &AllSeries, title: &str, measure: &str, prefix: &str) -> Option<String> {
    let found: Vec<&Series> = all.with_prefix(measure, prefix).collect();
    let samples = |series: &&Series| (series.name.trim_start_matches(prefix).to_owned(), series.sorted());
    curves(title, &found.first()?.unit, &found.iter().map(samples).collect::<Vec<_>>())
}

fn grouped(all: &AllSeries, title: &str, measure: &str, prefixes: &[&str]) -> Option<String> {
    let mut unit = None;
    let mut groups = Vec::new();
    for prefix in prefixes {
        let mut medians = Vec::new();
        for series in all.with_prefix(measure, prefix) {
            unit.get_or_insert_with(|| series.unit.clone());
            medians.extend(median(series).map(|value| (series.name.trim_start_matches(prefix).to_owned(), value)));
        }
        if !medians.is_empty() {
            groups.push((prefix.trim().to_owned(), medians));
        }
    }
    bars(title, &unit?, &groups)
}

/// One bar a call, in their order.
fn steps(all: &AllSeries) -> Option<String> {
    let mut found: Vec<&Series> = all.with_prefix("path", "step ").collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let unit = found.first()?.unit.clone();
    let bar = |series: &&Series| {
        let name = series.name.trim_start_matches("step ").to_owned();
        median(series).map(|value| (String::new(), vec![(name, value)]))
    };
    bars("Each call of that path, p50", &unit, &found.iter().filter_map(bar).collect::<Vec<_>>())
}

fn median(series: &Series) -> Option<f64> {
    series.statistic(Statistic::P50)
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::assert_well_formed;
    use super::*;

    #[test]
    fn plots_of_what_was_measured() {
        let mut series = AllSeries::default();
        assert!(all(&series).is_empty());
        for (measure, name) in [
            ("path", "up hawser"),
            ("path", "up bare"),
            ("path", "step 1 CreateVolume"),
            ("snapshots", "clone 1 TiB many"),
            ("fio", "4k randread pool"),
        ] {
            let line = format!(r#"{{"measure":"{measure}","series":"{name}","unit":"ms","samples":[1.5,3]}}"#);
            series.read_line(&line).unwrap();
        }
        series.read_line(r#"{"measure":"snapshots","series":"delta x","unmeasured":"no"}"#).unwrap();
        let plots = all(&series);
        assert_eq!(
            plots.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["path-up", "path-steps", "snapshots", "fio-4k"]
        );
        plots.iter().for_each(|(_, svg)| assert_well_formed(svg));
    }
}
