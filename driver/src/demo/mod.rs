//! `hawser demo`: a volume is made, used, taken from a node that dies or freezes, and given to another; every write
//! that was acknowledged is looked for. On real loop devices, with the same code that serves an orchestrator.

mod cluster;
mod machine;
mod report;
mod scenario;
mod scratch;
mod steps;

use crate::cli::{DemoArgs, Fault};
use crate::output::Output;
use report::Report;
use volume::{Error, ErrorKind, Result};

/// Runs the demo; an error unless its verdict is PASS and nothing is left behind. Before any thread starts.
pub fn run(args: &DemoArgs, output: Output) -> Result<()> {
    if args.without_fence && args.fault == Fault::Kill {
        return Err(Error::invalid(
            "a killed node cannot write, fenced or not: --without-fence goes with --fault freeze",
        ));
    }
    let mut report = Report::new(output, args);
    machine::check(&mut report)?;
    // All that the demo mounts is gone with its last process, also after a SIGKILL.
    crate::process::private_mounts()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start the demo's runtime", error))?;
    // Before there is anything to leave behind.
    let stopped = runtime.block_on(async { crate::process::termination() });
    let stopped = stopped.map_err(|error| Error::io("cannot wait for signals", error))?;
    let told = scratch::Scratch::make(args).and_then(|scratch| {
        let told = runtime.block_on(async {
            tokio::select! {
                biased;
                () = stopped => Err(Error::new(ErrorKind::Unavailable, "interrupted")),
                told = scenario::play(args, &scratch, &mut report) => told,
            }
        });
        // A fence that is under way ends before what it works on is taken away.
        runtime.shutdown_timeout(std::time::Duration::from_secs(30));
        // Whatever happened: processes first, for they hold mounts, and mounts hold loops.
        let left = scratch.clean_up(args.keep, &mut report);
        told.and(left)
    });
    match told {
        Ok(()) if report.is_pass() => {
            report.finish(None);
            Ok(())
        }
        Ok(()) => {
            report.finish(None);
            Err(Error::new(ErrorKind::Corrupt, "the demo's verdict is FAIL"))
        }
        Err(error) => {
            report.finish(Some(&error));
            Err(error.context("the demo did not get through"))
        }
    }
}
