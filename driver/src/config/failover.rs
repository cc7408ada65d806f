//! `[failover]`: whether this process supervises nodes, and when it counts one as lost.

use super::keys::{Raw, number, truth, unknown_key, wrong_value};
use super::{ConfigError, Mode, Setting};
use std::time::Duration;

/// `[failover]`, when it is enabled and this process is a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverSettings {
    /// Checked.
    pub config: failover::Config,
    /// What this replica is called among those of which one leads; no two have the same.
    pub replica: String,
}

/// What has been set so far of `[failover]`.
#[derive(Debug, Default)]
pub struct RawFailover {
    enabled: Option<bool>,
    replica: Option<String>,
    config: failover::Config,
}

pub const FAILOVER_KEYS: [&str; 22] = [
    "action_timeout_ms",
    "enabled",
    "fence_timeout_ms",
    "flap_window_ms",
    "given_up_ms",
    "idle_poll_ms",
    "isolated_ms",
    "late_ms",
    "max_at_once",
    "max_gap_ms",
    "min_visible_percent",
    "poll_ms",
    "reattach_warn_ms",
    "refusal_repeat_ms",
    "replica",
    "retry_max_ms",
    "retry_ms",
    "return_stable_ms",
    "storage_stale_ms",
    "suspect_ms",
    "unwitnessed_ms",
    // Of the agents' connections, and set there.
    "heartbeat_ms",
];
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

impl RawFailover {
    pub fn apply(&mut self, key: &str, setting: &Setting) -> Result<(), ConfigError> {
        let value = setting.value.as_str();
        let at = |expected: String| wrong_value(setting, &expected);
        let config = &mut self.config;
        let (plain, optional) = match key {
            "enabled" => {
                self.enabled = Some(truth(value).map_err(at)?);
                return Ok(());
            }
            "replica" if !value.is_empty() => {
                self.replica = Some(value.to_owned());
                return Ok(());
            }
            "replica" => return Err(at("it must not be empty".to_owned())),
            "heartbeat_ms" => return Err(at("heartbeats are set by agent.heartbeat_ms".to_owned())),
            "max_at_once" => {
                config.max_at_once = usize::try_from(number(value, 1, 1_000).map_err(at)?).unwrap_or(1);
                return Ok(());
            }
            "isolated_ms" => (None, Some(&mut config.isolated_ms)),
            "unwitnessed_ms" => (None, Some(&mut config.unwitnessed_ms)),
            "given_up_ms" => (None, Some(&mut config.given_up_ms)),
            "late_ms" => (Some(&mut config.late_ms), None),
            "suspect_ms" => (Some(&mut config.suspect_ms), None),
            "storage_stale_ms" => (Some(&mut config.storage_stale_ms), None),
            "min_visible_percent" => (Some(&mut config.min_visible_percent), None),
            "flap_window_ms" => (Some(&mut config.flap_window_ms), None),
            "return_stable_ms" => (Some(&mut config.return_stable_ms), None),
            "max_gap_ms" => (Some(&mut config.max_gap_ms), None),
            "action_timeout_ms" => (Some(&mut config.action_timeout_ms), None),
            "fence_timeout_ms" => (Some(&mut config.fence_timeout_ms), None),
            "poll_ms" => (Some(&mut config.poll_ms), None),
            "idle_poll_ms" => (Some(&mut config.idle_poll_ms), None),
            "retry_ms" => (Some(&mut config.retry_ms.0), None),
            "retry_max_ms" => (Some(&mut config.retry_ms.1), None),
            "reattach_warn_ms" => (Some(&mut config.reattach_warn_ms), None),
            "refusal_repeat_ms" => (Some(&mut config.refusal_repeat_ms), None),
            unknown => return Err(unknown_key(setting, unknown, &FAILOVER_KEYS)),
        };
        if let Some(plain) = plain {
            *plain = number(value, 0, DAY_MS).map_err(at)?;
        }
        if let Some(optional) = optional {
            let expected = |expected: String| at(format!("{expected}, or off"));
            *optional = if value == "off" { None } else { Some(number(value, 1, DAY_MS).map_err(expected)?) };
        }
        Ok(())
    }
}

impl Raw {
    /// `None` where nothing is supervised. A node may be given the controller's file.
    pub fn failover(
        &mut self,
        mode: Mode,
        has_orchestrator: bool,
        heartbeat: Option<Duration>,
    ) -> Result<Option<FailoverSettings>, ConfigError> {
        let RawFailover { enabled, replica, mut config } = std::mem::take(&mut self.failover);
        if let Some(heartbeat) = heartbeat {
            config.heartbeat_ms = u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX);
        }
        // Wrong values are told even while it is off.
        config.check().map_err(|error| ConfigError(error.to_string()))?;
        if enabled != Some(true) || mode == Mode::Node {
            return Ok(None);
        }
        if !has_orchestrator {
            return Err(ConfigError(
                "failover.enabled is true and kubernetes.enabled is not: the supervisor moves workloads through the orchestrator's API, and Kubernetes is the only one that it knows (fencing by hand works everywhere: hawser fence)"
                    .to_owned(),
            ));
        }
        let replica = replica.or_else(super::Config::host_name).filter(|name| !name.is_empty());
        let replica = replica.ok_or_else(|| {
            ConfigError("this replica has no name; set failover.replica (HAWSER_POD_NAME)".to_owned())
        })?;
        Ok(Some(FailoverSettings { config, replica }))
    }
}
