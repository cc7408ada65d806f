//! `hawser snapshot group …`.

use super::show;
use super::volume::unsupported;
use crate::cli::GroupCommand;
use crate::output::{Output, Table};
use crate::storage::Storage;
use crate::units::format_time;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use volume::{
    Backend, Error, GroupSnapshot, GroupSnapshotId, PageRequest, Result, SnapshotFilter, SnapshotId, VolumeName,
};

pub fn group_command(storage: &Storage, output: Output, command: GroupCommand) -> Result<()> {
    match command {
        GroupCommand::Create { name, volumes } => create(storage, output, &name, &volumes),
        GroupCommand::Ls => list(storage, output),
        GroupCommand::Rm { group } => remove(storage, output, &group),
    }
}

fn create(storage: &Storage, output: Output, name: &str, volumes: &[String]) -> Result<()> {
    let name = VolumeName::parse(name)?;
    let found = volumes.iter().map(|volume| storage.find_volume(volume)).collect::<Result<Vec<_>>>()?;
    let Some(backend) = found.first().map(|(backend, _)| *backend) else {
        return Err(Error::invalid("a group snapshot needs at least one volume"));
    };
    if let Some((other, volume)) = found.iter().find(|(other, _)| other.name() != backend.name()) {
        return Err(Error::invalid(format!(
            "volume {} is on backend {} and others are on {}; a group snapshot is of volumes of one backend",
            volume.id,
            other.name(),
            backend.name()
        )));
    }
    let Some(groups) = backend.group_snapshots() else { return Err(unsupported(backend, "take group snapshots")) };
    let id = GroupSnapshotId::of_name(backend.name(), &name);
    let sources: Vec<_> = found.iter().map(|(_, volume)| volume.id.clone()).collect();
    let members: Vec<_> = sources.iter().map(|source| SnapshotId::of_member(&id, source)).collect();
    let ids = sources.iter().map(|source| source.as_str()).chain(members.iter().map(SnapshotId::as_str));
    let guard = storage.locks.try_lock(ids.chain([id.as_str()]))?;
    let made =
        output.progress("taking the group snapshot", || groups.ensure_group_snapshot(&guard, &id, &name, &sources))?;
    let lines = made.snapshots.iter().map(|member| format!("  {} of {}\n", member.id, member.source));
    output.print(&group_json(&made), &format!("{}\n{}", made.id, lines.collect::<String>()));
    Ok(())
}

fn list(storage: &Storage, output: Output) -> Result<()> {
    let mut table = Table::new(&["NAME", "VOLUMES", "CREATED", "ID"]);
    let mut values = Vec::new();
    for group in all(storage)? {
        table.row([
            group.name.to_string(),
            group.snapshots.len().to_string(),
            format_time(group.created_at_ms),
            group.id.to_string(),
        ]);
        values.push(group_json(&group));
    }
    output.print_list(values, &table, "no group snapshots");
    Ok(())
}

fn remove(storage: &Storage, output: Output, text: &str) -> Result<()> {
    let candidates: Vec<(&dyn Backend, GroupSnapshotId)> = match GroupSnapshotId::parse(text) {
        Ok(id) => vec![(storage.backend(Some(id.backend()))?, id)],
        Err(_) => {
            let name = VolumeName::parse(text)?;
            storage.backends().map(|backend| (backend, GroupSnapshotId::of_name(backend.name(), &name))).collect()
        }
    };
    for (backend, id) in candidates {
        let Some(groups) = backend.group_snapshots() else { continue };
        let Some(group) = groups.find_group_snapshot(&id)? else { continue };
        let members = group.snapshots.iter().map(|member| member.id.as_str());
        let guard = storage.locks.try_lock(members.chain([id.as_str()]))?;
        output.progress("deleting", || groups.delete_group_snapshot(&guard, &id))?;
        output.print(&json!({"deleted": id}), &format!("deleted {id}"));
        return Ok(());
    }
    output.print(&json!({"deleted": null}), &format!("no group snapshot {text:?}; nothing to delete"));
    Ok(())
}

/// Those that snapshots say they belong to.
fn all(storage: &Storage) -> Result<Vec<GroupSnapshot>> {
    let mut found = Vec::new();
    for backend in storage.backends() {
        let (Some(snapshots), Some(groups)) = (backend.snapshots(), backend.group_snapshots()) else { continue };
        let all = snapshots.list_snapshots(&SnapshotFilter::default(), &PageRequest::default())?.entries;
        let ids: BTreeSet<GroupSnapshotId> = all.into_iter().filter_map(|snapshot| snapshot.group).collect();
        for id in ids {
            found.extend(groups.find_group_snapshot(&id)?);
        }
    }
    Ok(found)
}

fn group_json(group: &GroupSnapshot) -> Value {
    json!({
        "id": group.id,
        "name": group.name,
        "created_at": format_time(group.created_at_ms),
        "snapshots": group.snapshots.iter().map(show::snapshot_json).collect::<Vec<_>>(),
    })
}
