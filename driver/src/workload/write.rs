//! `hawser workload write`.

use super::WriteArgs;
use super::address::Connection;
use super::block::{BLOCK_BYTES, Buffer, RecordId, open};
use super::ledger::{Ack, REGIONS, StartRequest, now_ns, slot};
use crate::output::Output;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;
use volume::{Error, ErrorKind, Result};

pub fn run(args: &WriteArgs, output: Output) -> Result<()> {
    if let Some(parent) = args.die_with_parent {
        crate::process::die_with_parent(parent)?;
    }
    // Before the namespace changes: the recorder is off the node and its socket need not be visible there.
    let connect = || {
        let connected = args.recorder.connect();
        connected.map_err(|error| Error::io(format!("cannot reach the recorder {}", args.recorder), error))
    };
    let epoch = match args.epoch {
        Some(epoch) => epoch,
        None => ask_for_epoch(connect()?, args.nonce, &args.name)?,
    };
    let connections: Vec<Box<dyn Connection>> = (0..args.writers).map(|_| connect()).collect::<Result<_>>()?;
    if let Some(pid) = args.mount_namespace_of {
        super::enter_mount_namespace(pid)?;
    }
    let (path, region) = prepare(&args.target, epoch, args.slots)?;
    let job = Job { args, epoch, path: &path, region };
    let acks = AtomicU64::new(0);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let started: Vec<_> = connections
            .into_iter()
            .zip(0u32..)
            .map(|(connection, writer)| {
                let (job, acks) = (&job, &acks);
                std::thread::Builder::new()
                    .stack_size(256 << 10)
                    .spawn_scoped(scope, move || job.write_all(writer, connection, acks))
            })
            .collect();
        started
            .into_iter()
            .filter_map(|thread| match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(failure))) => Some(failure),
                Ok(Err(_)) => Some("a writer panicked".to_owned()),
                Err(error) => Some(format!("cannot start a writer: {error}")),
            })
            .collect()
    });
    let acks = acks.into_inner();
    output.print(&json!({"acks": acks, "failures": failures}), &format!("{acks} records are durable"));
    match failures.first() {
        None => Ok(()),
        Some(first) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{} of {} writers were stopped; the first by: {first}", failures.len(), args.writers),
        )),
    }
}

/// The epoch that the recorder gives to this start.
pub(super) fn ask_for_epoch(mut recorder: Box<dyn Connection>, nonce: Uuid, name: &str) -> Result<u64> {
    let failed = |error| Error::io("cannot ask the recorder for an epoch", error);
    let request = StartRequest { start: nonce, name: name.to_owned() };
    let mut line = serde_json::to_vec(&request).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    recorder.write_all(&line).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(recorder).read_line(&mut answer).map_err(failed)?;
    answer.trim().parse().map_err(|_| {
        Error::new(ErrorKind::FailedPrecondition, "the recorder gives no epoch: it records another run, or none")
    })
}

/// What the writers have in common.
struct Job<'a> {
    args: &'a WriteArgs,
    epoch: u64,
    path: &'a Path,
    region: u64,
}

/// The file or device to write to, with room, and the region of it.
fn prepare(target: &Path, epoch: u64, slots: u64) -> Result<(PathBuf, u64)> {
    let about = || format!("cannot prepare {}", target.display());
    let kind = std::fs::metadata(target).map_err(|error| Error::io(about(), error))?.file_type();
    if kind.is_block_device() {
        return Ok((target.to_owned(), epoch % REGIONS));
    }
    let path = target.join(format!("records-{epoch}"));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| Error::io(about(), error))?;
    file.set_len(slots * BLOCK_BYTES as u64).map_err(|error| Error::io(about(), error))?;
    file.sync_all().map_err(|error| Error::io(about(), error))?;
    let directory = File::open(target).map_err(|error| Error::io(about(), error))?;
    directory.sync_all().map_err(|error| Error::io(about(), error))?;
    Ok((path, 0))
}

impl Job<'_> {
    fn write_all(
        &self,
        writer: u32,
        mut recorder: Box<dyn Connection>,
        acks: &AtomicU64,
    ) -> std::result::Result<(), String> {
        let Self { args, epoch, path, region } = *self;
        let file =
            open(path, true).map_err(|error| format!("writer {writer}: cannot open {}: {error}", path.display()))?;
        let mut buffer = Buffer::new();
        for seq in 0..args.records.unwrap_or(u64::MAX) {
            let slot = slot(args.writers, args.slots, writer, seq, region);
            let record = RecordId { nonce: args.nonce, epoch, writer, seq, slot };
            let checksum = record.encode(buffer.block());
            let begin_ns = now_ns();
            file.write_all_at(buffer.block(), slot * BLOCK_BYTES as u64)
                .map_err(|error| format!("writer {writer}, record {seq}: {error}"))?;
            let end_ns = now_ns();
            let ack = Ack { nonce: args.nonce, epoch, writer, seq, slot, checksum, begin_ns, end_ns };
            let mut line = serde_json::to_vec(&ack).map_err(|error| error.to_string())?;
            line.push(b'\n');
            recorder.write_all(&line).map_err(|error| format!("writer {writer}: the recorder is gone: {error}"))?;
            acks.fetch_add(1, Ordering::Relaxed);
            if args.pause_ms > 0 {
                std::thread::sleep(Duration::from_millis(args.pause_ms));
            }
        }
        Ok(())
    }
}
