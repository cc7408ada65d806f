//! Tests against the real binary on real devices; `cargo xtask test` runs them. Each test ends in one line:
//! `ok NAME`, `FAILED NAME: why` or `SKIPPED: NAME: why`.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests start the binary under test, and mount(8), losetup(8) and mkfs for their pools"
)]

mod bench;
mod calls;
mod cancel;
mod client;
mod compat;
mod crash;
mod damage;
mod failover;
mod failure;
mod fencing;
mod health;
mod input;
mod junit;
mod kubernetes;
mod lab;
mod metadata;
mod modify;
mod report;
mod restart;
mod sanity;
mod scenario;
mod stale;
mod state;
mod storms;

use clap::{Parser, Subcommand};
use failure::Result;
use report::Report;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

#[derive(Parser)]
#[command(about = "Tests of the hawser binary")]
struct Arguments {
    /// The binary to test.
    #[arg(long)]
    hawser: PathBuf,
    /// Only tests whose name contains this.
    #[arg(long, global = true)]
    filter: Option<String>,
    /// No tests whose name contains this (repeatable).
    #[arg(long, global = true, value_name = "FILTER")]
    except: Vec<String>,
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// csi-sanity in each profile.
    Sanity {
        /// The csi-sanity program.
        #[arg(long)]
        csi_sanity: PathBuf,
    },
    /// Clients of older and later versions of CSI.
    Compat {
        /// The directory of the clients, each named by its version.
        #[arg(long)]
        clients: PathBuf,
    },
    /// Many calls at once.
    Storms,
    /// The client goes away.
    Cancel,
    /// The process is killed after each effect.
    Crash,
    /// The process is stopped after each effect, another takes over, and it goes on.
    Stale,
    /// Published volumes while the process is killed, started and stopped.
    Restart,
    /// Mutable parameters of published volumes.
    Modify,
    /// Fences that are interrupted or overtaken.
    Fencing,
    /// Nothing acknowledged is lost, nothing is acknowledged after the fence.
    Failover,
    /// Bad input over the wire.
    Input,
    /// Storage that breaks under the driver.
    Damage,
    /// What the SnapshotMetadata service says of snapshots, against their bytes.
    Metadata,
    /// A real Kubernetes on this machine, with hawser in it.
    Kubernetes(kubernetes::Arguments),
    /// Measures; prints lines of JSON for `cargo xtask bench`.
    Bench {
        measure: bench::Measure,
        /// Few samples: shows that it works, not how fast.
        #[arg(long)]
        quick: bool,
    },
}

/// Set in the process that has the mount namespace of its own.
const INSIDE: &str = "E2E_INSIDE";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Suite::Kubernetes(wanted) = &arguments.suite
        && kubernetes::has_inside(wanted)
        && !kubernetes::is_inside()
    {
        return kubernetes::outside(wanted);
    }
    if !kubernetes::is_inside() && std::env::var_os(INSIDE).is_none() && can_enter_namespace() {
        return enter_namespace();
    }
    let report = Report::new(arguments.filter.clone(), arguments.except.clone());
    let hawser = &arguments.hawser;
    let ended = match &arguments.suite {
        Suite::Sanity { csi_sanity } => sanity::suite(&report, hawser, csi_sanity),
        Suite::Compat { clients } => compat::suite(&report, hawser, clients),
        Suite::Storms => storms::suite(&report, hawser),
        Suite::Cancel => cancel::suite(&report, hawser),
        Suite::Crash => crash::suite(&report, hawser),
        Suite::Stale => stale::suite(&report, hawser),
        Suite::Restart => restart::suite(&report, hawser),
        Suite::Modify => modify::suite(&report, hawser),
        Suite::Fencing => fencing::suite(&report, hawser),
        Suite::Failover => failover::suite(&report, hawser),
        Suite::Input => input::suite(&report, hawser),
        Suite::Damage => damage::suite(&report, hawser),
        Suite::Metadata => metadata::suite(&report, hawser),
        Suite::Kubernetes(wanted) => kubernetes::suite(&report, hawser, wanted),
        Suite::Bench { measure, quick } => bench::run(*measure, hawser, *quick),
    };
    if let Err(failure) = ended {
        report.failed("set-up", &failure.to_string());
    }
    if report.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

const UNSHARE: [&str; 4] = ["--mount", "--propagation", "private", "--"];

/// Whether a mount namespace can be had; without root every test that needs one says that it is skipped.
fn can_enter_namespace() -> bool {
    lab::kernel::program("unshare", &[&UNSHARE[..], &["true"]].concat()).is_ok()
}

/// Runs this program again in a mount namespace of its own, so that whatever becomes of it no mount is left behind.
fn enter_namespace() -> ExitCode {
    let mut unshare = Command::new("unshare");
    let error = match std::env::current_exe() {
        Ok(own) => unshare.args(UNSHARE).arg(own).args(std::env::args_os().skip(1)).env(INSIDE, "1").exec(),
        Err(error) => error,
    };
    println!("FAILED set-up: cannot start unshare(1): {error}");
    ExitCode::FAILURE
}

/// Why the real devices cannot be used here, if so.
fn missing_privilege() -> Option<String> {
    let directory = std::env::temp_dir().join(format!("hawser-e2e-{}-probe", std::process::id()));
    let tried: Result<()> = (|| {
        std::fs::create_dir_all(&directory)?;
        lab::kernel::program("mount", &["-t", "tmpfs", "none", &directory.to_string_lossy()])?;
        lab::kernel::program("umount", &[&*directory.to_string_lossy()])?;
        lab::kernel::program("losetup", &["--find"])?;
        Ok(())
    })();
    let _ = std::fs::remove_dir(&directory);
    tried.err().map(|failure| format!("no mounts or loop devices here: {failure}"))
}
