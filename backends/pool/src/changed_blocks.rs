//! Which blocks snapshots hold and in which they differ, from the extents of their images.
//!
//! Snapshots are files that nobody writes to, held open while they are read, so what is said of one is true of it even
//! if it is deleted meanwhile. Where images are clones (xfs, btrfs) a block that two share is the same block, and as
//! long as the base has it, it cannot be freed and come again as another's. Where they are copies (ext4) no block is
//! shared, so the difference is all that either holds: more than needed, and never less.

use crate::Pool;
use crate::extent_map::{Map, Ranges, allocated, changed};
use crate::model::SnapshotRecord;
use host::file::extents;
use std::fs::File;
use volume::{BlockRanges, ChangedBlocks, Error, ErrorKind, Result, SnapshotId};

impl ChangedBlocks for Pool {
    fn allocated(&self, snapshot: &SnapshotId, from_bytes: u64) -> Result<BlockRanges> {
        self.check_reachable()?;
        let image = self.open_snapshot(snapshot)?;
        let size_bytes = image.size_from(from_bytes)?;
        let ranges = Ranges::new(from_bytes, size_bytes, move |at| Ok(allocated(image.map(at)?)));
        Ok(BlockRanges { size_bytes, ranges: Box::new(ranges) })
    }

    fn changed(&self, base: &SnapshotId, target: &SnapshotId, from_bytes: u64) -> Result<BlockRanges> {
        self.check_reachable()?;
        let (base, target) = (self.open_snapshot(base)?, self.open_snapshot(target)?);
        check_pair(&base.record, &target.record)?;
        let size_bytes = target.size_from(from_bytes)?;
        let ranges = Ranges::new(from_bytes, size_bytes, move |at| changed(at, |at| base.map(at), |at| target.map(at)));
        Ok(BlockRanges { size_bytes, ranges: Box::new(ranges) })
    }
}

/// A snapshot that was there when its image was open already.
struct Image {
    record: SnapshotRecord,
    file: File,
}

impl Image {
    fn map(&self, at: u64) -> Result<Map> {
        let size = self.record.size_bytes;
        if at >= size {
            return Ok(Map::NOTHING);
        }
        let page =
            extents(&self.file, at).map_err(|error| error.context(format!("read snapshot {}", self.record.id)))?;
        Ok(Map::new(&page, at, size))
    }

    fn size_from(&self, from_bytes: u64) -> Result<u64> {
        let SnapshotRecord { id, size_bytes, .. } = &self.record;
        if from_bytes <= *size_bytes {
            return Ok(*size_bytes);
        }
        let message = format!("offset {from_bytes} is beyond the end of snapshot {id}, which has {size_bytes} bytes");
        Err(Error::new(ErrorKind::OutOfRange, message))
    }
}

impl Pool {
    fn open_snapshot(&self, id: &SnapshotId) -> Result<Image> {
        let find = || {
            let found = self.find_snapshot_state(id)?;
            found.map(|(state, _)| state).ok_or_else(|| Error::not_found(format!("there is no snapshot {id}")))
        };
        let state = find()?;
        let record = state.record().clone();
        let identity = record
            .image
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("the record of snapshot {id} names no image")))?;
        let opened = self.open_whole(state.dir(), identity, record.size_bytes);
        if !state.is_latest()? {
            find()?;
            return Err(Error::new(ErrorKind::Busy, format!("snapshot {id} was changed while it was opened; retry")));
        }
        Ok(Image { file: opened?, record })
    }
}

/// CSI, GetMetadataDelta: the target is of the same volume and was created after the base. Times of one millisecond are
/// taken for that: the clock cannot tell, and what is different does not depend on the direction.
fn check_pair(base: &SnapshotRecord, target: &SnapshotRecord) -> Result<()> {
    if base.source != target.source {
        return Err(Error::invalid(format!(
            "snapshot {} is of volume {} and snapshot {} of volume {}; only snapshots of one volume are compared",
            base.id, base.source, target.id, target.source
        )));
    }
    if base.created_at_ms > target.created_at_ms {
        return Err(Error::invalid(format!(
            "snapshot {} is younger than snapshot {}; the base of a comparison is the older one",
            base.id, target.id
        )));
    }
    Ok(())
}
