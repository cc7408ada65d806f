//! How much room there is, and how large a volume may be.
//!
//! Thin volumes take space as they are written, so their sum may exceed the pool; one alone may not, because it could
//! never be filled. A reserve is kept for copy-on-write, records and forks: nothing new is made once the free space
//! is below it. Orphans and snapshots count by the blocks they hold alone, as the file system reports them.

use crate::Pool;
use host::file::{FileSystemKind, space};
use host::filesystem::minimum_size;
use std::sync::atomic::Ordering;
use volume::{Capacity, CapacityQuery, Error, ErrorKind, FsType, Result, SizeRange, VolumeKind};

/// All sizes are multiples of this.
pub(crate) const GRANULE_BYTES: u64 = 1 << 20;
const DEFAULT_SIZE_BYTES: u64 = 1 << 30;
/// The reserve is this part of the pool, within these bounds, where the configuration does not say.
const RESERVE_PART: u64 = 50;
const RESERVE_BOUNDS: (u64, u64) = (16 << 20, 4 << 30);
/// Nearly full: less than this part of the pool is free above the reserve.
const NEARLY_FULL_PART: u64 = 20;
/// ext4 with blocks of 4 KiB: 2^32 blocks a file, less one.
const EXT4_MAX_FILE_BYTES: u64 = (1 << 44) - GRANULE_BYTES;

/// The room of the pool now, in bytes.
struct Room {
    /// Free less the reserve.
    available: u64,
    /// The largest volume that could ever be filled.
    largest: u64,
    /// Of the whole file system.
    total: u64,
}

/// How much of what new blocks need is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fullness {
    Ample,
    /// So many bytes are free above the reserve.
    NearlyFull(u64),
    /// Nothing is free above the reserve.
    Full,
}

impl Pool {
    pub(crate) fn capacity_of(&self, query: &CapacityQuery) -> Result<Capacity> {
        let kind = query.kind.unwrap_or(VolumeKind::FileSystem(FsType::default()));
        let minimum_volume_bytes = minimum_bytes(kind);
        let none = Capacity { available_bytes: 0, minimum_volume_bytes, maximum_volume_bytes: 0 };
        let elsewhere = match &query.topology {
            Some(place) => !self.own_topology().iter().all(|own| own.is_within(place)),
            None => false,
        };
        if elsewhere || self.why_not(kind).is_some() {
            return Ok(none);
        }
        let room = self.room()?;
        let largest = if query.thick { room.available.min(room.largest) } else { room.largest };
        if room.available == 0 || largest < minimum_volume_bytes {
            return Ok(none);
        }
        Ok(Capacity { available_bytes: room.available, minimum_volume_bytes, maximum_volume_bytes: largest })
    }

    /// The size to make for `range`, at least `least_bytes` (a source's size). `OutOfRange` for what the pool could
    /// never hold.
    pub(crate) fn choose_size(&self, range: SizeRange, kind: VolumeKind, least_bytes: Option<u64>) -> Result<u64> {
        let largest = self.room()?.largest;
        let default = least_bytes.unwrap_or(DEFAULT_SIZE_BYTES.min(largest));
        let minimum = minimum_bytes(kind).max(least_bytes.unwrap_or(0));
        let size = range.choose(default, minimum, GRANULE_BYTES)?;
        self.check_largest(size)?;
        Ok(size)
    }

    /// `Exhausted` unless `bytes` more can be taken now; 0 asks for the reserve alone.
    pub(crate) fn check_room(&self, bytes: u64, what: &str) -> Result<()> {
        let available = self.room()?.available;
        if available > 0 && bytes <= available {
            return Ok(());
        }
        let needs = if bytes > 0 { format!("it needs {bytes} bytes and ") } else { String::new() };
        Err(Error::new(
            ErrorKind::Exhausted,
            format!(
                "the pool {} is too full for {what}: {needs}{available} bytes are free above the reserve; remove \
                 volumes, snapshots or orphans, or grow the pool's file system",
                self.dir.path().display()
            ),
        ))
    }

    pub(crate) fn fullness(&self) -> Result<Fullness> {
        let room = self.room()?;
        Ok(match room.available {
            0 => Fullness::Full,
            bytes if bytes < room.total / NEARLY_FULL_PART => Fullness::NearlyFull(bytes),
            _ => Fullness::Ample,
        })
    }

    pub(crate) fn has_room(&self) -> Result<bool> {
        Ok(self.room()?.available > 0)
    }

    /// Says in the log when the pool has become full, and when no more. A full pool is no failure of the driver: what
    /// is there can be used and deleted.
    pub(crate) fn note_fullness(&self) -> Result<()> {
        let is_full = !self.has_room()?;
        if self.said_full.swap(is_full, Ordering::SeqCst) == is_full {
            return Ok(());
        }
        let pool = self.dir.path().display();
        if is_full {
            tracing::warn!(
                %pool,
                "the pool is full: nothing new is made, and writes to thin volumes and to what snapshots share can fail; \
                 remove volumes, snapshots or orphans, or grow the pool's file system"
            );
        } else {
            tracing::info!(%pool, "the pool has room again");
        }
        Ok(())
    }

    /// `OutOfRange` for a volume that could never be filled.
    pub(crate) fn check_largest(&self, size: u64) -> Result<()> {
        let largest = self.room()?.largest;
        if size <= largest {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::OutOfRange,
            format!(
                "a volume of {size} bytes could never be filled: the pool {} takes volumes of at most {largest} bytes",
                self.dir.path().display()
            ),
        ))
    }

    fn room(&self) -> Result<Room> {
        let space = space(&self.dir)?;
        let (least, most) = RESERVE_BOUNDS;
        let reserve = match self.config.reserve_bytes {
            Some(bytes) => bytes,
            None => (space.total_bytes / RESERVE_PART).clamp(least, most),
        };
        let mut largest = space.total_bytes.saturating_sub(reserve);
        if self.file_system == FileSystemKind::Ext4 {
            largest = largest.min(EXT4_MAX_FILE_BYTES);
        }
        let available = round_down(space.available_bytes.saturating_sub(reserve));
        Ok(Room { available, largest: round_down(largest), total: space.total_bytes })
    }
}

/// The smallest volume of a kind.
pub(crate) fn minimum_bytes(kind: VolumeKind) -> u64 {
    match kind {
        VolumeKind::FileSystem(fs) => minimum_size(fs).next_multiple_of(GRANULE_BYTES),
        VolumeKind::Block | VolumeKind::Directory => GRANULE_BYTES,
    }
}

fn round_down(bytes: u64) -> u64 {
    bytes / GRANULE_BYTES * GRANULE_BYTES
}
