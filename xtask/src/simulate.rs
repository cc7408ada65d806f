//! `cargo xtask simulate`: the simulation of `failover`, with as many seeds as one likes, on all cores.

use crate::workspace::{Workspace, cargo};
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct SimulateArguments {
    /// How many seeds to play.
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed; without --seeds this one alone, with all that happens in it.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

const TEST: &str = "sim::tests::no_history_breaks_a_promise";

/// Whether no promise was broken.
pub(crate) fn simulate(arguments: &SimulateArguments) -> Result<bool, String> {
    let workspace = Workspace::load()?;
    let mut test = Command::new(cargo());
    test.current_dir(workspace.root).args(["test", "--quiet", "--package", "failover", "--lib"]);
    test.args(["--", "--exact", TEST, "--nocapture"]);
    for (variable, value) in [("HAWSER_SIMULATE_SEEDS", arguments.seeds), ("HAWSER_SIMULATE_SEED", arguments.seed)] {
        match value {
            Some(value) => test.env(variable, value.to_string()),
            None => test.env_remove(variable),
        };
    }
    let ended = test.status().map_err(|error| format!("cannot start cargo: {error}"))?;
    Ok(ended.success())
}
