//! Rules over the text of the tree.

use crate::workspace::Workspace;
use std::path::{Path, PathBuf};

const LONGEST_FILE_LINES: usize = 500;

/// Where programs are started: the one function of the product, what tests it, and the demo's own child processes.
const STARTS_PROGRAMS: [&str; 4] = ["host/src/command", "driver/src/demo", "e2e/", "xtask/"];

pub(super) fn lengths(workspace: &Workspace) -> Result<Vec<String>, String> {
    broken_by(workspace, &|path, text| {
        let lines = text.lines().count();
        (lines > LONGEST_FILE_LINES).then(|| format!("{}: {lines} lines", path.display()))
    })
}

pub(super) fn unsafe_code(workspace: &Workspace) -> Result<Vec<String>, String> {
    let mut broken = Vec::new();
    for package in workspace.packages.iter().filter(|p| workspace.name_of(p.directory()) != "host") {
        for target in package.targets.iter().filter(|t| t.kind.iter().any(|kind| kind == "lib" || kind == "bin")) {
            let text = read(&target.src_path)?;
            if !text.contains("#![forbid(unsafe_code)]") {
                broken.push(format!("{} does not forbid unsafe code", target.src_path.display()));
            }
        }
    }
    // Integration tests and examples are crates of their own.
    let uses = broken_lines(workspace, &|path, line| {
        !path.starts_with("host/")
            && ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|w| line.contains(w))
            && !is_own_rule(path)
    })?;
    broken.extend(uses);
    Ok(broken)
}

pub(super) fn programs(workspace: &Workspace) -> Result<Vec<String>, String> {
    broken_lines(workspace, &|path, line| {
        (line.contains("allow(clippy::disallowed_methods") || line.contains("expect(clippy::disallowed_methods"))
            && !STARTS_PROGRAMS.iter().any(|allowed| path.to_string_lossy().starts_with(allowed))
            && !path.components().any(|part| part.as_os_str() == "tests")
            && !path.to_string_lossy().ends_with("tests.rs")
    })
}

/// Invariant 3. A forced mkfs writes over what it finds.
pub(super) fn forced_mkfs(workspace: &Workspace) -> Result<Vec<String>, String> {
    broken_lines(workspace, &|path, line| {
        !is_own_rule(path)
            && (line.contains("\"-F\"")
                || line.contains("mkfs") && (line.contains("\"-f\"") || line.contains("\"--force\"")))
    })
}

/// It checks nothing and is there to be compared with.
pub(super) fn bare_calls(workspace: &Workspace) -> Result<Vec<String>, String> {
    broken_lines(workspace, &|path, line| {
        !path.starts_with("e2e/") && !is_own_rule(path) && (line.contains("host::bare") || line.contains("crate::bare"))
    })
}

pub(super) fn unfinished(workspace: &Workspace) -> Result<Vec<String>, String> {
    let words = ["todo!(", "unimplemented!(", "dbg!(", "TODO", "FIXME"];
    broken_lines(workspace, &|path, line| !is_own_rule(path) && words.iter().any(|word| line.contains(word)))
}

pub(super) fn places(workspace: &Workspace) -> Result<Vec<String>, String> {
    let mut broken = Vec::new();
    for path in workspace.files()? {
        let Ok(text) = std::fs::read_to_string(workspace.root.join(&path)) else { continue };
        if path.file_name().is_some_and(|name| name == "Cargo.lock") {
            let foreign = text.lines().filter(|line| {
                line.starts_with("source = ") && !line.contains("registry+https://github.com/rust-lang/crates.io-index")
            });
            broken.extend(foreign.map(|line| format!("{}: {line}", path.display())));
        } else if !is_own_rule(&path) {
            let named = text.lines().enumerate().filter(|(_, line)| {
                ["/root/.", "/home/", "artifactory", "GOPROXY=", "replace-with"].iter().any(|w| line.contains(w))
            });
            broken.extend(named.map(|(number, line)| format!("{}:{}: {}", path.display(), number + 1, line.trim())));
        }
    }
    Ok(broken)
}

pub(super) fn changelog(workspace: &Workspace) -> Result<Vec<String>, String> {
    let path = workspace.root.join("CHANGELOG.md");
    let text = read(&path)?;
    let version = workspace.packages.first().map_or("", |package| package.version.as_str());
    let speaks = text
        .lines()
        .filter(|line| line.starts_with("## "))
        .any(|line| line.contains("Unreleased") || line.contains(version));
    Ok(if speaks {
        Vec::new()
    } else {
        vec![format!("{} has no section `## Unreleased` or `## {version}`", path.display())]
    })
}

pub(super) fn scripts(workspace: &Workspace) -> Result<Vec<String>, String> {
    use std::os::unix::fs::PermissionsExt;
    let mut broken = Vec::new();
    for path in workspace.files()? {
        let full = workspace.root.join(&path);
        let is_script = std::fs::read(&full).is_ok_and(|bytes| bytes.starts_with(b"#!/"));
        let mode = std::fs::metadata(&full).map_or(0, |metadata| metadata.permissions().mode());
        if is_script && mode & 0o111 == 0 {
            broken.push(format!("{} is a script and not executable", path.display()));
        }
    }
    Ok(broken)
}

/// These rules name what they forbid.
fn is_own_rule(path: &Path) -> bool {
    path.ends_with("xtask/src/tidy/sources.rs")
}

fn broken_lines(workspace: &Workspace, rule: &dyn Fn(&Path, &str) -> bool) -> Result<Vec<String>, String> {
    let mut broken = Vec::new();
    for (path, text) in rust_files(workspace)? {
        let hits = text.lines().enumerate().filter(|(_, line)| rule(&path, line));
        broken.extend(hits.map(|(number, line)| format!("{}:{}: {}", path.display(), number + 1, line.trim())));
    }
    Ok(broken)
}

fn broken_by(workspace: &Workspace, rule: &dyn Fn(&Path, &str) -> Option<String>) -> Result<Vec<String>, String> {
    Ok(rust_files(workspace)?.iter().filter_map(|(path, text)| rule(path, text)).collect())
}

fn rust_files(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>, String> {
    let rust = workspace.files()?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    rust.map(|path| Ok((path.clone(), read(&workspace.root.join(&path))?))).collect()
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
