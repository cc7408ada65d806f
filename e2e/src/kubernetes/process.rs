//! Programs that run as long as the lab does, and waiting for them.

use crate::client::is_interrupted;
use crate::failure::{Context, Failure, Result};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Killed when dropped. What it says is in `<logs>/<name>.log`.
pub(super) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub(super) fn start(name: &str, mut command: Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log).context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error when it has ended, with what it said last.
    pub(super) fn ensure_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("{} ended ({status}): {}", self.name, self.last_lines()).into()),
        }
    }

    pub(super) fn last_lines(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(4).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What one look gives: what was waited for, or what is there instead.
pub(super) type Seen<T> = std::result::Result<T, String>;

/// Looks until it is there. An error ends the waiting at once.
pub(super) fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        match look().context(|| format!("waiting for {what}"))? {
            Ok(found) => return Ok(found),
            Err(_) if is_interrupted() => return Err(Failure::from("interrupted")),
            Err(seen) if began.elapsed() > limit => {
                return Err(format!("{what}: not within {} s; seen last: {seen}", limit.as_secs()).into());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The first child of a process (proc_pid_stat(5), field 4).
pub(super) fn child_of(parent: u32) -> Option<u32> {
    let pids = std::fs::read_dir("/proc").ok()?.flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
        fields.and_then(|mut fields| fields.nth(1)?.parse::<u32>().ok()) == Some(parent)
    })
}
