//! Writers and checkers for the demo and the tests: what proves that no acknowledged write is lost, and that none comes
//! after a fence. File systems that check clean prove neither.

mod address;
mod block;
mod ledger;
mod recorder;
mod verify;
mod write;

pub use address::RecorderAddress;
pub use ledger::now_ns;
pub use recorder::Recorder;
pub use verify::{VerifyArgs, verify};

use crate::output::Output;
use clap::{Args, Subcommand};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use std::fs::File;
use std::path::PathBuf;
use uuid::Uuid;
use volume::{Error, ErrorKind, Result};

#[derive(Debug, Subcommand)]
pub enum WorkloadCommand {
    /// Write checksummed records durably and report each to a recorder
    Write(WriteArgs),
    /// Compare a volume with the ledger of acknowledged records
    Verify(VerifyArgs),
    /// Take reports of writers on a socket and keep them in a ledger, until SIGTERM or SIGINT
    Record(RecordArgs),
}

#[derive(Debug, Args)]
pub struct RecordArgs {
    /// Where writers report: tcp:ADDRESS:PORT or the path of a unix socket
    #[arg(long, value_name = "WHERE")]
    pub socket: RecorderAddress,
    #[arg(long)]
    pub ledger: PathBuf,
    /// Gives out epochs to writers of this run that have none, and keeps who got which in <LEDGER>.starts
    #[arg(long)]
    pub nonce: Option<Uuid>,
}

#[derive(Debug, Args)]
pub struct WriteArgs {
    /// A directory (the records go to the file records-<epoch> in it) or a block device
    #[arg(long)]
    pub target: PathBuf,
    /// The recorder: tcp:ADDRESS:PORT or the path of its unix socket
    #[arg(long, value_name = "WHERE")]
    pub recorder: RecorderAddress,
    /// Names the run; a ledger of another run is refused
    #[arg(long)]
    pub nonce: Uuid,
    /// Each start of a writer has one of its own [default: the recorder gives the next one]
    #[arg(long)]
    pub epoch: Option<u64>,
    /// Who asks for an epoch, as the recorder keeps it
    #[arg(long, default_value = "")]
    pub name: String,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub writers: u32,
    /// Rest of each writer after a record, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Room for records, 4 KiB each, used in a ring
    #[arg(long, default_value_t = 8192)]
    pub slots: u64,
    /// Stop after so many records of each writer [default: go on until killed or refused]
    #[arg(long)]
    pub records: Option<u64>,
    /// Enter the mount namespace of this process first
    #[arg(long, value_name = "PID")]
    pub mount_namespace_of: Option<u32>,
    /// Be killed when this process, which starts it, ends
    #[arg(long, value_name = "PID")]
    pub die_with_parent: Option<u32>,
}

/// Must be called before any thread starts: entering a mount namespace demands it (setns(2)).
pub fn run(command: WorkloadCommand, output: Output) -> Result<()> {
    match command {
        WorkloadCommand::Write(args) => write::run(&args, output),
        WorkloadCommand::Verify(args) => {
            if let Some(pid) = args.mount_namespace_of {
                enter_mount_namespace(pid)?;
            }
            let findings = verify(&args)?;
            output.print(&findings.to_json(), &findings.to_text());
            if findings.is_pass() {
                Ok(())
            } else {
                Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("the volume does not stand the check: {}", findings.to_text()),
                ))
            }
        }
        WorkloadCommand::Record(args) => {
            let recorder = Recorder::start_for(&args.socket, &args.ledger, args.nonce)?;
            recorder.until_signal()?;
            output.print(&json!({"acks": recorder.count(None)}), &format!("{} acks", recorder.count(None)));
            Ok(())
        }
    }
}

pub fn enter_mount_namespace(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/ns/mnt");
    let namespace = File::open(&path).map_err(|error| Error::io(format!("cannot open {path}"), error))?;
    setns(namespace, CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Error::io(format!("cannot enter the mount namespace {path}"), errno.into()))
}
