//! Volumes as their records say, one by one: a damaged one hides no other.

use crate::Pool;
use crate::model::VolumeRecord;
use crate::record::RecordDir;
use host::file::Dir;
use volume::{
    Epoch, Error, ErrorKind, Page, PageRequest, Parameters, Result, Volume, VolumeId, VolumeKind, VolumeName,
};

impl Pool {
    /// A volume whose record cannot be read is there, with the reason as its problem.
    pub(crate) fn find(&self, id: &VolumeId) -> Result<Option<Volume>> {
        match RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str()) {
            Ok(None) => Ok(None),
            Ok(Some(state)) if state.record().deleting => Ok(None),
            Ok(Some(state)) => Ok(Some(self.to_volume(state.dir(), state.record()))),
            Err(error) => match error.kind() {
                ErrorKind::Corrupt | ErrorKind::Unsupported => unreadable(id, &error).map(Some),
                _ => Err(error),
            },
        }
    }

    pub(crate) fn list(&self, page: &PageRequest) -> Result<Page<Volume>> {
        self.check_reachable()?;
        // The page is cut by ids, before any record is read.
        let ids = Page::cut(self.volume_ids()?, page, VolumeId::as_str, |token| VolumeId::parse(token).is_ok())?;
        let mut entries = Vec::with_capacity(ids.entries.len());
        for id in &ids.entries {
            entries.extend(self.find(id)?);
        }
        Ok(Page { entries, next_token: ids.next_token })
    }

    /// In order.
    pub(crate) fn volume_ids(&self) -> Result<Vec<VolumeId>> {
        let names = self.volumes.names()?;
        Ok(names.iter().filter_map(|name| VolumeId::parse(name).ok()).collect())
    }

    pub(crate) fn to_volume(&self, dir: &Dir, record: &VolumeRecord) -> Volume {
        Volume {
            id: record.id.clone(),
            name: record.name.clone(),
            size_bytes: record.size_bytes,
            kind: record.kind,
            thick: record.thick,
            source: record.source.clone(),
            parameters: record.parameters.clone(),
            mutable: record.mutable,
            accessible_topology: self.own_topology(),
            epoch: record.epoch,
            attachment: record.attachment.clone(),
            created_at_ms: record.created_at_ms,
            problem: self.data_problem(dir, record).map(|problem| problem.message),
        }
    }
}

/// What can be said of a volume without its record.
fn unreadable(id: &VolumeId, error: &Error) -> Result<Volume> {
    Ok(Volume {
        id: id.clone(),
        name: VolumeName::parse(id.as_str())?,
        size_bytes: 0,
        kind: VolumeKind::Block,
        thick: false,
        source: None,
        parameters: Parameters::default(),
        mutable: Default::default(),
        accessible_topology: Vec::new(),
        epoch: Epoch(0),
        attachment: None,
        created_at_ms: 0,
        problem: Some(error.chain()),
    })
}
