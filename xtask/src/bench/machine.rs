//! What was measured on: figures mean nothing without it.

use crate::process;
use crate::workspace::Workspace;
use serde_json::{Value, json};
use std::process::Command;

pub(super) struct Machine {
    commit: String,
    kernel: String,
    processor: String,
    processors: usize,
    memory_gib: u64,
    /// Source and type of the file system that the scratch pools are on.
    disk: String,
    /// Of the minute before: others that work disturb the figures.
    load: String,
    /// In use before anything was measured: listing loops takes time for each.
    loops: usize,
}

impl Machine {
    pub(super) fn look(workspace: &Workspace) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory_kib =
            after(&read("/proc/meminfo"), "MemTotal").and_then(|v| v.split(' ').next()?.parse::<u64>().ok());
        let temporary = std::env::temp_dir();
        let disk = process::output(Command::new("df").arg("--output=source,fstype").arg(temporary)).unwrap_or_default();
        let commit = process::output(
            Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]).current_dir(&workspace.root),
        );
        Self {
            commit: commit.unwrap_or_default().trim().to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: after(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: memory_kib.unwrap_or(0).div_ceil(1 << 20),
            disk: disk.lines().nth(1).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            loops: loops_in_use(),
        }
    }

    pub(super) fn to_line(&self) -> String {
        format!(
            "Commit {}, Linux {}, {} x {}, {} GiB, pools in images on {}; before: load {}, {} loop devices in use.",
            self.commit,
            self.kernel,
            self.processors,
            self.processor,
            self.memory_gib,
            self.disk,
            self.load,
            self.loops
        )
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "commit": self.commit,
            "kernel": self.kernel,
            "processor": self.processor,
            "processors": self.processors,
            "memory_gib": self.memory_gib,
            "disk": self.disk,
            "load_before": self.load,
            "loops_before": self.loops,
        })
    }
}

fn loops_in_use() -> usize {
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.filter(|device| device.path().join("loop/backing_file").exists()).count()
}
