//! Two kinds of charts: percentile curves and bars.

use super::svg::{Anchor, Svg};
use super::table::rounded;

const COLORS: [&str; 4] = ["#1f6fb4", "#d1782a", "#3b8f5a", "#8a5aa8"];
const GRID: &str = "#ddd";
const WIDTH: f64 = 760.0;

/// Samples of several series, each sorted, over the percentile; the scale is logarithmic. `None` of nothing.
pub(super) fn curves(title: &str, unit: &str, series: &[(String, Vec<f64>)]) -> Option<String> {
    const HEIGHT: f64 = 420.0;
    const LEFT: f64 = 70.0;
    const TOP: f64 = 48.0;
    const PLOT: (f64, f64) = (510.0, 320.0);
    let values = || series.iter().flat_map(|(_, samples)| samples).copied().filter(|value| *value > 0.0);
    let low = decade_below(values().reduce(f64::min)?);
    let high = values().reduce(f64::max)?.max(low * 10.0);
    let x = |part: f64| LEFT + part * PLOT.0;
    let y = |value: f64| TOP + PLOT.1 * (1.0 - (value.max(low) / low).log10() / (high / low).log10());
    let mut svg = Svg::new(WIDTH, HEIGHT);
    svg.text(LEFT, 24.0, 16, Anchor::Start, &format!("{title}, {unit}"));
    for tick in ticks(low, high) {
        svg.line((LEFT, y(tick)), (LEFT + PLOT.0, y(tick)), GRID);
        svg.text(LEFT - 6.0, y(tick) + 4.0, 12, Anchor::End, &short(tick));
    }
    for percent in [0, 25, 50, 75, 90, 99] {
        let at = x(f64::from(percent) / 100.0);
        svg.line((at, TOP), (at, TOP + PLOT.1), GRID);
        svg.text(at, TOP + PLOT.1 + 18.0, 12, Anchor::Middle, &format!("p{percent}"));
    }
    for (number, (name, samples)) in series.iter().enumerate() {
        let color = COLORS[number % COLORS.len()];
        let count = samples.len() as f64;
        let point = |(index, value): (usize, &f64)| (x((index as f64 + 0.5) / count), y(*value));
        svg.curve(&samples.iter().enumerate().map(point).collect::<Vec<_>>(), color);
        let at = TOP + 16.0 + 22.0 * number as f64;
        svg.rect(LEFT + PLOT.0 + 16.0, at - 10.0, 12.0, 12.0, color);
        svg.text(LEFT + PLOT.0 + 34.0, at, 13, Anchor::Start, name);
    }
    Some(svg.finish())
}

/// Groups of horizontal bars, each with its name and value; the scale begins at zero. `None` of nothing.
pub(super) fn bars(title: &str, unit: &str, groups: &[(String, Vec<(String, f64)>)]) -> Option<String> {
    const ROW: f64 = 22.0;
    const LEFT: f64 = 250.0;
    const LONGEST: f64 = 400.0;
    let rows: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
    let largest = groups.iter().flat_map(|(_, bars)| bars).map(|(_, value)| *value).reduce(f64::max)?;
    let scale = if largest > 0.0 { LONGEST / largest } else { 0.0 };
    let mut svg = Svg::new(WIDTH, 60.0 + ROW * rows as f64 + 14.0 * groups.len() as f64);
    svg.text(16.0, 24.0, 16, Anchor::Start, &format!("{title}, {unit}"));
    let mut top = 44.0;
    for (group, bars) in groups {
        for (number, (name, value)) in bars.iter().enumerate() {
            let label = if group.is_empty() { name.clone() } else { format!("{group}: {name}") };
            svg.text(LEFT - 8.0, top + 15.0, 12, Anchor::End, &label);
            svg.rect(LEFT, top + 3.0, (value * scale).max(1.0), ROW - 6.0, COLORS[number % COLORS.len()]);
            svg.text(LEFT + value * scale + 8.0, top + 15.0, 12, Anchor::Start, &rounded(*value));
            top += ROW;
        }
        top += 14.0;
    }
    Some(svg.finish())
}

/// 1, 2 and 5 of each decade.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let mut ticks = Vec::new();
    let mut decade = low;
    while decade <= high && ticks.len() < 60 {
        ticks.extend([1.0, 2.0, 5.0].map(|step| step * decade).into_iter().filter(|tick| *tick <= high));
        decade *= 10.0;
    }
    ticks
}

fn decade_below(value: f64) -> f64 {
    10f64.powf(value.log10().floor())
}

fn short(value: f64) -> String {
    if value >= 1.0 { format!("{value:.0}") } else { format!("{value:.3}").trim_end_matches('0').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::assert_well_formed;
    use super::*;

    #[test]
    fn charts_are_well_formed_whatever_the_samples() {
        for samples in [vec![1.0], vec![0.0, 5.0], vec![3.0; 100], vec![0.001, 1e6]] {
            let series = [("a & b".to_owned(), samples.clone()), ("c".to_owned(), vec![2.0, 4.0])];
            assert_well_formed(&curves("t < u", "ms", &series).unwrap());
            let bars_of = samples.iter().map(|value| ("x".to_owned(), *value)).collect();
            assert_well_formed(&bars("t", "MiB", &[("g".to_owned(), bars_of)]).unwrap());
        }
        assert_well_formed(&bars("t", "MiB", &[(String::new(), vec![("zero".to_owned(), 0.0)])]).unwrap());
        assert!(curves("t", "ms", &[]).is_none() && bars("t", "ms", &[]).is_none());
    }

    #[test]
    fn ticks_are_one_two_five() {
        assert_eq!(ticks(1.0, 25.0), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(decade_below(0.35), 0.1);
        assert_eq!((short(0.05), short(200.0)), ("0.05".to_owned(), "200".to_owned()));
    }
}
