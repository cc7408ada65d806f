//! One figure against its baseline and its goal.

use super::series::{AllSeries, Series, Statistic};
use serde_json::{Value, json};

pub(super) struct Comparison {
    pub(super) measure: &'static str,
    pub(super) about: &'static str,
    pub(super) ours: Pick,
    pub(super) baseline: Option<Pick>,
    pub(super) goal: Goal,
}

/// A statistic of a series.
pub(super) type Pick = (&'static str, Statistic);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Goal {
    /// The baseline takes at least so many times what ours takes.
    TimesFaster(f64),
    /// Ours is at most so many times the baseline.
    AtMost(f64),
    /// Ours is at least this part of the baseline.
    AtLeast(f64),
    /// Ours is at most this, in its own unit.
    Below(f64),
    /// It is only shown.
    Shown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Reached,
    NotReached,
    /// There is no goal, or too few samples to judge.
    NotJudged,
    NotMeasured(String),
}

#[derive(Debug)]
pub(super) struct Row {
    pub(super) measure: &'static str,
    pub(super) about: &'static str,
    pub(super) unit: String,
    pub(super) ours: Option<f64>,
    pub(super) baseline: Option<f64>,
    pub(super) ratio: Option<f64>,
    pub(super) goal: Goal,
    pub(super) verdict: Verdict,
}

impl Comparison {
    /// `Err` when a series is missing that nobody said could not be measured.
    pub(super) fn judge(&self, all: &AllSeries, quick: bool) -> Result<Row, String> {
        let find =
            |(name, _): &Pick| all.find(self.measure, name).ok_or_else(|| format!("nothing was measured of {name:?}"));
        let ours = find(&self.ours)?;
        let baseline = self.baseline.as_ref().map(find).transpose()?;
        let row = |verdict| Row {
            measure: self.measure,
            about: self.about,
            unit: ours.unit.clone(),
            ours: None,
            baseline: None,
            ratio: None,
            goal: self.goal,
            verdict,
        };
        if let Some(why) = [Some(ours), baseline].into_iter().flatten().find_map(|series| series.unmeasured.clone()) {
            return Ok(row(Verdict::NotMeasured(why)));
        }
        let value = |series: &Series, (_, statistic): &Pick| {
            series.statistic(*statistic).ok_or_else(|| format!("{:?} has no samples", series.name))
        };
        let figure = value(ours, &self.ours)?;
        let base = match (baseline, &self.baseline) {
            (Some(series), Some(pick)) => Some(value(series, pick)?),
            _ => None,
        };
        let ratio = base.map(|base| if self.goal.is_speedup() { base / figure } else { figure / base });
        let verdict = match self.goal.holds(figure, ratio) {
            _ if quick => Verdict::NotJudged,
            None => Verdict::NotJudged,
            Some(true) => Verdict::Reached,
            Some(false) => Verdict::NotReached,
        };
        Ok(Row { ours: Some(figure), baseline: base, ratio, ..row(verdict) })
    }
}

impl Goal {
    fn is_speedup(self) -> bool {
        matches!(self, Self::TimesFaster(_))
    }

    /// `None` when there is nothing to hold.
    fn holds(self, figure: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::TimesFaster(least) | Self::AtLeast(least) => ratio.map(|ratio| ratio >= least),
            Self::AtMost(most) => ratio.map(|ratio| ratio <= most),
            Self::Below(most) => Some(figure <= most),
            Self::Shown => None,
        }
    }

    pub(super) fn to_text(self, unit: &str) -> String {
        match self {
            Self::TimesFaster(least) => format!("{least} times faster"),
            Self::AtMost(most) => format!("at most {most}"),
            Self::AtLeast(least) => format!("at least {least}"),
            Self::Below(most) => format!("at most {most} {unit}"),
            Self::Shown => String::new(),
        }
    }
}

impl Verdict {
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Reached => "reached".to_owned(),
            Self::NotReached => "NOT reached".to_owned(),
            Self::NotJudged => "-".to_owned(),
            Self::NotMeasured(why) => format!("not measured ({why})"),
        }
    }
}

impl Row {
    pub(super) fn to_json(&self) -> Value {
        json!({
            "measure": self.measure,
            "about": self.about,
            "unit": self.unit,
            "ours": self.ours,
            "baseline": self.baseline,
            "ratio": self.ratio,
            "goal": self.goal.to_text(&self.unit),
            "verdict": self.verdict.to_text(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Statistic::P50;

    fn series(lines: &[&str]) -> AllSeries {
        let mut all = AllSeries::default();
        lines.iter().for_each(|line| all.read_line(line).unwrap());
        all
    }

    fn judged(goal: Goal, ours: f64, base: Option<f64>) -> Row {
        let line =
            |name: &str, value: f64| format!(r#"{{"measure":"m","series":"{name}","unit":"ms","samples":[{value}]}}"#);
        let all = series(&[&line("ours", ours), &line("base", base.unwrap_or(1.0))]);
        let baseline = base.map(|_| ("base", P50));
        Comparison { measure: "m", about: "a", ours: ("ours", P50), baseline, goal }.judge(&all, false).unwrap()
    }

    #[test]
    fn goals() {
        for (goal, ours, base, ratio, verdict) in [
            (Goal::TimesFaster(10.0), 8.0, Some(89.0), Some(11.125), Verdict::Reached),
            (Goal::TimesFaster(10.0), 10.0, Some(89.0), Some(8.9), Verdict::NotReached),
            (Goal::AtMost(1.5), 3.0, Some(2.0), Some(1.5), Verdict::Reached),
            (Goal::AtMost(1.5), 4.0, Some(2.0), Some(2.0), Verdict::NotReached),
            (Goal::AtLeast(0.95), 96.0, Some(100.0), Some(0.96), Verdict::Reached),
            (Goal::AtLeast(0.95), 94.0, Some(100.0), Some(0.94), Verdict::NotReached),
            (Goal::Below(8.0), 8.0, None, None, Verdict::Reached),
            (Goal::Below(8.0), 8.1, None, None, Verdict::NotReached),
            (Goal::Shown, 8.0, Some(4.0), Some(2.0), Verdict::NotJudged),
        ] {
            let row = judged(goal, ours, base);
            assert_eq!((row.ratio, row.verdict), (ratio, verdict), "{goal:?}");
        }
    }

    #[test]
    fn what_was_not_measured_is_said_and_what_is_missing_is_an_error() {
        let comparison = Comparison {
            measure: "m",
            about: "a",
            ours: ("ours", P50),
            baseline: Some(("base", P50)),
            goal: Goal::AtMost(1.0),
        };
        let ours = r#"{"measure":"m","series":"ours","unit":"ms","samples":[1]}"#;
        let missing = series(&[r#"{"measure":"m","series":"base","unmeasured":"no such call"}"#, ours]);
        let row = comparison.judge(&missing, false).unwrap();
        assert_eq!(row.verdict, Verdict::NotMeasured("no such call".to_owned()));
        assert!(comparison.judge(&series(&[ours]), false).unwrap_err().contains("\"base\""));
        let both = series(&[ours, r#"{"measure":"m","series":"base","unit":"ms","samples":[2]}"#]);
        assert_eq!(comparison.judge(&both, true).unwrap().verdict, Verdict::NotJudged);
    }
}
