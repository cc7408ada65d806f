//! The supervisor's own history: when it began which stage for a node.

use super::clock::monotonic_ns;
use super::installed;
use crate::failure::Result;
use crate::kubernetes::Lab;
use serde_json::Value;

/// One stage of the failover of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) node: String,
    pub(super) name: String,
    /// When it began, on CLOCK_MONOTONIC.
    pub(super) at_ns: u64,
}

#[derive(Debug, Default, Clone)]
pub(super) struct History {
    pub(super) stages: Vec<Stage>,
    /// What stands in the way of a failover, in the supervisor's words.
    pub(super) refusals: Vec<String>,
}

impl History {
    /// What it says of the time since `from_ns`. Empty where no supervisor keeps one.
    pub(super) fn since(lab: &Lab, from_ns: u64) -> Result<Self> {
        let kept = installed::history(lab)?;
        let mut history =
            parse(kept["history"].as_str().unwrap_or_default(), kept["status"].as_str().unwrap_or_default())?;
        history.stages.retain(|stage| stage.at_ns >= from_ns);
        Ok(history)
    }

    /// When a node counted as lost: its failover began.
    pub(super) fn detected(&self, node: &str) -> Option<u64> {
        self.stages.iter().find(|stage| stage.node == node).map(|stage| stage.at_ns)
    }
}

/// One object of JSON a line, and one of how things stand.
fn parse(lines: &str, status: &str) -> Result<History> {
    let mut history = History::default();
    for line in lines.lines() {
        // Of another version, or cut off: other lines still count.
        let Ok(value) = serde_json::from_str::<Value>(line) else { continue };
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        if let Some(wall_ns) = unix_ns(&text("at")) {
            let at_ns = monotonic_ns(wall_ns)?;
            history.stages.push(Stage { node: text("node"), name: text("stage"), at_ns });
        }
    }
    let status: Value = serde_json::from_str(status).unwrap_or_default();
    for node in status["nodes"].as_array().into_iter().flatten() {
        if let Some(refusal) = node["refusal"].as_str() {
            history.refusals.push(format!("{}: {refusal}", node["node"].as_str().unwrap_or_default()));
        }
    }
    Ok(history)
}

/// Of a time in UTC (RFC 3339), in nanoseconds since 1970.
fn unix_ns(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':');
    let (hours, minutes) = (time.next()?.parse::<u64>().ok()?, time.next()?.parse::<u64>().ok()?);
    let (seconds, fraction) = time.next().map(|part| part.split_once('.').unwrap_or((part, "0")))?;
    let seconds = seconds.parse::<u64>().ok()?;
    let nanoseconds = format!("{fraction:0<9}").get(..9)?.parse::<u64>().ok()?;
    // Years begin in March, so that a day that may be missing is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day.checked_sub(1)?;
    let days = days.checked_sub(719_468)?;
    Some((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000_000_000 + nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(unix_ns("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(unix_ns("2026-11-26T16:57:44.250Z"), Some(1_795_712_264_250_000_000));
        assert_eq!(unix_ns("2024-02-29T00:00:00Z"), Some(1_709_164_800_000_000_000));
        assert_eq!(unix_ns("yesterday"), None);
    }

    #[test]
    fn lines_and_refusals() {
        let lines = r#"{"at":"2026-11-26T16:57:44.250Z","node":"node-1","stage":"fencing","took_ms":3,"by":"a"}
cut off"#;
        let status = r#"{"nodes":[{"node":"node-2","suspected":null,"refusal":"most nodes are out of sight"}]}"#;
        let history = parse(lines, status).unwrap();
        assert_eq!(history.stages.len(), 1);
        assert!(history.detected("node-1").is_some() && history.detected("node-2").is_none());
        assert_eq!(history.refusals, ["node-2: most nodes are out of sight"]);
        assert!(parse("", "").unwrap().stages.is_empty());
    }
}
