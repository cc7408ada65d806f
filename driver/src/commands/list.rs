//! `hawser node ls` and `hawser orphan …`.

use super::show;
use crate::output::{Output, Table};
use crate::storage::Storage;
use crate::units::{format_size, format_time};
use serde_json::{Value, json};
use volume::{Orphan, Result};

pub fn nodes(storage: &Storage, output: Output) -> Result<()> {
    let nodes = storage.nodes()?;
    let volumes = storage.volumes()?;
    let holds = |record: &volume::NodeRecord| {
        volumes
            .iter()
            .filter(|v| v.attachment.as_ref().is_some_and(|held| held.holder.node == record.identity.id))
            .count()
    };
    let mut table = Table::new(&["NODE", "STATE", "VOLUMES", "REGISTERED", "BACKEND", "INCARNATION"]);
    let mut values = Vec::new();
    for (backend, record) in &nodes {
        table.row([
            record.identity.id.to_string(),
            show::node_state(record),
            holds(record).to_string(),
            format_time(record.registered_at_ms),
            backend.to_string(),
            record.identity.incarnation.to_string(),
        ]);
        let mut value = serde_json::to_value(record).unwrap_or(Value::Null);
        value["backend"] = json!(backend);
        value["volumes"] = json!(holds(record));
        values.push(value);
    }
    output.print_list(values, &table, "no node has registered yet");
    Ok(())
}

pub fn orphans(storage: &Storage, output: Output) -> Result<()> {
    let mut found = Vec::new();
    for backend in storage.backends() {
        if let Some(fence) = backend.fence() {
            found.extend(fence.orphans()?);
        }
    }
    print_orphans(output, &found, "no orphans");
    Ok(())
}

pub fn remove_orphans(storage: &Storage, output: Output, volume: Option<&str>) -> Result<()> {
    let mut removed = Vec::new();
    match volume {
        Some(text) => {
            let (backend, volume) = storage.find_volume(text)?;
            if let Some(fence) = backend.fence() {
                removed.extend(fence.remove_orphans(Some(&volume.id))?);
            }
        }
        None => {
            for backend in storage.backends() {
                if let Some(fence) = backend.fence() {
                    removed.extend(fence.remove_orphans(None)?);
                }
            }
        }
    }
    print_orphans(output, &removed, "nothing to remove");
    Ok(())
}

fn print_orphans(output: Output, orphans: &[Orphan], when_empty: &str) {
    let mut table = Table::new(&["VOLUME", "IMAGE", "ALLOCATED", "SINCE"]);
    for orphan in orphans {
        table.row([
            orphan.volume.to_string(),
            orphan.image.name.clone(),
            format_size(orphan.allocated_bytes),
            format_time(orphan.created_at_ms),
        ]);
    }
    output.print_list(orphans.iter().map(show::orphan_json).collect(), &table, when_empty);
}
