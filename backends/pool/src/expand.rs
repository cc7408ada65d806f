//! Growing volumes: the image first, then the record. Nothing ever shrinks.

use crate::Pool;
use crate::capacity::{GRANULE_BYTES, minimum_bytes};
use crate::image::length;
use crate::model::VolumeRecord;
use crate::record::RecordDir;
use host::file::{allocate, allocated_bytes};
use volume::{Error, ErrorKind, Expand, Result, SizeRange, VolumeGuard, VolumeId, VolumeKind};

impl Expand for Pool {
    fn expand(&self, guard: &VolumeGuard, id: &VolumeId, size: SizeRange) -> Result<(u64, bool)> {
        guard.check(id.as_str())?;
        self.check_reachable()?;
        let state = RecordDir::<VolumeRecord>::change(&self.volumes, id.as_str(), |state| {
            let record = state.record();
            let size_bytes = self.grown_size(record, size)?;
            if record.deleting || size_bytes == record.size_bytes {
                return Ok(None);
            }
            self.grow_image(state, size_bytes)?;
            Ok(Some(VolumeRecord { size_bytes, ..record.clone() }))
        })?;
        let state = state.filter(|state| !state.record().deleting);
        let state = state.ok_or_else(|| Error::not_found(format!("there is no volume {id} to expand")))?;
        let record = state.record();
        let node_must_act = match record.kind {
            VolumeKind::FileSystem(_) => true,
            VolumeKind::Block => record.attachment.is_some(),
            VolumeKind::Directory => false,
        };
        Ok((record.size_bytes, node_must_act))
    }
}

impl Pool {
    fn grown_size(&self, record: &VolumeRecord, size: SizeRange) -> Result<u64> {
        if let Some(limit) = size.limit_bytes.filter(|&limit| limit < record.size_bytes) {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "volume {} has {} bytes, above limit_bytes {limit}; volumes do not shrink",
                    record.id, record.size_bytes
                ),
            ));
        }
        let wanted = size.required_bytes.unwrap_or(0).max(record.size_bytes);
        if wanted == record.size_bytes {
            return Ok(wanted);
        }
        let range = SizeRange { required_bytes: Some(wanted), limit_bytes: size.limit_bytes };
        let size_bytes = range.choose(wanted, minimum_bytes(record.kind), GRANULE_BYTES)?;
        self.check_largest(size_bytes)?;
        Ok(size_bytes)
    }

    fn grow_image(&self, state: &RecordDir<VolumeRecord>, size_bytes: u64) -> Result<()> {
        let record = state.record();
        let what = format!("more of volume {:?}", record.name.as_str());
        if record.kind == VolumeKind::Directory {
            return self.check_room(0, &what);
        }
        let missing = || Error::new(ErrorKind::Corrupt, format!("the record of volume {} names no image", record.id));
        let identity = record.image.as_ref().ok_or_else(missing)?;
        let image = self.open_whole(state.dir(), identity, record.size_bytes)?;
        // An earlier try may have come this far.
        let present = length(&image)?;
        let allocated = allocated_bytes(&image)?;
        if !record.thick {
            self.check_room(0, &what)?;
        } else if present < size_bytes || allocated < size_bytes {
            self.check_room(size_bytes.saturating_sub(allocated), &what)?;
            allocate(&image, record.size_bytes..size_bytes, self.effects())?;
        }
        if present < size_bytes {
            image.set_len(size_bytes).map_err(|e| Error::io(format!("growing volume {}", record.id), e))?;
            self.effects().done("set-length");
        }
        image.sync_all().map_err(|e| Error::io(format!("making the growth of volume {} durable", record.id), e))
    }
}
