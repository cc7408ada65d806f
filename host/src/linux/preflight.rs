//! What a machine lacks for the driver, found out without changing anything.

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use std::path::Path;
use volume::{FsType, HealthProblem, Severity};

/// capabilities(7), by number.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const PROGRAM_DIRECTORIES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

pub(super) fn missing() -> Vec<String> {
    let mut missing: Vec<String> = missing_privileges().into_iter().map(|problem| problem.message).collect();
    missing.extend(missing_support());
    missing
}

pub(super) fn missing_privileges() -> Vec<HealthProblem> {
    let mut missing = Vec::new();
    let capabilities = effective_capabilities();
    let has = |capability: u32| capabilities & (1 << capability) != 0;
    if !nix::unistd::geteuid().is_root() {
        missing.push(HealthProblem::new(
            Severity::Inaccessible,
            "NotRoot",
            "not root: mounts, loop devices and the pool's files need it; run it with sudo",
        ));
    } else if !has(CAP_SYS_ADMIN) {
        missing.push(HealthProblem::new(
            Severity::Inaccessible,
            "NoSysAdminCapability",
            "CAP_SYS_ADMIN is missing: no mounts, loop devices or freezes; run the container privileged",
        ));
    } else if !has(CAP_SYS_RESOURCE) {
        missing.push(HealthProblem::new(
            Severity::Degraded,
            "NoSysResourceCapability",
            "CAP_SYS_RESOURCE is missing: the kernel refuses to grow a mounted ext4; such a volume grows when it is staged next",
        ));
    }
    if let Err(errno) = openat(AT_FDCWD, "/dev/loop-control", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()) {
        missing.push(HealthProblem::new(
            Severity::Inaccessible,
            "NoLoopDevices",
            format!(
                "/dev/loop-control cannot be opened ({}): no volume can be attached; load the module `loop`, and give a container the host's /dev",
                errno.desc()
            ),
        ));
    }
    missing
}

/// What cannot be used for lack of a file system or a program.
fn missing_support() -> Vec<String> {
    let mut missing = Vec::new();
    let file_systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for fs in FsType::ALL {
        let loaded = file_systems.lines().any(|line| line.split_whitespace().last() == Some(fs.as_str()));
        if !loaded && !has_module(fs.as_str()) {
            missing.push(format!("the kernel has no {}: volumes with it cannot be staged here", fs.as_str()));
        }
    }
    for (program, package) in [("mkfs.ext4", "e2fsprogs"), ("mkfs.xfs", "xfsprogs"), ("mkfs.btrfs", "btrfs-progs")] {
        if !PROGRAM_DIRECTORIES.iter().any(|directory| Path::new(directory).join(program).exists()) {
            missing.push(format!(
                "{program} is missing: no templates of that file system can be made here; install the package {package}"
            ));
        }
    }
    missing
}

/// CapEff of /proc/self/status; none when it cannot be read.
fn effective_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Whether the kernel could load it at the first mount.
fn has_module(name: &str) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let list = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
    let wanted = format!("/{name}.ko");
    std::fs::read_to_string(list)
        .is_ok_and(|list| list.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&wanted))))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_line_says_what_follows() {
        assert!(super::missing().iter().all(|line| line.contains(": ")));
    }
}
