//! XFS's superblock (kernel: fs/xfs/libxfs/xfs_format.h, struct xfs_dsb).

use super::Found;
use super::fields::{Fields, put};
use super::storage::Storage;
use volume::Result;

pub(super) const MAGIC: &[u8; 4] = b"XFSB";
const AT_CRC: usize = 224;
const INCOMPAT_NEEDS_REPAIR: u32 = 1 << 4;

pub(super) fn find(storage: &Storage) -> Result<Found> {
    let Some(first) = storage.read(0, 512)? else { return Ok(Found::Nothing) };
    let fields = Fields(&first);
    if !fields.has(0, MAGIC) {
        return Ok(Found::Nothing);
    }
    let damaged = |reason: &str| Ok(Found::Damaged(reason.to_owned()));
    let (block_size, sector_size) = (fields.be32(4), fields.be16(102));
    if !block_size.is_power_of_two()
        || !(512..=65536).contains(&block_size)
        || !sector_size.is_power_of_two()
        || sector_size < 512
    {
        return damaged("its geometry is impossible");
    }
    let Some(mut sector) = storage.read(0, sector_size.into())? else {
        return damaged("the storage is shorter than its first sector");
    };
    let is_v5 = fields.be16(100) & 0xf == 5;
    if is_v5 {
        let crc = fields.le32(AT_CRC);
        put(&mut sector, AT_CRC, &[0; 4]);
        if crc32c::crc32c(&sector) != crc {
            return damaged("its checksum does not match");
        }
    }
    if fields.byte(126) != 0 {
        return damaged("it was not made to the end (inprogress)");
    }
    let size_bytes = fields.be64(8).saturating_mul(block_size.into());
    if size_bytes == 0 {
        return damaged("its geometry is impossible");
    }
    if size_bytes > storage.size_bytes() {
        return Ok(Found::Damaged(format!(
            "the file system has {size_bytes} bytes but only {} are there: it was truncated",
            storage.size_bytes()
        )));
    }
    let errors = is_v5 && fields.be32(216) & INCOMPAT_NEEDS_REPAIR != 0;
    Ok(Found::Sound { uuid: fields.bytes(32), size_bytes, errors })
}
