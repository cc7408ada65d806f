//! What the machine is, and whether it can do what the demo shows.

use super::report::Report;
use host::LinuxHost;
use std::fs::OpenOptions;
use std::path::Path;
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
    if !can_make_xfs() {
        report.say(
            "  note: without mkfs.xfs the pool is as its directory's file system makes it: on ext4 copies are full and raw block \
             is not offered",
        );
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

/// For a pool image, where the scratch directory's file system has no reflink.
pub fn can_make_xfs() -> bool {
    ["/usr/local/sbin", "/usr/sbin", "/sbin"].iter().any(|directory| Path::new(directory).join("mkfs.xfs").exists())
}
