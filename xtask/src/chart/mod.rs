//! `cargo xtask chart`: the Helm chart, rendered with several values and compared with what is kept in charts/tests/rendered;
//! what every rendering must keep to; and the values that must be refused.

mod configuration;
mod refusals;
mod rules;

use crate::counts::Counts;
use crate::install;
use crate::kubernetes;
use crate::process::{self, Log};
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct ChartArguments {
    /// Keeps what is rendered now as what is right.
    #[arg(long)]
    update: bool,
    /// A hawser that the configurations are given to.
    #[arg(long, value_name = "FILE")]
    hawser: Option<PathBuf>,
}

/// Values that the chart is rendered with.
struct Case {
    name: &'static str,
    values: &'static str,
    /// What the cluster has, beside what every cluster has.
    apis: &'static [&'static str],
}

const SNAPSHOTS: &str = "snapshot.storage.k8s.io/v1";
const GROUP_SNAPSHOTS: &str = "groupsnapshot.storage.k8s.io/v1";
const CASES: [Case; 5] = [
    Case { name: "default", values: "charts/tests/values/default.yaml", apis: &[] },
    Case { name: "shared", values: "charts/tests/values/shared.yaml", apis: &[SNAPSHOTS] },
    Case { name: "everything", values: "charts/tests/values/everything.yaml", apis: &[SNAPSHOTS, GROUP_SNAPSHOTS] },
    Case { name: "given", values: "charts/tests/values/given.yaml", apis: &[] },
    Case { name: "lab", values: "e2e/src/kubernetes/manifests/values.yaml", apis: &[SNAPSHOTS, GROUP_SNAPSHOTS] },
];
const CHART: &str = "charts/hawser";
/// Helm as Go builds it from its module takes itself for one of an old cluster.
const KUBERNETES_VERSION: &str = "1.36.0";

/// `cargo xtask chart`: whether nothing failed.
pub(crate) fn chart(arguments: &ChartArguments) -> Result<bool, String> {
    let workspace = Workspace::load()?;
    let mut log = Log::create(&workspace.log_directory(), "chart")?;
    install::packages(&mut log)?;
    let counts = check(&workspace, arguments.update, arguments.hawser.as_deref(), &mut log);
    for failure in &counts.failures {
        println!("FAILED {failure}");
    }
    println!("{}", counts.summary());
    Ok(counts.failures.is_empty())
}

/// Everything, as a step of the tests.
pub(crate) fn check(workspace: &Workspace, update: bool, hawser: Option<&Path>, log: &mut Log) -> Counts {
    let helm = match kubernetes::installed(kubernetes::HELM, log) {
        Ok(directory) => Helm { program: directory.join("helm"), root: workspace.root.clone() },
        Err(error) => return Counts::fail(error),
    };
    let mut counts = Counts::default();
    let mut done = |name: String, result: Result<(), String>| {
        log.line(&format!("{name}: {}", result.as_ref().map_or_else(String::as_str, |()| "ok")));
        match result {
            Ok(()) => counts.passed += 1,
            Err(error) => counts.failures.push(format!("{name}: {error}")),
        }
    };
    done("lint".to_owned(), helm.lint());
    for case in &CASES {
        let rendered = match helm.render(case) {
            Ok(rendered) => rendered,
            Err(error) => {
                done(case.name.to_owned(), Err(error));
                continue;
            }
        };
        let kept = workspace.root.join(format!("charts/tests/rendered/{}.yaml", case.name));
        done(format!("{} as it was", case.name), compare(&rendered, &kept, update));
        if let Some(hawser) = hawser {
            let result = configuration::check(&rendered, hawser, &workspace.log_directory());
            done(format!("{}: hawser takes the configuration", case.name), result);
        }
        for (rule, broken) in rules::check(&rendered, &workspace.root) {
            let verdict = if broken.is_empty() { Ok(()) } else { Err(broken.join("; ")) };
            done(format!("{}: {rule}", case.name), verdict);
        }
    }
    for refusal in &refusals::REFUSALS {
        done(format!("refused: {}", refusal.set.join(", ")), refusal.check(&helm));
    }
    counts
}

struct Helm {
    program: PathBuf,
    root: PathBuf,
}

impl Helm {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut helm = Command::new(&self.program);
        helm.args(arguments).args(["--kube-version", KUBERNETES_VERSION]).current_dir(&self.root);
        // Whoever runs this may have settings of their own.
        helm.env_remove("KUBECONFIG").env("HELM_CONFIG_HOME", "/nonexistent");
        helm
    }

    fn lint(&self) -> Result<(), String> {
        process::output(&mut self.command(&["lint", "--strict", CHART])).map(drop)
    }

    fn template(&self) -> Command {
        self.command(&["template", "hawser", CHART, "--namespace", "hawser"])
    }

    fn render(&self, case: &Case) -> Result<String, String> {
        let mut template = self.template();
        template.args(["--values", case.values]);
        template.args(case.apis.iter().flat_map(|api| ["--api-versions", api]));
        process::output(&mut template)
    }
}

fn compare(rendered: &str, kept: &Path, update: bool) -> Result<(), String> {
    if update {
        return std::fs::write(kept, rendered).map_err(|error| format!("cannot write {}: {error}", kept.display()));
    }
    let right = std::fs::read_to_string(kept).unwrap_or_default();
    let difference = rendered.lines().zip(right.lines()).enumerate().find(|(_, (is, was))| is != was);
    let (line, is, was) = match difference {
        Some((line, (is, was))) => (line + 1, is, was),
        None if rendered == right => return Ok(()),
        None => (rendered.lines().count().min(right.lines().count()) + 1, "one is longer", ""),
    };
    Err(format!(
        "line {line} of {} is {was:?} and would now be {is:?}; if that is meant: cargo xtask chart --update",
        kept.display()
    ))
}
