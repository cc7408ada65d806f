//! For tests only: `HAWSER_TEST_EFFECT` ends or stops this process right after one of its side effects.
//!
//! A comma-separated list of `kill:N` (SIGKILL after effect N), `stop:N` (SIGSTOP after effect N, until SIGCONT) and
//! `log:FILE` (append `N name` of each effect). Anything else is an error, so a mistyped test cannot pass.

use crate::config::ConfigError;
use host::Effects;
use nix::sys::signal::{Signal, raise};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Mutex;

pub const VARIABLE: &str = "HAWSER_TEST_EFFECT";

pub fn from_environment() -> Result<Effects, ConfigError> {
    match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => parse(&text),
        _ => Ok(Effects::default()),
    }
}

fn parse(text: &str) -> Result<Effects, ConfigError> {
    let wrong = |item: &str| {
        ConfigError(format!("environment variable {VARIABLE}: {item:?} is not one of kill:N, stop:N, log:FILE"))
    };
    let mut signals: Vec<(u64, Signal)> = Vec::new();
    let mut logs: Vec<Mutex<File>> = Vec::new();
    for item in text.split(',') {
        let (verb, argument) = item.split_once(':').ok_or_else(|| wrong(item))?;
        let number = || argument.parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(|| wrong(item));
        match verb {
            "kill" => signals.push((number()?, Signal::SIGKILL)),
            "stop" => signals.push((number()?, Signal::SIGSTOP)),
            "log" => {
                let opened = OpenOptions::new().create(true).append(true).open(argument);
                logs.push(Mutex::new(opened.map_err(|error| ConfigError(format!("{VARIABLE}: {argument}: {error}")))?));
            }
            _ => return Err(wrong(item)),
        }
    }
    Ok(Effects::with_action(move |number, name| {
        for log in &logs {
            let mut log = log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // One write: it must be complete before the signal. A full disk fails the test that reads the log.
            let _ = log.write_all(format!("{number} {name}\n").as_bytes());
        }
        for (_, signal) in signals.iter().filter(|(at, _)| *at == number) {
            // raise(3) is directed at this thread, so not one instruction of the work follows the effect.
            let _ = raise(*signal);
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_effects() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let effects = parse(&format!("log:{},kill:99", file.path().display())).unwrap();
        effects.done("first");
        effects.clone().done("second");
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "1 first\n2 second\n");
    }

    #[test]
    fn mistyped_hooks_are_errors() {
        for wrong in ["kill", "kill:", "kill:0", "kill:x", "slay:1", "kill:1,", "log:/nonexistent/x/y"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
