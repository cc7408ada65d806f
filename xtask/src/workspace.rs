//! The tree as cargo sees it.

use crate::process;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Deserialize)]
pub(crate) struct Workspace {
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
    pub(crate) target_directory: PathBuf,
    pub(crate) packages: Vec<Package>,
}

#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) version: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
}

#[derive(Deserialize)]
pub(crate) struct Dependency {
    /// `None`: an ordinary one; else `dev` or `build`.
    pub(crate) kind: Option<String>,
    /// Only of workspace members.
    pub(crate) path: Option<PathBuf>,
}

#[derive(Deserialize)]
pub(crate) struct Target {
    pub(crate) kind: Vec<String>,
    pub(crate) src_path: PathBuf,
}

impl Workspace {
    pub(crate) fn load() -> Result<Self, String> {
        let mut metadata = Command::new(cargo());
        metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
        let json = process::output(&mut metadata)?;
        serde_json::from_str(&json).map_err(|error| format!("cannot read cargo metadata: {error}"))
    }

    pub(crate) fn log_directory(&self) -> PathBuf {
        self.target_directory.join("xtask")
    }

    /// Tracked and new files, as git sees them, relative to the root.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>, String> {
        let mut git = Command::new("git");
        git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(&self.root);
        let list = process::output(&mut git)?;
        let exists = |path: &PathBuf| self.root.join(path).is_file();
        Ok(list.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).filter(exists).collect())
    }

    /// A package's directory, relative to the root: the name that docs/architecture.md knows it by.
    pub(crate) fn name_of<'a>(&'a self, directory: &'a Path) -> &'a str {
        directory.strip_prefix(&self.root).ok().and_then(Path::to_str).unwrap_or_default()
    }
}

impl Package {
    pub(crate) fn directory(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }
}

/// The cargo that runs this, so that a `+toolchain` holds for what it starts.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}
