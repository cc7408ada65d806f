//! Times are milliseconds of the supervisor's own monotonic clock.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often an agent sends; the supervisor itself only needs to know what to expect.
    pub heartbeat_ms: u64,
    /// From this silence on a node does not count as seen by the supervisor. Well below `suspect_ms`, so that in a partition of the
    /// supervisor all nodes are out of sight before the first of them is suspected.
    pub late_ms: u64,
    /// Silence after which a node that the storage sees dead, too, is fenced.
    pub suspect_ms: u64,
    /// Silence after which a node is fenced although the storage sees it alive; never when absent.
    pub isolated_ms: Option<u64>,
    /// Silence after which a node is fenced when the storage cannot tell; never when absent.
    pub unwitnessed_ms: Option<u64>,
    /// How long the orchestrator must call a node lost before it is fenced though its agent is heard; never when absent.
    pub given_up_ms: Option<u64>,
    /// What the storage has shown counts for this long.
    pub storage_stale_ms: u64,
    /// Share of the nodes, in percent, of which the supervisor must see more.
    pub min_visible_percent: u64,
    /// Failovers under way at the same time.
    pub max_at_once: usize,
    /// A suspicion that was wrong makes the next one within this time slower.
    pub flap_window_ms: u64,
    /// How long a node that came back must be heard without a gap before its fence is lifted; doubled by each
    /// failover within `flap_window_ms`, up to sixteenfold.
    pub return_stable_ms: u64,
    /// A longer time between two calls means that the supervisor was frozen: it watches anew.
    pub max_gap_ms: u64,
    /// When an answer is overdue.
    pub action_timeout_ms: u64,
    pub fence_timeout_ms: u64,
    /// Between two looks at a failover that waits for others.
    pub poll_ms: u64,
    /// Between two looks at one that has ended but for the node's return, which is told by messages.
    pub idle_poll_ms: u64,
    /// Between two tries of what failed: grows from the first to the second.
    pub retry_ms: (u64, u64),
    /// After this long volumes that nobody has attached again are named in an event.
    pub reattach_warn_ms: u64,
    /// A refusal that stands is said again, and tried again, after this long.
    pub refusal_repeat_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failover: {key} is {value}, and must be {rule}")]
pub struct ConfigError {
    key: &'static str,
    value: u64,
    rule: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat_ms: 400,
            late_ms: 1_250,
            suspect_ms: 2_500,
            isolated_ms: Some(3_500),
            unwitnessed_ms: None,
            given_up_ms: Some(2_000),
            storage_stale_ms: 2_000,
            min_visible_percent: 50,
            max_at_once: 2,
            flap_window_ms: 600_000,
            return_stable_ms: 3_000,
            max_gap_ms: 1_000,
            action_timeout_ms: 5_000,
            fence_timeout_ms: 30_000,
            poll_ms: 500,
            idle_poll_ms: 15_000,
            retry_ms: (200, 5_000),
            reattach_warn_ms: 60_000,
            refusal_repeat_ms: 30_000,
        }
    }
}

impl Config {
    /// What the rules of the supervisor rest on.
    pub fn check(&self) -> Result<(), ConfigError> {
        let at_least = |key, value: u64, least: u64, why: &str| {
            let error = || ConfigError { key, value, rule: format!("at least {least} ({why})") };
            if value < least { Err(error()) } else { Ok(()) }
        };
        at_least("heartbeat_ms", self.heartbeat_ms, 50, "less only costs")?;
        at_least("late_ms", self.late_ms, 2 * self.heartbeat_ms, "two heartbeats")?;
        let out_of_sight = self.late_ms + 2 * self.heartbeat_ms;
        at_least("suspect_ms", self.suspect_ms, out_of_sight, "late_ms and two heartbeats")?;
        for (key, value) in [("isolated_ms", self.isolated_ms), ("unwitnessed_ms", self.unwitnessed_ms)] {
            value.map_or(Ok(()), |value| at_least(key, value, self.suspect_ms, "suspect_ms"))?;
        }
        at_least("return_stable_ms", self.return_stable_ms, self.late_ms, "late_ms")?;
        at_least("max_at_once", self.max_at_once as u64, 1, "0 would fence nobody; turn the supervisor off instead")?;
        at_least("poll_ms", self.poll_ms, 10, "less only costs")?;
        at_least("idle_poll_ms", self.idle_poll_ms, self.poll_ms, "poll_ms")?;
        at_least("retry_ms", self.retry_ms.0, 10, "less only costs")?;
        at_least("retry_ms", self.retry_ms.1, self.retry_ms.0, "the first of the two")?;
        at_least("action_timeout_ms", self.action_timeout_ms, 100, "an answer takes that long")?;
        at_least("fence_timeout_ms", self.fence_timeout_ms, 100, "an answer takes that long")?;
        at_least("refusal_repeat_ms", self.refusal_repeat_ms, 1_000, "less only floods")?;
        let least_gap = 2 * self.heartbeat_ms;
        at_least("max_gap_ms", self.max_gap_ms, least_gap, "two heartbeats, or a busy machine counts as frozen")?;
        if self.max_gap_ms >= self.suspect_ms {
            let rule = format!("below suspect_ms ({})", self.suspect_ms);
            return Err(ConfigError { key: "max_gap_ms", value: self.max_gap_ms, rule });
        }
        if self.min_visible_percent > 99 {
            let rule = "below 100".to_owned();
            return Err(ConfigError { key: "min_visible_percent", value: self.min_visible_percent, rule });
        }
        Ok(())
    }
}
