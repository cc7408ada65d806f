//! What the kernel has of a directory: mounts on and below it, loop devices of files below it.

use crate::failure::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) path: PathBuf,
    pub(crate) fs_type: String,
    pub(crate) source: String,
    pub(crate) read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    /// Without the kernel's " (deleted)".
    pub(crate) file: PathBuf,
}

/// Mounts of this process's namespace at or below `directory`, the oldest first (proc_pid_mountinfo(5)).
pub(crate) fn mounts_below(directory: &Path) -> Result<Vec<Mount>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = table.lines().filter_map(|line| {
        let (own, shared) = line.split_once(" - ")?;
        let path = own.split(' ').nth(4)?;
        let options = own.split(' ').nth(5)?;
        let mut shared = shared.split(' ');
        Some(Mount {
            path: PathBuf::from(unescape(path)),
            fs_type: shared.next()?.to_owned(),
            source: unescape(shared.next()?),
            read_only: options.split(',').any(|option| option == "ro"),
        })
    });
    Ok(mounts.filter(|mount| mount.path.starts_with(directory)).collect())
}

/// Configured loop devices whose file is below `directory`.
pub(crate) fn loops_below(directory: &Path) -> Result<Vec<Loop>> {
    let mut loops = Vec::new();
    for entry in std::fs::read_dir("/sys/block")?.flatten() {
        let name = entry.file_name();
        let Ok(text) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        let file = text.trim_end_matches('\n').trim_end_matches(" (deleted)");
        if Path::new(file).starts_with(directory) {
            loops.push(Loop { device: Path::new("/dev").join(name), file: PathBuf::from(file) });
        }
    }
    loops.sort_by(|a, b| a.device.cmp(&b.device));
    Ok(loops)
}

/// Unmounts and detaches all that is left below `directory`, the newest first and `pool` last: once it is unmounted its
/// loop devices do not show any more where their files are.
pub(crate) fn clear(directory: &Path, pool: &Path) {
    for _ in 0..3 {
        let mounts = mounts_below(directory).unwrap_or_default();
        mounts.iter().rev().filter(|mount| mount.path != pool).for_each(unmount);
        for device in loops_below(pool).unwrap_or_default() {
            let _ = program("losetup", &["--detach", &device.device.to_string_lossy()]);
        }
    }
    mounts_below(directory).unwrap_or_default().iter().rev().for_each(unmount);
}

fn unmount(mount: &Mount) {
    let path = mount.path.to_string_lossy();
    if program("umount", &[&path]).is_err() {
        let _ = program("umount", &["--lazy", &path]);
    }
}

/// Runs a program of the system; what it printed.
pub(crate) fn program(name: &str, arguments: &[&str]) -> Result<String> {
    // sbin may be missing in PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(name)
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .context(|| format!("cannot start {name}"))?;
    ensure(output.status.success(), || {
        format!("{name} {}: {}: {}", arguments.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim())
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_mountinfo() {
        assert_eq!(unescape(r"/a\040b\134c\x"), r"/a b\c\x");
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(mounts_below(Path::new("/")).unwrap().iter().any(|mount| mount.path == Path::new("/")));
    }
}
