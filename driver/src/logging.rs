//! Log lines on stderr, as text or JSON.

use crate::config::{ConfigError, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// To be called once, before anything logs.
pub fn start(format: LogFormat, level: &str) -> Result<(), ConfigError> {
    let filter = EnvFilter::try_new(level).map_err(|error| ConfigError(format!("log_level is {level:?}: {error}")))?;
    // A line that cannot be written is lost. Told of that, the subscriber would say so on stderr as well, and panic.
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
