//! What the machine is, and whether it can do what the demo shows.

use super::report::Report;
use host::LinuxHost;
use std::fs::OpenOptions;
use volume::{Error, ErrorKind, Result};

/// Says what the machine is; `PermissionDenied` with everything that is missing when the demo cannot run on it.
pub fn check(report: &mut Report) -> Result<()> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let root = nix::unistd::geteuid().is_root();
    report.say(&format!("machine: Linux {}, {}", kernel.trim(), if root { "root" } else { "not root" }));
    let notes = LinuxHost::new(host::Effects::default()).preflight();
    for note in &notes {
        report.say(&format!("  note: {note}"));
    }
    let mut missing = Vec::new();
    if !root {
        missing.push("it must run as root (sudo): it makes mount namespaces, loop devices and mounts".to_owned());
    } else if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/loop-control") {
        missing.push(format!("/dev/loop-control cannot be opened ({error}): it needs loop devices (modprobe loop)"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::PermissionDenied, format!("this machine cannot run the demo: {}", missing.join("; "))))
}
