//! A cluster that kind makes in Docker, for `cargo xtask e2e kubernetes --kind`.

use crate::process::{self, Log};
use crate::workspace::Workspace;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

pub(crate) struct Kind {
    pub(crate) kubeconfig: PathBuf,
}

const NAME: &str = "hawser-e2e";
const CONFIG: &str = "kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
- role: control-plane
- role: worker
- role: worker
- role: worker
";
const DEADLINE: Duration = Duration::from_secs(10 * 60);

impl Kind {
    /// With the images in its nodes.
    pub(crate) fn create(workspace: &Workspace, images: &[PathBuf], log: &mut Log) -> Result<Self, String> {
        let missing: Vec<&str> = ["docker", "kind"].into_iter().filter(|name| !process::is_installed(name)).collect();
        if !missing.is_empty() {
            return Err(format!(
                "--kind needs {} in PATH; without, leave --kind out for a cluster of namespaces, or use --kubeconfig",
                missing.join(" and ")
            ));
        }
        let directory = workspace.log_directory();
        let (config, kubeconfig) = (directory.join("kind.yaml"), directory.join("kind.kubeconfig"));
        std::fs::write(&config, CONFIG).map_err(|error| format!("cannot write {}: {error}", config.display()))?;
        let mut create = Command::new("kind");
        create.args(["create", "cluster", "--name", NAME, "--wait", "5m", "--config"]).arg(&config);
        run(create.arg("--kubeconfig").arg(&kubeconfig), log)?;
        let made = Self { kubeconfig };
        for image in images {
            let mut load = Command::new("kind");
            if let Err(error) = run(load.args(["load", "image-archive", "--name", NAME]).arg(image), log) {
                made.end(false, log)?;
                return Err(error);
            }
        }
        Ok(made)
    }

    pub(crate) fn end(self, is_kept: bool, log: &mut Log) -> Result<(), String> {
        if is_kept {
            println!("the cluster is up; to look: kubectl --kubeconfig {}", self.kubeconfig.display());
            println!("to delete it: kind delete cluster --name {NAME}");
            return Ok(());
        }
        let mut delete = Command::new("kind");
        run(delete.args(["delete", "cluster", "--name", NAME]), log)
    }
}

fn run(command: &mut Command, log: &mut Log) -> Result<(), String> {
    process::run(command, DEADLINE, log, &mut |_| {})
}
