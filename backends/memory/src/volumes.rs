//! Volumes: made, found, listed, grown and removed.

use crate::state::{Image, State, VolumeRecord};
use crate::{MemoryBackend, Storage, now_ms};
use host::Host;
use host::filesystem::minimum_size;
use std::path::Path;
use volume::{
    Attach, Backend, BackendName, Capacity, CapacityQuery, ChangedBlocks, Epoch, Error, ErrorKind, Expand, Fence,
    FsType, GroupSnapshots, Modify, MutableChange, MutableParameters, Page, PageRequest, Restrictions, Result,
    Segments, SizeRange, Snapshots, Volume, VolumeGuard, VolumeId, VolumeKind, VolumeSource, VolumeSpec,
};

const MIB: u64 = 1 << 20;
const DEFAULT_BYTES: u64 = 1 << 30;

impl Backend for MemoryBackend {
    fn name(&self) -> &BackendName {
        &self.storage.name
    }

    fn ensure_volume(&self, guard: &VolumeGuard, spec: &VolumeSpec) -> Result<Volume> {
        guard.check(spec.id.as_str())?;
        let storage = &self.storage;
        let mut state = storage.state();
        if let Some(existing) = state.volumes.get(&spec.id) {
            spec.check_compatible(&existing.volume)?;
            return Ok(existing.volume.clone());
        }
        let mutable = spec.mutable.apply_to(MutableParameters::default());
        mutable.check_kind(spec.kind)?;
        spec.topology.check(&[])?;
        let source = spec.source.as_ref().map(|source| Source::find(guard, &state, source)).transpose()?;
        let size_bytes = choose_size(storage, &state, spec, source.as_ref())?;
        let image = storage.make_content(spec, size_bytes, source.as_ref().map(|source| source.image.as_path()))?;
        let volume = Volume {
            id: spec.id.clone(),
            name: spec.name.clone(),
            size_bytes,
            kind: spec.kind,
            thick: spec.parameters.thick,
            source: spec.source.clone(),
            parameters: spec.parameters.clone(),
            mutable,
            accessible_topology: Vec::new(),
            epoch: Epoch::default(),
            attachment: None,
            created_at_ms: now_ms(),
            problem: None,
        };
        state.volumes.insert(spec.id.clone(), VolumeRecord { volume: volume.clone(), image, modified: 0 });
        Ok(volume)
    }

    fn find_volume(&self, id: &VolumeId) -> Result<Option<Volume>> {
        Ok(self.storage.state().volumes.get(id).map(|record| record.volume.clone()))
    }

    fn delete_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        guard.check(id.as_str())?;
        let mut state = self.storage.state();
        let Some(record) = state.volumes.get(id) else { return Ok(()) };
        if let Some(held) = record.volume.attachment.as_ref().filter(|held| held.proof.is_none()) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("volume {id} is not deleted: node {} holds it; detach it there first", held.holder.node),
            ));
        }
        state.volumes.remove(id);
        state.orphans.retain(|record| record.orphan.volume != *id);
        self.storage.host.remove_all(&self.storage.directory(id.as_str()));
        Ok(())
    }

    fn list_volumes(&self, page: &PageRequest) -> Result<Page<Volume>> {
        let all = self.storage.state().volumes.values().map(|record| record.volume.clone()).collect();
        let is_own = |token: &str| VolumeId::parse(token).is_ok_and(|id| id.backend() == self.name().as_str());
        Page::cut(all, page, |volume| volume.id.as_str(), is_own)
    }

    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        let state = self.storage.state();
        let available_bytes = self.storage.available_bytes(&state);
        let kind = query.kind.unwrap_or(VolumeKind::FileSystem(FsType::default()));
        let maximum_volume_bytes = self.storage.maximum_bytes(&state, query.thick);
        Ok(Capacity { available_bytes, minimum_volume_bytes: minimum_bytes(kind), maximum_volume_bytes })
    }

    fn topology(&self) -> Result<Vec<Segments>> {
        Ok(Vec::new())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn restrictions(&self) -> Restrictions {
        Restrictions::default()
    }

    fn attach(&self) -> Option<&dyn Attach> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn group_snapshots(&self) -> Option<&dyn GroupSnapshots> {
        Some(self)
    }

    fn can_clone(&self) -> bool {
        true
    }

    fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
        Some(self)
    }

    fn expand(&self) -> Option<&dyn Expand> {
        Some(self)
    }

    fn fence(&self) -> Option<&dyn Fence> {
        Some(self)
    }

    fn health(&self) -> Option<&dyn volume::Health> {
        Some(self)
    }

    fn trim(&self) -> Option<&dyn volume::Trim> {
        Some(self)
    }

    fn modify(&self) -> Option<&dyn Modify> {
        Some(self)
    }
}

impl Modify for MemoryBackend {
    fn modify(&self, guard: &VolumeGuard, id: &VolumeId, change: &MutableChange) -> Result<()> {
        guard.check(id.as_str())?;
        let mut state = self.storage.state();
        let record = state.volume_mut(id)?;
        let mutable = change.apply_to(record.volume.mutable);
        mutable.check_kind(record.volume.kind)?;
        if mutable != record.volume.mutable {
            record.volume.mutable = mutable;
            record.modified += 1;
        }
        Ok(())
    }
}

impl Expand for MemoryBackend {
    fn expand(&self, guard: &VolumeGuard, id: &VolumeId, size: SizeRange) -> Result<(u64, bool)> {
        guard.check(id.as_str())?;
        let storage = &self.storage;
        let mut state = storage.state();
        let volume = &state.volume(id)?.volume;
        let (now, kind, thick) = (volume.size_bytes, volume.kind, volume.thick);
        let needs_node = kind != VolumeKind::Directory;
        if size.limit_bytes.is_some_and(|limit| limit < now) {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("volume {id} has {now} bytes already, above the limit asked for; volumes do not shrink"),
            ));
        }
        if size.required_bytes.is_none_or(|required| required <= now) {
            return Ok((now, needs_node));
        }
        let wanted = size.choose(now, minimum_bytes(kind), MIB)?;
        storage.check_room(&state, wanted, thick.then_some(now))?;
        let record = state.volume_mut(id)?;
        if let Some(image) = &record.image {
            storage.host.resize_image(&image.path, wanted)?;
        }
        record.volume.size_bytes = wanted;
        Ok((wanted, needs_node))
    }
}

/// Where a copy starts from.
struct Source {
    image: std::path::PathBuf,
    size_bytes: u64,
    kind: VolumeKind,
}

impl Source {
    fn find(guard: &VolumeGuard, state: &State, source: &VolumeSource) -> Result<Self> {
        match source {
            VolumeSource::Volume(id) => {
                guard.check(id.as_str())?;
                let record = state.volume(id)?;
                let image =
                    record.image.as_ref().map(|image| image.path.clone()).ok_or_else(|| {
                        Error::invalid(format!("volume {id} is a directory; directories are not cloned"))
                    })?;
                Ok(Self { image, size_bytes: record.volume.size_bytes, kind: record.volume.kind })
            }
            VolumeSource::Snapshot(id) => {
                guard.check(id.as_str())?;
                let record = state.snapshots.get(id).ok_or_else(|| Error::not_found(format!("no snapshot {id}")))?;
                let (image, snapshot) = (record.path.clone(), &record.snapshot);
                Ok(Self { image, size_bytes: snapshot.size_bytes, kind: snapshot.kind })
            }
        }
    }
}

fn choose_size(storage: &Storage, state: &State, spec: &VolumeSpec, source: Option<&Source>) -> Result<u64> {
    let default_bytes = match source {
        None => DEFAULT_BYTES.min(storage.maximum_bytes(state, spec.parameters.thick)),
        Some(source) if source.kind != spec.kind => {
            return Err(Error::invalid(format!(
                "the source is a {} volume and a {} volume is asked for",
                source.kind, spec.kind
            )));
        }
        Some(source) => source.size_bytes,
    };
    let size_bytes = spec.size.choose(default_bytes, minimum_bytes(spec.kind), MIB)?;
    if let Some(source) = source.filter(|source| size_bytes < source.size_bytes) {
        return Err(Error::new(
            ErrorKind::OutOfRange,
            format!("{size_bytes} bytes are too few: the source has {}", source.size_bytes),
        ));
    }
    storage.check_room(state, size_bytes, spec.parameters.thick.then_some(0))?;
    Ok(size_bytes)
}

fn minimum_bytes(kind: VolumeKind) -> u64 {
    match kind {
        VolumeKind::FileSystem(fs) => minimum_size(fs),
        VolumeKind::Block | VolumeKind::Directory => MIB,
    }
}

impl Storage {
    fn maximum_bytes(&self, state: &State, thick: bool) -> u64 {
        let bytes = if thick { self.available_bytes(state) } else { self.capacity_bytes };
        bytes / MIB * MIB
    }

    /// `thick` is what a thick volume has allocated already.
    fn check_room(&self, state: &State, size_bytes: u64, thick: Option<u64>) -> Result<()> {
        if size_bytes > self.capacity_bytes {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("{size_bytes} bytes are more than this storage has ({})", self.capacity_bytes),
            ));
        }
        let available = self.available_bytes(state);
        match thick {
            Some(allocated) if size_bytes.saturating_sub(allocated) > available => Err(Error::new(
                ErrorKind::Exhausted,
                format!("a thick volume of {size_bytes} bytes does not fit: {available} bytes are free"),
            )),
            _ => Ok(()),
        }
    }

    /// The image, formatted or copied; for a directory volume the directory and `None`.
    fn make_content(&self, spec: &VolumeSpec, size_bytes: u64, source: Option<&Path>) -> Result<Option<Image>> {
        if spec.kind == VolumeKind::Directory {
            self.host.create_directory(&self.data_directory(&spec.id))?;
            return Ok(None);
        }
        let path = self.image_path(&spec.id, Epoch::default());
        match source {
            Some(source) => {
                self.host.clone_image(source, &path)?;
                self.host.resize_image(&path, size_bytes)?;
                self.host.set_image_uuid(&path, uuid::Uuid::new_v4().into_bytes())?;
            }
            None => {
                self.host.create_image(&path, size_bytes)?;
                if let Some(fs) = spec.fs_type() {
                    self.host.format_image(&path, fs, uuid::Uuid::new_v4().into_bytes())?;
                }
            }
        }
        let identity = self.host.image_identity(&path)?;
        Ok(Some(Image { path, identity }))
    }

    pub(crate) fn data_directory(&self, id: &VolumeId) -> std::path::PathBuf {
        self.directory(id.as_str()).join("data")
    }
}
