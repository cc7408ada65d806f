//! `hawser workload write`.

use super::WriteArgs;
use super::block::{BLOCK_BYTES, Buffer, RecordId, open};
use super::ledger::{Ack, REGIONS, now_ns, slot};
use crate::output::Output;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use volume::{Error, ErrorKind, Result};

pub fn run(args: &WriteArgs, output: Output) -> Result<()> {
    if let Some(parent) = args.die_with_parent {
        crate::process::die_with_parent(parent)?;
    }
    // Before the namespace changes: the recorder is off the node and its socket need not be visible there.
    let connections: Vec<UnixStream> = (0..args.writers)
        .map(|_| {
            UnixStream::connect(&args.recorder)
                .map_err(|error| Error::io(format!("cannot reach the recorder {}", args.recorder.display()), error))
        })
        .collect::<Result<_>>()?;
    if let Some(pid) = args.mount_namespace_of {
        super::enter_mount_namespace(pid)?;
    }
    let (path, region) = prepare(&args.target, args.epoch, args.slots)?;
    let acks = AtomicU64::new(0);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let started: Vec<_> = connections
            .into_iter()
            .zip(0u32..)
            .map(|(connection, writer)| {
                let (path, acks) = (&path, &acks);
                std::thread::Builder::new()
                    .stack_size(256 << 10)
                    .spawn_scoped(scope, move || write_all(args, path, region, writer, connection, acks))
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

fn write_all(
    args: &WriteArgs,
    path: &Path,
    region: u64,
    writer: u32,
    mut recorder: UnixStream,
    acks: &AtomicU64,
) -> std::result::Result<(), String> {
    let file = open(path, true).map_err(|error| format!("writer {writer}: cannot open {}: {error}", path.display()))?;
    let mut buffer = Buffer::new();
    for seq in 0..args.records.unwrap_or(u64::MAX) {
        let slot = slot(args.writers, args.slots, writer, seq, region);
        let record = RecordId { nonce: args.nonce, epoch: args.epoch, writer, seq, slot };
        let checksum = record.encode(buffer.block());
        let begin_ns = now_ns();
        file.write_all_at(buffer.block(), slot * BLOCK_BYTES as u64)
            .map_err(|error| format!("writer {writer}, record {seq}: {error}"))?;
        let end_ns = now_ns();
        let ack = Ack { nonce: args.nonce, epoch: args.epoch, writer, seq, slot, checksum, begin_ns, end_ns };
        let mut line = serde_json::to_vec(&ack).map_err(|error| error.to_string())?;
        line.push(b'\n');
        recorder.write_all(&line).map_err(|error| format!("writer {writer}: the recorder is gone: {error}"))?;
        acks.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
