//! The binary `hawser`: the only place that reads argv, environment, configuration and signals.
#![forbid(unsafe_code)]
#![allow(unreachable_pub, reason = "a binary has no outside; its modules say what they offer each other")]

mod agents;
mod bench;
mod certificates;
mod cli;
mod client;
mod commands;
mod config;
mod demo;
mod effects;
mod gauges;
mod http;
mod logging;
mod output;
mod probe;
mod process;
mod serve;
mod state;
mod storage;
mod supervisor;
mod test_switches;
mod units;
mod workload;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command, FailoverCommand, Global, NodeCommand, OrphanCommand};
use config::{Config, ConfigError, Setting};
use output::Output;
use serde_json::json;
use std::process::ExitCode;
use storage::Storage;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output { json: cli.global.json };
    match run(cli, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Work(error)) => {
            output.print_error(&error.kind().to_string(), &error.chain());
            ExitCode::from(1)
        }
        Err(Failure::Usage(error)) => {
            output.print_error("configuration", &error.0);
            ExitCode::from(2)
        }
    }
}

enum Failure {
    /// It was asked for rightly and did not work: exit code 1.
    Work(volume::Error),
    /// It was asked for wrongly: exit code 2, as clap's own refusals.
    Usage(ConfigError),
}

/// No thread starts before the command is chosen: mount namespaces are entered by single-threaded processes.
fn run(cli: Cli, output: Output) -> Result<(), Failure> {
    let global = cli.global;
    match cli.command {
        Command::Serve(args) => {
            if let Some(parent) = args.die_with_parent {
                process::die_with_parent(parent)?;
            }
            if args.private_mounts {
                process::private_mounts()?;
            }
            let config = load(&global, args.settings())?;
            logging::start(config.log_format, &config.log_level)?;
            Ok(serve::serve(&config, effects::from_environment()?)?)
        }
        Command::Workload(command) => Ok(workload::run(command, output)?),
        Command::Demo(args) => Ok(demo::run(&args, output)?),
        Command::Certificates(args) => Ok(certificates::make(&args, output)?),
        Command::Bench(args) => Ok(bench::run(&args, output)?),
        Command::Probe { page } => Ok(probe::probe(&load(&global, Vec::new())?.metrics_listen, page)?),
        Command::Version => {
            print_version(output);
            Ok(())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hawser", &mut script);
            output.print_raw(&script);
            Ok(())
        }
        Command::Volume(command) => Ok(commands::volume_command(&open(&global, output)?, output, command)?),
        Command::Snapshot(command) => Ok(commands::snapshot_command(&open(&global, output)?, output, command)?),
        Command::Orphan(OrphanCommand::Ls) => Ok(commands::orphans(&open(&global, output)?, output)?),
        Command::Orphan(OrphanCommand::Rm { volume }) => {
            Ok(commands::remove_orphans(&open(&global, output)?, output, volume.as_deref())?)
        }
        Command::Node(NodeCommand::Ls) => Ok(commands::nodes(&open(&global, output)?, output)?),
        Command::Node(NodeCommand::Cordon { node }) => Ok(commands::cordon(output, &node)?),
        Command::Node(NodeCommand::Uncordon { node }) => Ok(commands::uncordon(output, &node)?),
        Command::Node(NodeCommand::Drain(args)) => Ok(commands::drain(output, &args)?),
        Command::Failover(FailoverCommand::Ls(args)) => {
            Ok(commands::list_failovers(&load(&global, Vec::new())?, output, &args)?)
        }
        Command::Fence(args) => Ok(commands::fence(&open(&global, output)?, output, &args)?),
        Command::Unfence { node } => Ok(commands::unfence(&open(&global, output)?, output, &node)?),
    }
}

fn load(global: &Global, flags: Vec<Setting>) -> Result<Config, ConfigError> {
    Config::load(global.config.as_deref(), std::env::vars_os(), global.settings(flags))
}

/// The configured storage, for a command: it logs warnings and errors alone unless told otherwise.
fn open(global: &Global, output: Output) -> Result<Storage, Failure> {
    let config = load(global, Vec::new())?;
    logging::start(config.log_format, global.log_level.as_deref().unwrap_or("warn"))?;
    let effects = effects::from_environment()?;
    // Long only when a pool image is made, or records are rebuilt.
    Ok(output.progress("opening the storage", || Storage::open_for_commands(&config, effects))?)
}

fn print_version(output: Output) {
    let version = env!("CARGO_PKG_VERSION");
    output.print(
        &json!({"name": identity::NAME, "version": version, "csi": "1.13.0"}),
        &format!("hawser {version} ({}, CSI 1.13.0)", identity::NAME),
    );
}

impl From<volume::Error> for Failure {
    fn from(error: volume::Error) -> Self {
        Self::Work(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error)
    }
}
