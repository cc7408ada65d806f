//! Log lines on stderr, as text or JSON.

use crate::config::{ConfigError, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// To be called once, before anything logs.
pub fn start(format: LogFormat, level: &str) -> Result<(), ConfigError> {
    let filter = filter(level).map_err(|error| ConfigError(format!("log_level is {level:?}: {error}")))?;
    // A line that cannot be written is lost. Told of that, the subscriber would say so on stderr as well, and panic.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
    Ok(())
}

/// A level, or levels of modules as in `info,pool=debug`. Filters by the content of fields would take a regular
/// expression engine along, which is a tenth of what a node's process holds in memory.
pub fn filter(level: &str) -> Result<Targets, String> {
    level.parse().map_err(|error| format!("{error}"))
}
