//! `cargo xtask bench`: runs the measures of `e2e bench`, judges them, and draws them.

mod chart;
mod comparison;
mod comparisons;
mod failover;
mod machine;
mod plots;
mod series;
mod svg;
mod table;

use crate::binaries::Binaries;
use crate::install;
use crate::process::{self, Log};
use crate::workspace::Workspace;
use comparison::Row;
use machine::Machine;
use serde_json::json;
use series::AllSeries;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// Only these: path, scale, snapshots, fio.
    #[arg(long, value_delimiter = ',', value_name = "MEASURE", value_parser = MEASURES)]
    only: Vec<String>,
    /// Few samples: shows that everything works, not how fast anything is.
    #[arg(long)]
    quick: bool,
    /// Prints the table as Markdown.
    #[arg(long)]
    markdown: bool,
    /// Takes `hawser` and `e2e` from this directory instead of building them.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// What is no part of the measures below: it takes hours.
#[derive(clap::Subcommand)]
enum Other {
    /// Failovers in a real Kubernetes: from a fault to the first durable write elsewhere
    Failover(failover::FailoverArguments),
}

const MEASURES: [&str; 4] = ["path", "scale", "snapshots", "fio"];
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// `cargo xtask bench`: whether everything was measured. A goal that is not reached is said, and is no failure.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<bool, String> {
    if let Some(Other::Failover(arguments)) = &arguments.other {
        return failover::failover(arguments);
    }
    let workspace = Workspace::load()?;
    let mut log = Log::create(&workspace.log_directory(), "bench")?;
    if !install::is_root() {
        return Err("mounts and loop devices need root".to_owned());
    }
    install::bench_packages(&mut log)?;
    let binaries = match &arguments.binaries {
        Some(directory) => Binaries::in_directory(directory)?,
        None => {
            println!("building the release binaries");
            Binaries::build(&workspace, &mut log)?
        }
    };
    let chosen = |measure: &&str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == measure);
    let chosen: Vec<&str> = MEASURES.into_iter().filter(chosen).collect();
    let run = Run::measure(&workspace, &binaries, &chosen, arguments.quick, &mut log, |measure| {
        println!("measuring {measure}")
    })?;
    run.write(&workspace.target_directory.join("bench"))?;
    println!("\n{}\n", run.machine.to_line());
    print!("{}", if arguments.markdown { table::markdown(&run.rows) } else { table::text(&run.rows) });
    if arguments.quick {
        println!("\nA quick run has few samples and small counts: nothing is judged.");
    }
    println!("\nfigures and plots: {}", workspace.target_directory.join("bench").display());
    for failure in &run.failures {
        println!("FAILED {failure}");
    }
    if !run.failures.is_empty() {
        println!("log: {}", log.path.display());
    }
    Ok(run.failures.is_empty())
}

/// For `cargo xtask test`: everything is measured and drawn, on few samples; how many measures there were.
pub(crate) fn quick(workspace: &Workspace, binaries: &Binaries, log: &mut Log) -> Result<u64, String> {
    install::bench_packages(log)?;
    let run = Run::measure(workspace, binaries, &MEASURES, true, log, |_| {})?;
    run.write(&workspace.target_directory.join("bench-quick"))?;
    table::text(&run.rows).lines().for_each(|line| log.line(line));
    if run.failures.is_empty() { Ok(MEASURES.len() as u64) } else { Err(run.failures.join("; ")) }
}

struct Run {
    machine: Machine,
    quick: bool,
    series: AllSeries,
    rows: Vec<Row>,
    /// One line each: what could not be measured.
    failures: Vec<String>,
}

impl Run {
    fn measure(
        workspace: &Workspace,
        binaries: &Binaries,
        measures: &[&str],
        quick: bool,
        log: &mut Log,
        before_each: fn(&str),
    ) -> Result<Self, String> {
        let machine = Machine::look(workspace);
        let mut series = AllSeries::default();
        let mut failures = Vec::new();
        let mut rows = Vec::new();
        for measure in measures {
            before_each(measure);
            let mut command = Command::new(&binaries.e2e);
            command.arg("--hawser").arg(&binaries.hawser).args(["bench", measure]);
            if quick {
                command.arg("--quick");
            }
            let mut wrong = None;
            let ended = process::run(&mut command, DEADLINE, log, &mut |line| {
                if let Some(failure) = line.strip_prefix("FAILED ") {
                    wrong = Some(failure.to_owned());
                } else if let Err(error) = series.read_line(line) {
                    wrong = Some(error);
                }
            });
            if let Err(error) = ended {
                failures.push(format!("{measure}: {}", wrong.unwrap_or(error)));
                continue;
            }
            failures.extend(wrong.map(|wrong| format!("{measure}: {wrong}")));
            for comparison in comparisons::ALL.iter().filter(|comparison| comparison.measure == *measure) {
                match comparison.judge(&series, quick) {
                    Ok(row) => rows.push(row),
                    Err(error) => failures.push(format!("{measure}: {error}")),
                }
            }
        }
        Ok(Self { machine, quick, series, rows, failures })
    }

    /// `results.json`, the table as Markdown, and a plot of each kind of which there are samples.
    fn write(&self, directory: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("cannot write below {}: {error}", directory.display());
        std::fs::create_dir_all(directory).map_err(failed)?;
        let results = json!({
            "machine": self.machine.to_json(),
            "quick": self.quick,
            "rows": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "failures": self.failures,
            "series": self.series.to_json(),
        });
        std::fs::write(directory.join("results.json"), format!("{results:#}\n")).map_err(failed)?;
        let markdown = format!("{}\n\n{}", self.machine.to_line(), table::markdown(&self.rows));
        std::fs::write(directory.join("table.md"), markdown).map_err(failed)?;
        for (name, svg) in plots::all(&self.series) {
            std::fs::write(directory.join(format!("{name}.svg")), svg).map_err(failed)?;
        }
        Ok(())
    }
}
