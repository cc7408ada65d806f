//! Making volumes: everything is built in a directory that nobody sees and gets its name when it is durable.

use crate::image::{image_identity, length};
use crate::model::{SnapshotRecord, VolumeRecord, image_name, label_epoch};
use crate::record::RecordDir;
use crate::{Pool, now_ms};
use host::Probe;
use host::file::{Dir, allocate};
use host::filesystem;
use std::fs::File;
use std::os::fd::AsFd;
use uuid::Uuid;
use volume::{
    Epoch, Error, ErrorKind, FsType, ImageIdentity, MutableParameters, Result, Volume, VolumeGuard, VolumeId,
    VolumeKind, VolumeSource, VolumeSpec,
};

/// The directory of a directory volume.
pub(crate) const DATA: &str = "data";
const DATA_MODE: u32 = 0o755;

/// What a new volume is copied from.
struct Source {
    what: String,
    image: File,
    size_bytes: u64,
    kind: VolumeKind,
    /// The image of the source volume, to see whether it still is that after the copy.
    of_volume: Option<ImageIdentity>,
}

impl Pool {
    pub(crate) fn ensure(&self, guard: &VolumeGuard, spec: &VolumeSpec) -> Result<Volume> {
        guard.check(spec.id.as_str())?;
        match &spec.source {
            Some(VolumeSource::Snapshot(id)) => guard.check(id.as_str())?,
            Some(VolumeSource::Volume(id)) => guard.check(id.as_str())?,
            None => {}
        }
        self.check_reachable()?;
        if let Some(existing) = self.existing(spec)? {
            return Ok(existing);
        }
        self.refuse_kind(spec)?;
        spec.topology.check(&self.own_topology())?;
        let source = spec.source.as_ref().map(|source| self.source(source)).transpose()?;
        let size_bytes = self.size_for(spec, source.as_ref())?;
        let made = RecordDir::create(&self.volumes, spec.id.as_str(), |dir| {
            self.build(dir, spec, size_bytes, source.as_ref())
        })?;
        match made {
            Some(state) => Ok(self.to_volume(state.dir(), state.record())),
            // Another controller was first; its volume is the answer if it is the same.
            None => self.existing(spec)?.ok_or_else(|| {
                Error::new(ErrorKind::Busy, format!("volume {} came and went meanwhile; retry", spec.id))
            }),
        }
    }

    /// The volume that earlier calls made, if it answers this one.
    fn existing(&self, spec: &VolumeSpec) -> Result<Option<Volume>> {
        let Some(state) = RecordDir::<VolumeRecord>::find(&self.volumes, spec.id.as_str())? else { return Ok(None) };
        if state.record().deleting {
            self.discard(&self.volumes, spec.id.as_str())?;
            return Ok(None);
        }
        let volume = self.to_volume(state.dir(), state.record());
        spec.check_compatible(&volume)?;
        Ok(Some(volume))
    }

    fn refuse_kind(&self, spec: &VolumeSpec) -> Result<()> {
        if let Some(reason) = self.why_not(spec.kind) {
            return Err(Error::invalid(format!("no {} volume can be made here: {reason}", spec.kind)));
        }
        spec.mutable.apply_to(MutableParameters::default()).check_kind(spec.kind)?;
        if spec.kind == VolumeKind::Directory && spec.parameters.thick {
            return Err(Error::invalid(
                "thick is given for a directory volume, which takes space as files are written",
            ));
        }
        Ok(())
    }

    fn source(&self, source: &VolumeSource) -> Result<Source> {
        let found = match source {
            VolumeSource::Volume(id) => {
                let state = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())?;
                let state = state.filter(|state| !state.record().deleting);
                state.map(|state| self.source_volume(&state)).transpose()?
            }
            VolumeSource::Snapshot(id) => {
                self.find_snapshot_state(id)?.map(|(state, _)| self.source_snapshot(&state)).transpose()?
            }
        };
        found.ok_or_else(|| match source {
            VolumeSource::Volume(id) => Error::not_found(format!("there is no volume {id} to clone")),
            VolumeSource::Snapshot(id) => Error::not_found(format!("there is no snapshot {id} to restore")),
        })
    }

    fn source_volume(&self, state: &RecordDir<VolumeRecord>) -> Result<Source> {
        let record = state.record();
        let image = self.copyable(state)?;
        Ok(Source {
            what: format!("volume {}", record.id),
            image: self.open_whole(state.dir(), image, record.size_bytes)?,
            size_bytes: record.size_bytes,
            kind: record.kind,
            of_volume: Some(image.clone()),
        })
    }

    fn source_snapshot(&self, state: &RecordDir<SnapshotRecord>) -> Result<Source> {
        let record = state.record();
        let image = record.image.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("the record of snapshot {} names no image", record.id))
        })?;
        Ok(Source {
            what: format!("snapshot {}", record.id),
            image: self.open_whole(state.dir(), image, record.size_bytes)?,
            size_bytes: record.size_bytes,
            kind: record.kind,
            of_volume: None,
        })
    }

    /// The size to make. Everything that can be refused is refused here, before anything is built.
    fn size_for(&self, spec: &VolumeSpec, source: Option<&Source>) -> Result<u64> {
        if let Some(source) = source {
            if source.kind != spec.kind {
                return Err(Error::invalid(format!(
                    "{} is a {} and a {} volume is asked for; a copy keeps its kind",
                    source.what, source.kind, spec.kind
                )));
            }
            let asked = spec.size.required_bytes.into_iter().chain(spec.size.limit_bytes).min();
            if let Some(asked) = asked.filter(|&asked| asked < source.size_bytes) {
                return Err(Error::new(
                    ErrorKind::OutOfRange,
                    format!(
                        "{} has {} bytes and {asked} are asked for; a copy is at least as large as its source",
                        source.what, source.size_bytes
                    ),
                ));
            }
        }
        let size_bytes = self.choose_size(spec.size, spec.kind, source.map(|source| source.size_bytes))?;
        let taken_now = match source {
            _ if spec.parameters.thick => size_bytes,
            Some(source) if !self.reflink => host::file::allocated_bytes(&source.image)?,
            _ => 0,
        };
        self.check_room(taken_now, &format!("volume {:?}", spec.name.as_str()))?;
        Ok(size_bytes)
    }

    fn build(&self, dir: &Dir, spec: &VolumeSpec, size_bytes: u64, source: Option<&Source>) -> Result<VolumeRecord> {
        let mut record = VolumeRecord {
            id: spec.id.clone(),
            name: spec.name.clone(),
            size_bytes,
            kind: spec.kind,
            thick: spec.parameters.thick,
            source: spec.source.clone(),
            parameters: spec.parameters.clone(),
            mutable: spec.mutable.apply_to(MutableParameters::default()),
            created_at_ms: now_ms(),
            epoch: self.first_epoch(&spec.id)?,
            image: None,
            fs_uuid: None,
            // A copy holds data: it is never formatted.
            staged: source.is_some(),
            attachment: None,
            releasing: false,
            connected: false,
            former: Vec::new(),
            deleting: false,
        };
        if spec.kind == VolumeKind::Directory {
            self.build_directory(dir, &record)?;
            return Ok(record);
        }
        let name = image_name(Epoch(0));
        let image = dir.write_new(&name, b"")?;
        let path = dir.path().join(&name);
        match source {
            Some(source) => {
                self.copy_at_rest(spec.kind, &source.image, &image)?;
                self.check_unchanged(spec, source)?;
                if let VolumeKind::FileSystem(fs) = spec.kind {
                    record.fs_uuid = self.identity_of_copy(&path, fs)?;
                }
            }
            None => {
                if let VolumeKind::FileSystem(fs) = spec.kind {
                    record.fs_uuid = Some(self.format_image(&image, &path, fs, size_bytes)?);
                }
            }
        }
        // Never shorter than what was copied, even where that is longer than its record (an expansion cut short).
        if length(&image)? < size_bytes {
            image.set_len(size_bytes).map_err(|e| Error::io(format!("making {} longer", path.display()), e))?;
            self.effects().done("set-length");
        }
        if spec.parameters.thick {
            allocate(&image, 0..size_bytes, self.effects())?;
        }
        record.image = Some(image_identity(&name, &image)?);
        self.describe_volume(&image, &record)?;
        image.sync_all().map_err(|e| Error::io(format!("making {} durable", path.display()), e))?;
        Ok(record)
    }

    /// A fenced node may still have a device of a deleted volume of this name. No grant of the new one may have the
    /// epoch on its label, or the two would be taken for each other.
    fn first_epoch(&self, id: &VolumeId) -> Result<Epoch> {
        let left = self.list_loops_with_content(&self.volumes)?.labelled(id);
        Ok(left.iter().filter_map(|device| label_epoch(self.tag(), id, &device.label)).max().unwrap_or_default())
    }

    fn build_directory(&self, dir: &Dir, record: &VolumeRecord) -> Result<()> {
        let data = dir.ensure_child(DATA)?;
        let parameters = &record.parameters;
        let mode = parameters.mode.unwrap_or(DATA_MODE);
        self.host.set_owner(data.path(), parameters.uid, parameters.gid, Some(mode))?;
        let file = data.as_fd().try_clone_to_owned().map(File::from);
        let file = file.map_err(|e| Error::io(format!("holding {} open", data.path().display()), e))?;
        self.describe_volume(&file, record)?;
        data.sync()
    }

    /// A fence may have forked the source while it was copied; then the copy misses what the new holder writes.
    fn check_unchanged(&self, spec: &VolumeSpec, source: &Source) -> Result<()> {
        let (Some(VolumeSource::Volume(id)), Some(image)) = (&spec.source, &source.of_volume) else { return Ok(()) };
        let state = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())?;
        if state.is_some_and(|state| state.record().image.as_ref() == Some(image)) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Busy, format!("{} changed hands while it was copied; retry", source.what)))
    }

    /// Two btrfs of one UUID cannot be mounted beside each other, so a copy gets its own. A copy of ext4 or xfs keeps
    /// the UUID: both can (xfs is mounted with `nouuid`), and a journal that a mounted or crashed source left behind
    /// stands in the way of changing it: ext4's holds a superblock, and xfs' is refused under another UUID.
    fn identity_of_copy(&self, path: &std::path::Path, fs: FsType) -> Result<Option<Uuid>> {
        if fs == FsType::Btrfs {
            let uuid = Uuid::new_v4();
            filesystem::set_uuid(path, fs, uuid.into_bytes())?;
            self.effects().done("set-uuid");
            return Ok(Some(uuid));
        }
        match filesystem::probe(path)? {
            Probe::FileSystem { uuid, .. } => Ok(Some(Uuid::from_bytes(uuid))),
            Probe::Blank | Probe::Other(_) | Probe::Damaged { .. } => Ok(None),
        }
    }
}
