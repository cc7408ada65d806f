//! `hawser volume trim`.

use super::volume::unsupported;
use crate::output::{Output, Table, printable};
use crate::storage::Storage;
use crate::units::format_size;
use serde_json::{Value, json};
use volume::{Backend, Error, ErrorKind, Result, Trimmed, Volume};

/// Of one volume, or with `None` of all that can be trimmed here.
pub fn trim(storage: &Storage, output: Output, text: Option<&str>) -> Result<()> {
    match text {
        Some(text) => {
            let (backend, volume) = storage.find_volume(text)?;
            let trimmed = trim_one(storage, output, backend, &volume)?;
            output.print(&to_json(&volume, &trimmed), &to_text(&volume, &trimmed));
            Ok(())
        }
        None => trim_all(storage, output),
    }
}

/// Those that are thick, not mounted here or without a file system are left out; what fails is told after the rest.
fn trim_all(storage: &Storage, output: Output) -> Result<()> {
    let (mut values, mut table) = (Vec::new(), Table::new(&["NAME", "DISCARDED", "BEFORE", "AFTER", "ID"]));
    let mut failures: Vec<String> = Vec::new();
    for volume in storage.volumes()? {
        let backend = storage.backend(Some(volume.id.backend()))?;
        match trim_one(storage, output, backend, &volume) {
            Ok(trimmed) => {
                values.push(to_json(&volume, &trimmed));
                table.row([
                    volume.name.to_string(),
                    format_size(trimmed.discarded_bytes),
                    format_size(trimmed.allocated_before_bytes),
                    format_size(trimmed.allocated_after_bytes),
                    volume.id.to_string(),
                ]);
            }
            Err(error) if matches!(error.kind(), ErrorKind::FailedPrecondition | ErrorKind::Unsupported) => {}
            // Deleted since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => failures.push(format!("{}: {}", volume.id, error.chain())),
        }
    }
    output.print_list(values, &table, "no thin volume with a file system is mounted on this machine");
    if failures.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Internal, format!("not trimmed: {}", failures.join("; "))))
}

fn trim_one(storage: &Storage, output: Output, backend: &dyn Backend, volume: &Volume) -> Result<Trimmed> {
    let Some(trim) = backend.trim() else { return Err(unsupported(backend, "trim volumes")) };
    let guard = storage.locks.try_lock([volume.id.as_str()])?;
    output.progress("trimming", || trim.trim(&guard, &volume.id))
}

fn to_json(volume: &Volume, trimmed: &Trimmed) -> Value {
    json!({
        "id": volume.id,
        "name": volume.name,
        "discarded_bytes": trimmed.discarded_bytes,
        "allocated_before_bytes": trimmed.allocated_before_bytes,
        "allocated_after_bytes": trimmed.allocated_after_bytes,
    })
}

fn to_text(volume: &Volume, trimmed: &Trimmed) -> String {
    format!(
        "{}: its file system has {} free; the volume takes {} of the storage now, {} before. Blocks that snapshots and \
         clones share stay allocated as long as one of them has them.",
        printable(volume.name.as_str()),
        format_size(trimmed.discarded_bytes),
        format_size(trimmed.allocated_after_bytes),
        format_size(trimmed.allocated_before_bytes),
    )
}
