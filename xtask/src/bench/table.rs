//! The rows as a table, for a terminal or for a document.

use super::comparison::{Goal, Row};

const HEADER: [&str; 7] = ["MEASURE", "WHAT", "OURS", "BASELINE", "RATIO", "GOAL", "VERDICT"];

pub(super) fn text(rows: &[Row]) -> String {
    let mut lines = vec![HEADER.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let mut widths = [0; HEADER.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}

pub(super) fn markdown(rows: &[Row]) -> String {
    let line = |cells: &[String]| {
        format!("| {} |\n", cells.iter().map(|c| c.replace('|', "\\|")).collect::<Vec<_>>().join(" | "))
    };
    let header = HEADER.map(|name| {
        let (first, rest) = name.split_at(1);
        format!("{first}{}", rest.to_lowercase())
    });
    let mut text = line(&header);
    text.push_str(&format!("|{}\n", "---|".repeat(HEADER.len())));
    rows.iter().for_each(|row| text.push_str(&line(&cells(row))));
    text
}

fn cells(row: &Row) -> [String; HEADER.len()] {
    let figure = |value: Option<f64>| value.map_or(String::new(), |value| format!("{} {}", rounded(value), row.unit));
    let ratio = row.ratio.map_or(String::new(), |ratio| match row.goal {
        Goal::TimesFaster(_) => format!("{} times faster", rounded(ratio)),
        _ => rounded(ratio),
    });
    [
        row.measure.to_owned(),
        row.about.to_owned(),
        figure(row.ours),
        figure(row.baseline),
        ratio,
        row.goal.to_text(&row.unit),
        row.verdict.to_text(),
    ]
}

/// Three significant digits, and no more than are there.
pub(super) fn rounded(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::comparison::Verdict;
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |about, ours, baseline, ratio, goal, verdict| Row {
            measure: "path",
            about,
            unit: "ms".to_owned(),
            ours,
            baseline,
            ratio,
            goal,
            verdict,
        };
        vec![
            row("up", Some(7.512), Some(89.04), Some(11.853), Goal::TimesFaster(10.0), Verdict::Reached),
            row("restart", Some(1234.5), None, None, Goal::Below(1000.0), Verdict::NotReached),
            row("delta", None, None, None, Goal::AtMost(2.0), Verdict::NotMeasured("a|b".to_owned())),
        ]
    }

    #[test]
    fn for_a_terminal() {
        let expected = "\
MEASURE  WHAT     OURS     BASELINE  RATIO              GOAL             VERDICT
path     up       7.51 ms  89.0 ms   11.9 times faster  10 times faster  reached
path     restart  1234 ms                               at most 1000 ms  NOT reached
path     delta                                          at most 2        not measured (a|b)
";
        assert_eq!(text(&rows()), expected);
    }

    #[test]
    fn for_a_document() {
        let markdown = markdown(&rows());
        let lines: Vec<&str> = markdown.lines().collect();
        assert_eq!(lines[0], "| Measure | What | Ours | Baseline | Ratio | Goal | Verdict |");
        assert_eq!(lines[1], "|---|---|---|---|---|---|---|");
        assert_eq!(lines[2], "| path | up | 7.51 ms | 89.0 ms | 11.9 times faster | 10 times faster | reached |");
        assert!(lines[4].ends_with("| not measured (a\\|b) |"));
    }

    #[test]
    fn digits() {
        for (value, text) in [(0.9731, "0.973"), (1.5, "1.50"), (12.34, "12.3"), (99_999.6, "100000"), (0.0, "0.000")] {
            assert_eq!(rounded(value), text);
        }
    }
}
