//! `cargo xtask bench failover`: failovers in the Kubernetes lab, many of each fault, against Kubernetes alone.

mod load;
mod phases;
mod table;

use crate::binaries::Binaries;
use crate::kubernetes::{self, Lab};
use crate::process::{self, Log};
use crate::workspace::Workspace;
use load::Load;
use phases::Sample;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct FailoverArguments {
    /// Runs of each fault; each has a StatefulSet and a Deployment.
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// Only these: node-killed, node-frozen, control-cut, kubelet-dead, supervisor-killed, two-nodes, reboot-twice; and node-deleted and driver-stopped, which are run only when they are named.
    #[arg(long, value_delimiter = ',', value_name = "FAULT")]
    faults: Vec<String>,
    /// Runs of node-killed with the supervisor off, each of which takes as long as --stock-limit says.
    #[arg(long, default_value_t = 1)]
    stock: usize,
    /// How long Kubernetes alone may take, in seconds.
    #[arg(long, default_value_t = 900)]
    stock_limit: u64,
    /// Runs of node-killed in which kubelets report their status every 10 s, as they do by default, and not every second.
    #[arg(long, default_value_t = 0)]
    slow_status: usize,
    /// The lab moves workloads itself, even where there is a supervisor: what the steps cost without detection.
    #[arg(long)]
    by_hand: bool,
    /// With VolumeAttachments: the controller attaches (csiDriver.attachRequired: true).
    #[arg(long)]
    attach_by_controller: bool,
    /// No fault, but for so many seconds all the load on one node that it can take: nothing may be suspected or fenced.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["runs", "faults", "stock", "by_hand", "slow_status"])]
    load: Option<u64>,
    /// The pool counts as on a network file system, where a fence is a fork alone; late acks are then counted and measured.
    #[arg(long)]
    fork_only: bool,
    /// Makes the table of this log again; runs nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "faults", "stock", "by_hand", "slow_status", "attach_by_controller", "load"])]
    from: Option<PathBuf>,
    /// Takes `hawser` and `e2e` from this directory instead of building them.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// How the lab begins a line that is for the raw log.
const MARK: &str = "failover: ";
/// Of one run of one fault, with the node's return; many take less.
const RUN_DEADLINE: Duration = Duration::from_secs(600);
const FAULTS: usize = 7;

/// Whether all runs stood their checks. The figures are judged by who reads them.
pub(crate) fn failover(arguments: &FailoverArguments) -> Result<bool, String> {
    if let Some(file) = &arguments.from {
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let (mut samples, mut loads) = (Vec::new(), Vec::new());
        for line in text.lines() {
            match Load::parse(line) {
                Some(load) => loads.push(load),
                None => samples.push(Sample::parse(line)?),
            }
        }
        samples.iter().for_each(|sample| println!("{}", sample.to_line()));
        print(&samples, &loads);
        return Ok(true);
    }
    let workspace = Workspace::load()?;
    let mut log = Log::create(&workspace.log_directory(), "failover")?;
    let lab = Lab {
        binaries: arguments.binaries.as_deref().map(Binaries::in_directory).transpose()?,
        logs: "failover/components",
    };
    let mut command = lab.command(&workspace, &mut log)?;
    match arguments.load {
        Some(seconds) => command.arg("--load").arg(seconds.to_string()),
        None => command.arg("--bench-failover").arg(arguments.runs.to_string()),
    };
    command.arg("--stock").arg(arguments.stock.to_string());
    command.arg("--stock-limit").arg(arguments.stock_limit.to_string());
    command.arg("--slow-status").arg(arguments.slow_status.to_string());
    if !arguments.faults.is_empty() {
        command.arg("--faults").arg(arguments.faults.join(","));
    }
    if arguments.by_hand {
        command.arg("--by-hand");
    }
    if arguments.attach_by_controller {
        command.arg("--attach-by-controller");
    }
    if arguments.fork_only {
        command.arg("--fork-only");
    }
    let raw = workspace.log_directory().join("failover/runs.jsonl");
    let mut file = create(&raw)?;
    let (mut samples, mut loads) = (Vec::new(), Vec::new());
    let mut failures = Vec::new();
    let runs = u32::try_from(arguments.runs * FAULTS + arguments.slow_status + 4).unwrap_or(u32::MAX);
    let stock = Duration::from_secs(arguments.stock_limit) * u32::try_from(arguments.stock).unwrap_or(u32::MAX);
    let load = Duration::from_secs(arguments.load.unwrap_or_default());
    let ended = process::run(&mut command, RUN_DEADLINE * runs + stock + load, &mut log, &mut |line| {
        if let Some(line) = line.strip_prefix(MARK) {
            if let Err(error) = writeln!(file, "{line}") {
                failures.push(format!("cannot write the raw log: {error}"));
            }
            match (Load::parse(line), Sample::parse(line)) {
                (Some(load), _) => loads.push(load),
                (None, Ok(sample)) => {
                    println!("{}", sample.to_line());
                    samples.push(sample);
                }
                (None, Err(error)) => failures.push(error),
            }
        } else if kubernetes::is_for_people(line) {
            println!("{line}");
        }
    });
    print(&samples, &loads);
    println!("raw log: {}; table of it again: cargo xtask bench failover --from FILE", raw.display());
    if let Err(error) = ended {
        failures.push(error);
    }
    for failure in &failures {
        println!("FAILED {failure}");
    }
    Ok(failures.is_empty())
}

fn print(samples: &[Sample], loads: &[Load]) {
    if !samples.is_empty() {
        print!("\n{}", table::text(samples));
    }
    loads.iter().for_each(|load| print!("\n{}", load.text()));
}

fn create(path: &Path) -> Result<File, String> {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| File::create(path));
    made.map_err(|error| format!("cannot write {}: {error}", path.display()))
}
