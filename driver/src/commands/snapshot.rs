//! `hawser snapshot …` and `hawser volume snapshot`.

use super::group::group_command;
use super::show;
use super::volume::{snapshot_id, unsupported};
use crate::cli::SnapshotCommand;
use crate::output::{Output, Table};
use crate::storage::Storage;
use crate::units::{format_size, format_time};
use serde_json::json;
use volume::{ErrorKind, PageRequest, Result, SnapshotFilter, VolumeName};

pub fn snapshot_command(storage: &Storage, output: Output, command: SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Ls { volume } => list(storage, output, volume.as_deref()),
        SnapshotCommand::Rm { snapshot } => remove(storage, output, &snapshot),
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
