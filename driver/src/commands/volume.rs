//! `hawser volume …`.

use super::show;
use crate::cli::{CreateArgs, VolumeCommand};
use crate::output::{Output, Table};
use crate::storage::Storage;
use crate::units::format_size;
use serde_json::json;
use volume::{
    AccessMode, AccessType, Backend, Error, ErrorKind, MutableChange, Orphan, Parameters, Result, SizeRange,
    SnapshotId, TopologyRequirement, Volume, VolumeCapability, VolumeId, VolumeKind, VolumeName, VolumeSource,
    VolumeSpec,
};

pub fn volume_command(storage: &Storage, output: Output, command: VolumeCommand) -> Result<()> {
    match command {
        VolumeCommand::Ls => list(storage, output),
        VolumeCommand::Inspect { volume } => inspect(storage, output, &volume),
        VolumeCommand::Create(create) => {
            let created = create_volume(storage, output, &create)?;
            print_made(output, &created);
            Ok(())
        }
        VolumeCommand::Rm { volume } => remove(storage, output, &volume),
        VolumeCommand::Expand { volume, size_bytes } => expand(storage, output, &volume, size_bytes),
        VolumeCommand::Modify { volume, parameters } => modify(storage, output, &volume, &parameters),
        VolumeCommand::Snapshot { volume, name } => super::snapshot::create(storage, output, &volume, &name),
        VolumeCommand::Clone { source, name, size_bytes } => {
            let (backend, source) = storage.find_volume(&source)?;
            if !backend.can_clone() {
                return Err(unsupported(backend, "clone volumes"));
            }
            let from = VolumeSource::Volume(source.id.clone());
            let keys = source.id.to_string();
            let spec = spec_of(backend, &name, source.kind, size_bytes.unwrap_or(source.size_bytes), Some(from))?;
            let made = ensure(storage, output, backend, &spec, Some(&keys))?;
            print_made(output, &made);
            Ok(())
        }
        VolumeCommand::Trim { volume, .. } => super::trim::trim(storage, output, volume.as_deref()),
        VolumeCommand::Rebuild { volume } => rebuild(storage, output, &volume),
        VolumeCommand::Restore { snapshot, name, size_bytes } => {
            let (backend, source) = storage.find_snapshot(&snapshot)?;
            let from = VolumeSource::Snapshot(source.id.clone());
            let keys = source.id.to_string();
            let spec = spec_of(backend, &name, source.kind, size_bytes.unwrap_or(source.size_bytes), Some(from))?;
            let made = ensure(storage, output, backend, &spec, Some(&keys))?;
            print_made(output, &made);
            Ok(())
        }
    }
}

fn rebuild(storage: &Storage, output: Output, text: &str) -> Result<()> {
    let (backend, volume) = storage.find_volume(text)?;
    let guard = storage.locks.try_lock([volume.id.as_str()])?;
    output.progress("rebuilding", || backend.rebuild_volume(&guard, &volume.id))?;
    let (_, volume) = storage.find_volume(volume.id.as_str())?;
    print_made(output, &volume);
    Ok(())
}

fn list(storage: &Storage, output: Output) -> Result<()> {
    let volumes = storage.volumes()?;
    let mut table = Table::new(&["NAME", "SIZE", "KIND", "HOLDER", "EPOCH", "ID"]);
    for volume in &volumes {
        let name = volume.name.as_str();
        let name = if volume.problem.is_some() { format!("{name} (!)") } else { name.to_owned() };
        table.row([
            name,
            format_size(volume.size_bytes),
            show::kind(volume.kind),
            show::holder(volume.attachment.as_ref()),
            volume.epoch.to_string(),
            volume.id.to_string(),
        ]);
    }
    output.print_list(volumes.iter().map(show::volume_json).collect(), &table, "no volumes");
    Ok(())
}

fn inspect(storage: &Storage, output: Output, text: &str) -> Result<()> {
    let (backend, volume) = storage.find_volume(text)?;
    let orphans: Vec<Orphan> = match backend.fence() {
        Some(fence) => fence.orphans()?.into_iter().filter(|orphan| orphan.volume == volume.id).collect(),
        None => Vec::new(),
    };
    let mut value = show::volume_json(&volume);
    value["orphans"] = orphans.iter().map(show::orphan_json).collect();
    output.print(&value, &show::volume_text(&volume, &orphans));
    Ok(())
}

fn create_volume(storage: &Storage, output: Output, create: &CreateArgs) -> Result<Volume> {
    let parameters = Parameters::parse(create.parameters.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
    let backend = storage.backend(parameters.backend.as_deref())?;
    let access_mode = if create.directory { AccessMode::MultiNodeMultiWriter } else { AccessMode::SingleNodeWriter };
    let access_type = if create.block {
        AccessType::Block
    } else {
        AccessType::Mount { fs_type: None, mount_flags: Vec::new(), mount_group: None }
    };
    let capability = VolumeCapability { access_mode, access_type };
    let kind = VolumeKind::for_capabilities(&[capability], parameters.fs_type)?;
    let mut spec = spec_of(backend, &create.name, kind, create.size_bytes, None)?;
    spec.parameters = parameters;
    ensure(storage, output, backend, &spec, None)
}

fn remove(storage: &Storage, output: Output, text: &str) -> Result<()> {
    let found = storage.find_volume(text);
    let removed = match found {
        Ok((backend, volume)) => {
            let guard = storage.locks.try_lock([volume.id.as_str()])?;
            output.progress("deleting", || backend.delete_volume(&guard, &volume.id))?;
            Some(volume.id)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let text = match &removed {
        Some(id) => format!("deleted {id}"),
        None => format!("no volume {text:?}; nothing to delete"),
    };
    output.print(&json!({"deleted": removed}), &text);
    Ok(())
}

fn expand(storage: &Storage, output: Output, text: &str, size_bytes: u64) -> Result<()> {
    let (backend, volume) = storage.find_volume(text)?;
    let Some(expand) = backend.expand() else { return Err(unsupported(backend, "expand volumes")) };
    let guard = storage.locks.try_lock([volume.id.as_str()])?;
    let size = SizeRange { required_bytes: Some(size_bytes), limit_bytes: None };
    let (size_bytes, node_must_act) = output.progress("growing", || expand.expand(&guard, &volume.id, size))?;
    let mut text = format!("{} has {} now", volume.id, format_size(size_bytes));
    if node_must_act {
        text.push_str("; its file system grows when the node expands it or stages it next");
    }
    output.print(&json!({"id": volume.id, "size_bytes": size_bytes, "node_must_act": node_must_act}), &text);
    Ok(())
}

fn modify(storage: &Storage, output: Output, text: &str, parameters: &[(String, String)]) -> Result<()> {
    let change = MutableChange::parse(parameters.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
    let (backend, volume) = storage.find_volume(text)?;
    let Some(modify) = backend.modify() else { return Err(unsupported(backend, "modify volumes")) };
    let guard = storage.locks.try_lock([volume.id.as_str()])?;
    modify.modify(&guard, &volume.id, &change)?;
    let (_, volume) = storage.find_volume(volume.id.as_str())?;
    let now = volume.mutable.to_pairs();
    let now: Vec<_> = now.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let now = if now.is_empty() { "the defaults".to_owned() } else { now.join(" ") };
    let text = format!("{} has {now}; the node that uses it applies that within seconds", volume.id);
    output.print(&show::volume_json(&volume), &text);
    Ok(())
}

fn spec_of(
    backend: &dyn Backend,
    name: &str,
    kind: VolumeKind,
    size_bytes: u64,
    source: Option<VolumeSource>,
) -> Result<VolumeSpec> {
    let name = VolumeName::parse(name)?;
    Ok(VolumeSpec {
        id: VolumeId::of_name(backend.name(), &name),
        name,
        size: SizeRange { required_bytes: Some(size_bytes), limit_bytes: None },
        kind,
        source,
        parameters: Parameters::default(),
        mutable: Default::default(),
        topology: TopologyRequirement::default(),
    })
}

fn ensure(
    storage: &Storage,
    output: Output,
    backend: &dyn Backend,
    spec: &VolumeSpec,
    source: Option<&str>,
) -> Result<Volume> {
    let guard = storage.locks.try_lock([spec.id.as_str()].into_iter().chain(source))?;
    output.progress("creating", || backend.ensure_volume(&guard, spec))
}

fn print_made(output: Output, volume: &Volume) {
    let text = format!("{} ({}, {})", volume.id, format_size(volume.size_bytes), volume.kind);
    output.print(&show::volume_json(volume), &text);
}

pub fn unsupported(backend: &dyn Backend, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("backend {} cannot {what}", backend.name()))
}

/// The id that a snapshot of this name has.
pub fn snapshot_id(backend: &dyn Backend, name: &VolumeName) -> SnapshotId {
    SnapshotId::of_name(backend.name(), name)
}
