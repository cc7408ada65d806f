//! The programs that the driver starts for file systems, from this machine's packages, with the libraries they need.

use super::layer::LayerBuilder;
#[cfg(test)]
use crate::process;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `host` starts (its `Command::new`). A test compares the two.
pub(super) const PROGRAMS: [&str; 8] =
    ["mkfs.ext4", "e2fsck", "resize2fs", "mkfs.xfs", "xfs_repair", "xfs_admin", "mkfs.btrfs", "btrfs"];
/// What those start in turn: xfs_admin is a script around xfs_db.
const STARTED_BY_THEM: [&str; 2] = ["xfs_db", "sh"];
/// Read by mkfs.ext4, which makes other file systems without it.
const SETTINGS: [&str; 1] = ["/etc/mke2fs.conf"];
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// On a system whose /bin is a link into /usr, all is there; scripts and programs name it by these.
const LINKS: [(&str, &str); 4] = [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];

pub(super) fn add(layer: &mut LayerBuilder) -> Result<(), String> {
    for (at, target) in LINKS {
        layer.link(at, target);
    }
    for name in PROGRAMS.iter().chain(&STARTED_BY_THEM) {
        let path = find(name)?;
        let directory = if *name == "sh" { "usr/bin" } else { "usr/sbin" };
        layer.copy(&path, &format!("{directory}/{name}"))?;
        for library in libraries(&path)? {
            let at = place(&library);
            if !layer.has(&at) {
                layer.copy(&library, &at)?;
            }
        }
    }
    SETTINGS.iter().try_for_each(|path| layer.copy(Path::new(path), path.trim_start_matches('/')))
}

/// A binary that asks for a loader would not start in an image that has none.
pub(super) fn ensure_static(binary: &Path) -> Result<(), String> {
    let wanted = libraries(binary)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = wanted.iter().map(|path| path.display().to_string()).collect();
    Err(format!("{} is not static: it wants {}", binary.display(), names.join(", ")))
}

fn find(name: &str) -> Result<PathBuf, String> {
    let places = DIRECTORIES.map(|directory| Path::new(directory).join(name));
    places.into_iter().find(|path| path.is_file()).ok_or_else(|| format!("{name} is not installed"))
}

/// What ldd(1) names, the loader included; nothing for scripts and static programs.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, String> {
    let mut start = [0; 4];
    std::fs::File::open(program)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start))
        .map_err(|error| format!("cannot read {}: {error}", program.display()))?;
    if start != *b"\x7fELF" {
        return Ok(Vec::new());
    }
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output();
    let output = output.map_err(|error| format!("cannot start ldd: {error}"))?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if text.contains("not a dynamic executable") || text.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !output.status.success() || text.contains("not found") {
        return Err(format!("ldd {}: {}", program.display(), text.trim()));
    }
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

/// Below `usr`, where the links above lead.
fn place(library: &Path) -> String {
    let name = library.display().to_string();
    let below = name.trim_start_matches('/');
    if below.starts_with("usr/") { below.to_owned() } else { format!("usr/{below}") }
}

/// The names of the programs that the source of `host` starts.
#[cfg(test)]
pub(super) fn started_by_host(root: &Path) -> Result<Vec<String>, String> {
    let mut grep = Command::new("grep");
    grep.args(["-rhoE", "Command::new\\(\"[a-z0-9_.]+\", [A-Za-z:]+", "--include=*.rs"]).arg(root.join("host/src"));
    let names = process::output(&mut grep)?;
    Ok(names.lines().filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect())
}
