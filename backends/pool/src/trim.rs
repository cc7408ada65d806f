//! Trimming: the free space of a mounted file system goes back to the pool, as holes in the image.

use crate::Pool;
use crate::attach::no_volume;
use crate::loops::is_cut_off;
use crate::model::VolumeRecord;
use crate::record::RecordDir;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use volume::{Error, ErrorKind, Result, Trim, Trimmed, VolumeGuard, VolumeId, VolumeKind};

/// Of `st_blocks`; stat(2).
const STAT_BLOCK_BYTES: u64 = 512;

impl Trim for Pool {
    fn trim(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<Trimmed> {
        guard.check(id.as_str())?;
        self.check_reachable()?;
        let state = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())?;
        let state = state.filter(|state| !state.record().deleting).ok_or_else(|| no_volume(id))?;
        let record = state.record();
        let identity = match (record.kind, &record.image) {
            (VolumeKind::FileSystem(_), Some(image)) => image,
            (kind, _) => return Err(not_for(id, kind)),
        };
        if record.thick {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("volume {id} is thick: a trim would give away the space that is reserved for it"),
            ));
        }
        let image = self.open_whole(state.dir(), identity, record.size_bytes)?;
        let allocated_before_bytes = allocated_bytes(&image)?;
        let mut discarded_bytes = None;
        for device in self.loops_of_image(state.dir(), identity)? {
            if !is_cut_off(&device) && !device.read_only {
                discarded_bytes = discarded_bytes.or(self.host.trim(device.number)?);
            }
        }
        let Some(discarded_bytes) = discarded_bytes else { return Err(not_mounted(record)) };
        Ok(Trimmed { discarded_bytes, allocated_before_bytes, allocated_after_bytes: allocated_bytes(&image)? })
    }
}

fn not_for(id: &VolumeId, kind: VolumeKind) -> Error {
    let why = match kind {
        VolumeKind::Directory => "it is a directory of the pool, where deleted files give their space back at once",
        VolumeKind::Block => "only its workload knows what of a raw device is in use; discard from there (blkdiscard)",
        VolumeKind::FileSystem(_) => "its record names no image",
    };
    Error::new(ErrorKind::Unsupported, format!("volume {id} is not trimmed: {why}"))
}

fn not_mounted(record: &VolumeRecord) -> Error {
    let place = match &record.attachment {
        Some(held) => format!("run this on node {}, which holds it, while it is staged there", held.holder.node),
        None => "no node holds it; trim it while a node has it staged".to_owned(),
    };
    Error::new(
        ErrorKind::FailedPrecondition,
        format!(
            "volume {} is not mounted read-write on this machine, and only then its free space is known: {place}",
            record.id
        ),
    )
}

fn allocated_bytes(image: &File) -> Result<u64> {
    let metadata = image.metadata().map_err(|e| Error::io("asking what an image takes", e))?;
    Ok(metadata.blocks() * STAT_BLOCK_BYTES)
}
