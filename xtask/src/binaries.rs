//! The release binaries, built once: `hawser` and `e2e`.

use crate::process::{self, Log};
use crate::workspace::{Workspace, cargo};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(25 * 60);

#[derive(Clone)]
pub(crate) struct Binaries {
    pub(crate) hawser: PathBuf,
    pub(crate) e2e: PathBuf,
}

impl Binaries {
    pub(crate) fn build(workspace: &Workspace, log: &mut Log) -> Result<Self, String> {
        let found = build(workspace, &["driver", "e2e"], log)?;
        Ok(Self { hawser: named(&found, "hawser")?, e2e: named(&found, "e2e")? })
    }

    /// Built before.
    pub(crate) fn in_directory(directory: &Path) -> Result<Self, String> {
        let found = |name: &str| {
            let path = std::path::absolute(directory.join(name)).unwrap_or_default();
            if path.is_file() { Ok(path) } else { Err(format!("there is no {name} in {}", directory.display())) }
        };
        Ok(Self { hawser: found("hawser")?, e2e: found("e2e")? })
    }
}

/// `hawser` alone.
pub(crate) fn build_hawser(workspace: &Workspace, log: &mut Log) -> Result<PathBuf, String> {
    named(&build(workspace, &["driver"], log)?, "hawser")
}

/// The binaries of these packages.
fn build(workspace: &Workspace, packages: &[&str], log: &mut Log) -> Result<Vec<PathBuf>, String> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let mut found = Vec::new();
    let mut build = Command::new(cargo());
    build.args(["build", "--release", "--message-format", "json-render-diagnostics"]);
    build.args(packages.iter().flat_map(|package| ["-p", package])).current_dir(&workspace.root);
    process::run(&mut build, DEADLINE, log, &mut |line| {
        found.extend(serde_json::from_str::<Message>(line).ok().and_then(|message| message.executable));
    })?;
    Ok(found)
}

fn named(found: &[PathBuf], name: &str) -> Result<PathBuf, String> {
    let path = found.iter().find(|path| path.file_name().is_some_and(|file| file == name));
    path.cloned().ok_or_else(|| format!("cargo did not name the binary {name}"))
}
