//! The release binaries, built once: `hawser` and `e2e`.

use crate::process::{self, Log};
use crate::workspace::{Workspace, cargo};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(25 * 60);

pub(crate) struct Binaries {
    pub(crate) hawser: PathBuf,
    pub(crate) e2e: PathBuf,
}

impl Binaries {
    pub(crate) fn build(workspace: &Workspace, log: &mut Log) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Message {
            executable: Option<PathBuf>,
        }
        let mut found = Vec::new();
        let mut build = Command::new(cargo());
        build.args(["build", "--release", "-p", "driver", "-p", "e2e", "--message-format", "json-render-diagnostics"]);
        process::run(build.current_dir(&workspace.root), DEADLINE, log, &mut |line| {
            found.extend(serde_json::from_str::<Message>(line).ok().and_then(|message| message.executable));
        })?;
        let named = |name: &str| found.iter().find(|path| path.file_name().is_some_and(|n| n == name)).cloned();
        match (named("hawser"), named("e2e")) {
            (Some(hawser), Some(e2e)) => Ok(Self { hawser, e2e }),
            _ => Err("cargo did not name the binaries hawser and e2e".to_owned()),
        }
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
