//! `hawser bench`: loads a CSI driver, any, with volumes and measures each call, as an orchestrator would see it.
//!
//! What it makes it removes, also after errors and on SIGINT; what could not be removed is said.

mod figures;
mod load;
mod report;
mod steps;
mod target;
mod volume_path;

use crate::cli::BenchArgs;
use crate::client::Client;
use crate::output::Output;
use load::Load;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use target::Target;
use volume::{Error, ErrorKind, Result};

/// Bounds the memory that samples take: 8 calls of 4 bytes each.
const MAX_VOLUMES_IN_ALL: u64 = 200_000;

/// Measures; an error unless every volume came up and went again.
pub fn run(args: &BenchArgs, output: Output) -> Result<()> {
    let in_all = u64::from(args.volumes) * u64::from(args.rounds);
    if in_all > MAX_VOLUMES_IN_ALL {
        return Err(Error::invalid(format!(
            "{in_all} volumes in all rounds are too many; at most {MAX_VOLUMES_IN_ALL} are measured in one run"
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start the load generator's runtime", error))?;
    runtime.block_on(measure(args, output))
}

async fn measure(args: &BenchArgs, output: Output) -> Result<()> {
    let timeout = Duration::from_secs(args.timeout_s);
    let controller_socket = rpc::parse_endpoint(&args.endpoint)?;
    let controller = Client::with_timeout(&controller_socket, timeout);
    let node = match &args.node_endpoint {
        Some(endpoint) => Client::with_timeout(&rpc::parse_endpoint(endpoint)?, timeout),
        None => controller.clone(),
    };
    let target = Target::ask(&controller, &node, args).await?;
    let load = Arc::new(Load::new(args, target, controller, node)?);
    let interrupted = crate::process::termination().map_err(|error| Error::io("cannot wait for signals", error))?;
    let work = rounds(args, &load);
    tokio::pin!(interrupted, work);
    tokio::select! {
        biased;
        () = &mut interrupted => {}
        () = &mut work => return finish(args, output, &load, false),
    }
    // The calls that are under way end by themselves: a cancelled one would leave it open what it did.
    load.stop();
    say("interrupted: removing what was made; once more, and it is left where it is");
    let again = crate::process::termination().map_err(|error| Error::io("cannot wait for signals", error))?;
    tokio::select! {
        biased;
        () = again => {}
        () = &mut work => {}
    }
    finish(args, output, &load, true)
}

async fn rounds(args: &BenchArgs, load: &Arc<Load>) {
    for round in 0..args.rounds {
        load.begin_round(round);
        load.bring_all_up().await;
        if !load.is_stopping() {
            load.hold(Duration::from_secs(args.hold_s)).await;
        }
        load.take_all_down().await;
        if load.is_stopping() {
            break;
        }
    }
    load.remove_directories();
}

fn finish(args: &BenchArgs, output: Output, load: &Load, was_interrupted: bool) -> Result<()> {
    let figures = load.figures();
    let left = load.left_behind();
    let json = report::to_json(args, &load.target, &figures, &left, was_interrupted);
    if let Some(path) = &args.output {
        std::fs::write(path, format!("{json:#}\n"))
            .map_err(|error| Error::io(format!("cannot write {}", path.display()), error))?;
    }
    output.print(&json, &report::to_text(args, &load.target, &figures, &left));
    if !left.is_empty() {
        return Err(Error::new(ErrorKind::FailedPrecondition, format!("left behind: {}", left.join("; "))));
    }
    if was_interrupted {
        return Err(Error::new(ErrorKind::Unavailable, "interrupted; everything that was made is removed"));
    }
    match figures.failed {
        0 => Ok(()),
        failed => Err(Error::new(ErrorKind::Unavailable, format!("{failed} volumes did not come up"))),
    }
}

/// Below the temporary directory, unless told otherwise.
fn default_directory(part: &str) -> PathBuf {
    std::env::temp_dir().join(format!("hawser-bench-{}", std::process::id())).join(part)
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "hawser: {text}");
}
