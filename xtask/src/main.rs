//! `cargo xtask test` runs everything that says whether this tree works; `tidy` and `tools` are parts of it by themselves.
//! `cargo xtask bench` says how fast it is, `cargo xtask e2e kubernetes` how it does in a real Kubernetes, `cargo xtask image`
//! packs it.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a build tool starts cargo, Go and the tests; nothing of this is shipped"
)]

mod bench;
mod binaries;
mod chart;
mod counts;
mod image;
mod install;
mod kind;
mod kubernetes;
mod libtest;
mod process;
mod simulate;
mod steps;
mod tidy;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Checks and tests of hawser")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what is missing, then runs every check and test. The last line counts them.
    Test(steps::TestArguments),
    /// Measures: against the usual way of doing it and against the bare system calls, in one run.
    Bench(bench::BenchArguments),
    /// Tests that take long to set up: a real Kubernetes.
    E2e(kubernetes::EndToEndArguments),
    /// Renders the Helm chart and checks it; a step of the tests
    Chart(chart::ChartArguments),
    /// Makes the container images, as one archive, without a container runtime.
    Image(image::ImageArguments),
    /// Checks the rules of this tree that no compiler knows (docs/architecture.md).
    Tidy,
    /// Plays simulated histories of the supervisor under faults (failover/src/sim).
    Simulate(simulate::SimulateArguments),
    /// Builds the tests' external tools into the cache and prints where they are.
    Tools,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Test(arguments) => steps::test(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::E2e(arguments) => kubernetes::end_to_end(&arguments),
        Command::Chart(arguments) => chart::chart(&arguments),
        Command::Image(arguments) => image::image(&arguments),
        Command::Tidy => tidy::print(),
        Command::Simulate(arguments) => simulate::simulate(&arguments),
        Command::Tools => install::print_tools(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
