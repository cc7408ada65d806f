//! The core by itself, one rule at a time. What many of them together hold is shown by the simulation.

mod guards;
mod lab;
mod order;
mod scale;

use crate::{Config, ConfigError};

#[test]
fn the_defaults_are_sound_and_nonsense_is_refused() {
    assert_eq!(Config::default().check(), Ok(()));
    let refused = |change: fn(&mut Config)| -> ConfigError {
        let mut config = Config::default();
        change(&mut config);
        config.check().unwrap_err()
    };
    let text = refused(|c| c.late_ms = 500).to_string();
    assert_eq!(text, "failover: late_ms is 500, and must be at least 800 (two heartbeats)");
    assert!(refused(|c| c.suspect_ms = 1_500).to_string().contains("suspect_ms"));
    assert!(refused(|c| c.isolated_ms = Some(1_000)).to_string().contains("isolated_ms"));
    assert!(refused(|c| c.unwitnessed_ms = Some(1_000)).to_string().contains("unwitnessed_ms"));
    assert!(refused(|c| c.max_gap_ms = 2_500).to_string().contains("below suspect_ms"));
    assert!(refused(|c| c.max_at_once = 0).to_string().contains("max_at_once"));
    assert!(refused(|c| c.min_visible_percent = 100).to_string().contains("below 100"));
    assert!(refused(|c| c.retry_ms = (500, 100)).to_string().contains("retry_ms"));
}
