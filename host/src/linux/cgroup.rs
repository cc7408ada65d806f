//! I/O limits of a device, through cgroups: `io.max` (Documentation/admin-guide/cgroup-v2.rst) or
//! `blkio.throttle.*` (Documentation/admin-guide/cgroup-v1/blkio-controller.rst), whichever hierarchy has the controller.

use crate::{CgroupVersion, Effects, IoCgroup, MountEntry};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use volume::{DeviceNumber, Error, ErrorKind, IoLimits, Result};

/// Of a pod below its node's cgroup it is 4 at most; more is not what any orchestrator makes.
const MAX_DEPTH: u32 = 16;

/// A mounted hierarchy with the I/O controller.
#[derive(Debug)]
pub(super) struct Hierarchy {
    root: PathBuf,
    version: CgroupVersion,
    read_only: bool,
}

/// Every mount of the hierarchy that has the controller: a container has its own view and perhaps the host's beside it.
pub(super) fn hierarchies(mounts: &[MountEntry]) -> Vec<Hierarchy> {
    let version = |entry: &MountEntry| match entry.fs_type.as_str() {
        "cgroup" if entry.options.contains("blkio") => Some(CgroupVersion::V1),
        "cgroup2" if has_io(&entry.mounted_at) => Some(CgroupVersion::V2),
        _ => None,
    };
    let found = mounts.iter().filter_map(|entry| {
        let version = version(entry)?;
        Some(Hierarchy { root: entry.mounted_at.clone(), version, read_only: entry.read_only })
    });
    found.collect()
}

/// The cgroups of these names; on v1 with all below them, since a limit there is of one cgroup alone.
pub(super) fn find(hierarchies: &[Hierarchy], names: &[PathBuf]) -> Result<Vec<IoCgroup>> {
    let unsupported = |what: String| Err(Error::new(ErrorKind::Unsupported, what));
    if hierarchies.is_empty() {
        return unsupported(
            "no mounted cgroup hierarchy has the io (v2) or blkio (v1) controller; mount the host's /sys/fs/cgroup"
                .into(),
        );
    }
    let mut found = Vec::new();
    for (hierarchy, name) in hierarchies.iter().filter(|h| !h.read_only).flat_map(|h| names.iter().map(move |n| (h, n)))
    {
        match hierarchy.version {
            // Without the file the controller is not on for it (cgroup.subtree_control of its parent).
            CgroupVersion::V2 if !hierarchy.root.join(name).join("io.max").exists() => {}
            CgroupVersion::V2 => found.extend(identify(hierarchy.root.join(name), CgroupVersion::V2)?),
            CgroupVersion::V1 => walk(hierarchy.root.join(name), MAX_DEPTH, &mut found)?,
        }
    }
    // The same one may be seen through two mounts.
    found.sort_by(|a, b| (a.id, &a.path).cmp(&(b.id, &b.path)));
    found.dedup_by_key(|cgroup| cgroup.id);
    found.sort();
    if found.is_empty() {
        let roots: Vec<_> = hierarchies.iter().map(|h| h.root.display().to_string()).collect();
        let names: Vec<_> = names.iter().map(|name| name.display().to_string()).collect();
        let read_only = hierarchies.iter().all(|hierarchy| hierarchy.read_only);
        return unsupported(if read_only {
            format!("{} is mounted read-only: mount the host's /sys/fs/cgroup writable", roots.join(", "))
        } else {
            format!(
                "{} has no cgroup {:?} in which I/O can be limited; name those of the workloads in io_limit_cgroups",
                roots.join(", "),
                names.join(", ")
            )
        });
    }
    Ok(found)
}

/// Sets what differs, and nothing where nothing was and nothing is to be. Fine when the cgroup is gone.
pub(super) fn set(effects: &Effects, cgroup: &IoCgroup, device: DeviceNumber, limits: &IoLimits) -> Result<()> {
    match set_in(effects, cgroup, device, limits) {
        Err(error)
            if error.kind() == ErrorKind::NotFound && identify(cgroup.path.clone(), cgroup.version)?.is_none() =>
        {
            Ok(())
        }
        result => result,
    }
}

fn set_in(effects: &Effects, cgroup: &IoCgroup, device: DeviceNumber, limits: &IoLimits) -> Result<()> {
    let key = format!("{}:{}", device.major, device.minor);
    match cgroup.version {
        CgroupVersion::V2 => {
            let file = cgroup.path.join("io.max");
            let wanted = Wanted::of(limits);
            if parse_max(&line_of(&file, &key)?.unwrap_or_default()) == wanted {
                return Ok(());
            }
            let values = wanted.0.iter().map(|(name, value)| match value {
                Some(value) => format!(" {name}={value}"),
                None => format!(" {name}=max"),
            });
            write(effects, &file, &format!("{key}{}", values.collect::<String>()))
        }
        CgroupVersion::V1 => {
            for (name, wanted) in Wanted::of(limits).0 {
                let file = cgroup.path.join(v1_file(name));
                let now = line_of(&file, &key)?.and_then(|value| value.trim().parse::<u64>().ok());
                if now != wanted {
                    // 0 takes the rule away.
                    write(effects, &file, &format!("{key} {}", wanted.unwrap_or(0)))?;
                }
            }
            Ok(())
        }
    }
}

/// By `io.max`'s names, in one order.
#[derive(PartialEq, Eq)]
struct Wanted([(&'static str, Option<u64>); 4]);

impl Wanted {
    fn of(limits: &IoLimits) -> Self {
        Self([
            ("rbps", limits.read_bytes_per_second),
            ("wbps", limits.write_bytes_per_second),
            ("riops", limits.read_ops_per_second),
            ("wiops", limits.write_ops_per_second),
        ])
    }
}

fn v1_file(name: &str) -> &'static str {
    match name {
        "rbps" => "blkio.throttle.read_bps_device",
        "wbps" => "blkio.throttle.write_bps_device",
        "riops" => "blkio.throttle.read_iops_device",
        _ => "blkio.throttle.write_iops_device",
    }
}

/// ` rbps=1048576 wbps=max`: what is absent is unlimited.
fn parse_max(values: &str) -> Wanted {
    let value =
        |name: &str| values.split_ascii_whitespace().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let Wanted(unlimited) = Wanted::of(&IoLimits::default());
    Wanted(unlimited.map(|(name, _)| (name, value(name).and_then(|text| text.parse().ok()))))
}

/// What the file says of the device, after its number.
fn line_of(file: &Path, key: &str) -> Result<Option<String>> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(format!("reading {}", file.display()), e))?;
    let rest = text.lines().find_map(|line| line.strip_prefix(key).filter(|rest| rest.starts_with(' ')));
    Ok(rest.map(str::to_owned))
}

fn write(effects: &Effects, file: &Path, line: &str) -> Result<()> {
    let failed = |e| Error::io(format!("writing {line:?} to {}", file.display()), e);
    let mut opened = OpenOptions::new().write(true).truncate(true).open(file).map_err(failed)?;
    // One write(2) is one command.
    match opened.write(format!("{line}\n").as_bytes()) {
        Ok(_) => {
            effects.done("set-io-limit");
            Ok(())
        }
        // The device is gone, and its limits with it.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) && is_removal(line) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn is_removal(line: &str) -> bool {
    let values = line.split_ascii_whitespace().skip(1);
    values.into_iter().all(|value| value == "0" || value.ends_with("=max"))
}

/// `None` when there is no such cgroup.
fn identify(path: PathBuf, version: CgroupVersion) -> Result<Option<IoCgroup>> {
    match std::fs::symlink_metadata(&path) {
        Ok(found) => Ok(found.is_dir().then_some(IoCgroup { id: found.ino(), path, version })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("looking at {}", path.display()), error)),
    }
}

fn walk(path: PathBuf, depth: u32, found: &mut Vec<IoCgroup>) -> Result<()> {
    let Some(cgroup) = identify(path.clone(), CgroupVersion::V1)? else { return Ok(()) };
    found.push(cgroup);
    if depth == 0 {
        return Ok(());
    }
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(format!("listing {}", path.display()), error)),
    };
    for entry in entries {
        // One that went away meanwhile needs no limit.
        let Ok(entry) = entry else { continue };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(entry.path(), depth - 1, found)?;
        }
    }
    Ok(())
}

fn has_io(root: &Path) -> bool {
    std::fs::read_to_string(root.join("cgroup.controllers"))
        .is_ok_and(|text| text.split_whitespace().any(|c| c == "io"))
}
