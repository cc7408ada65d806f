//! `hawser snapshot …` and `hawser volume snapshot`.

use super::group::group_command;
use super::show;
use super::volume::{snapshot_id, unsupported};
use crate::cli::SnapshotCommand;
use crate::output::{Output, Table};
use crate::storage::Storage;
use crate::units::{format_size, format_time};
use serde_json::json;
use volume::{
    Backend, BlockRanges, ByteRange, ChangedBlocks, Error, ErrorKind, PageRequest, Result, SnapshotFilter, VolumeName,
};

pub fn snapshot_command(storage: &Storage, output: Output, command: SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Ls { volume } => list(storage, output, volume.as_deref()),
        SnapshotCommand::Rm { snapshot } => remove(storage, output, &snapshot),
        SnapshotCommand::Blocks { snapshot } => {
            let (backend, snapshot) = storage.find_snapshot(&snapshot)?;
            let blocks = changed_blocks(backend)?;
            let ranges = output.progress("reading", || collect(blocks.allocated(&snapshot.id, 0)?))?;
            print_ranges(output, snapshot.size_bytes, &ranges, "no data: it reads as zeros");
            Ok(())
        }
        SnapshotCommand::Diff { base, target } => {
            let (of_base, base) = storage.find_snapshot(&base)?;
            let (backend, target) = storage.find_snapshot(&target)?;
            if of_base.name() != backend.name() {
                return Err(Error::invalid(format!("{} and {} are not of one volume", base.id, target.id)));
            }
            let blocks = changed_blocks(backend)?;
            let ranges = output.progress("comparing", || collect(blocks.changed(&base.id, &target.id, 0)?))?;
            print_ranges(output, target.size_bytes, &ranges, "no difference");
            Ok(())
        }
        SnapshotCommand::Group(command) => group_command(storage, output, command),
    }
}

pub fn create(storage: &Storage, output: Output, volume: &str, name: &str) -> Result<()> {
    let (backend, source) = storage.find_volume(volume)?;
    let Some(snapshots) = backend.snapshots() else { return Err(unsupported(backend, "take snapshots")) };
    let name = VolumeName::parse(name)?;
    let id = snapshot_id(backend, &name);
    let guard = storage.locks.try_lock([id.as_str(), source.id.as_str()])?;
    let made = output.progress("taking the snapshot", || snapshots.ensure_snapshot(&guard, &id, &name, &source.id))?;
    let text = format!("{} ({} of {})", made.id, format_size(made.size_bytes), made.source);
    output.print(&show::snapshot_json(&made), &text);
    Ok(())
}

fn list(storage: &Storage, output: Output, volume: Option<&str>) -> Result<()> {
    let source = match volume {
        Some(text) => Some(storage.find_volume(text)?.1.id),
        None => None,
    };
    let filter = SnapshotFilter { id: None, source };
    let mut found = Vec::new();
    for backend in storage.backends() {
        if let Some(snapshots) = backend.snapshots() {
            found.extend(snapshots.list_snapshots(&filter, &PageRequest::default())?.entries);
        }
    }
    let mut table = Table::new(&["NAME", "SIZE", "KIND", "CREATED", "SOURCE", "GROUP", "ID"]);
    for snapshot in &found {
        table.row([
            snapshot.name.to_string(),
            format_size(snapshot.size_bytes),
            show::kind(snapshot.kind),
            format_time(snapshot.created_at_ms),
            snapshot.source.to_string(),
            snapshot.group.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            snapshot.id.to_string(),
        ]);
    }
    output.print_list(found.iter().map(show::snapshot_json).collect(), &table, "no snapshots");
    Ok(())
}

fn changed_blocks(backend: &dyn Backend) -> Result<&dyn ChangedBlocks> {
    backend.changed_blocks().ok_or_else(|| unsupported(backend, "tell which blocks its snapshots hold"))
}

fn collect(found: BlockRanges) -> Result<Vec<ByteRange>> {
    found.ranges.collect()
}

/// Of the snapshot whose size is given.
fn print_ranges(output: Output, size_bytes: u64, ranges: &[ByteRange], when_empty: &str) {
    let total: u64 = ranges.iter().map(|range| range.length_bytes).sum();
    let mut table = Table::new(&["OFFSET", "LENGTH"]);
    for range in ranges {
        table.row([range.offset_bytes.to_string(), range.length_bytes.to_string()]);
    }
    let text = match ranges {
        [] => when_empty.to_owned(),
        _ => format!("{table}{total} of {size_bytes} bytes"),
    };
    let range = |range: &ByteRange| json!({"offset_bytes": range.offset_bytes, "length_bytes": range.length_bytes});
    let ranges: Vec<_> = ranges.iter().map(range).collect();
    output.print(&json!({"size_bytes": size_bytes, "total_bytes": total, "ranges": ranges}), &text);
}

fn remove(storage: &Storage, output: Output, text: &str) -> Result<()> {
    let removed = match storage.find_snapshot(text) {
        Ok((backend, snapshot)) => {
            let Some(snapshots) = backend.snapshots() else { return Err(unsupported(backend, "take snapshots")) };
            let guard = storage.locks.try_lock([snapshot.id.as_str()])?;
            output.progress("deleting", || snapshots.delete_snapshot(&guard, &snapshot.id))?;
            Some(snapshot.id)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let text = match &removed {
        Some(id) => format!("deleted {id}"),
        None => format!("no snapshot {text:?}; nothing to delete"),
    };
    output.print(&json!({"deleted": removed}), &text);
    Ok(())
}
