//! btrfs's superblock (kernel: include/uapi/linux/btrfs_tree.h, struct btrfs_super_block).

use super::Found;
use super::fields::{Fields, put};
use super::storage::Storage;
use volume::{Error, ErrorKind, Result};

const LENGTH: usize = 4096;
/// The primary and its mirrors, as far as the device reaches.
pub(super) const OFFSETS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const MAGIC: &[u8; 8] = b"_BHRfS_M";

const AT_FSID: usize = 0x20;
const AT_INCOMPAT: usize = 0xbc;
const AT_METADATA_UUID: usize = 0x23b;
const FLAG_ERROR: u64 = 1 << 2;
const FLAG_SEEDING: u64 = 1 << 32;
/// Metadump v1 and v2, and both ways of a change of the UUID under way.
const FLAGS_UNFINISHED: u64 = 1 << 33 | 1 << 34 | 1 << 35 | 1 << 36;
const INCOMPAT_METADATA_UUID: u64 = 1 << 10;

pub(super) fn find(storage: &Storage) -> Result<Found> {
    let [primary, ..] = OFFSETS;
    let Some(block) = read(storage, primary)? else { return Ok(Found::Nothing) };
    let fields = Fields(&block);
    if fields.le16(0xc4) != 0 {
        return Ok(Found::Relative("btrfs with a checksum other than crc32c"));
    }
    if let Err(reason) = verify(&block, primary) {
        return Ok(Found::Damaged(reason));
    }
    if fields.le64(0x88) != 1 {
        return Ok(Found::Relative("btrfs of several devices"));
    }
    let flags = fields.le64(0x38);
    if flags & FLAG_SEEDING != 0 {
        return Ok(Found::Relative("btrfs seed device"));
    }
    let size_bytes = fields.le64(0x70);
    if size_bytes > storage.size_bytes() {
        return Ok(Found::Damaged(format!(
            "the file system has {size_bytes} bytes but only {} are there: it was truncated",
            storage.size_bytes()
        )));
    }
    let errors = flags & (FLAG_ERROR | FLAGS_UNFINISHED) != 0;
    Ok(Found::Sound { uuid: fields.bytes(AT_FSID), size_bytes, errors })
}

/// Gives the file system another UUID by the METADATA_UUID feature (Linux 5.0): the tree blocks keep the old one, which
/// the superblock names, so nothing but superblocks is written. Mirrors first: once the primary has it, all have.
pub(super) fn set_uuid(storage: &Storage, uuid: [u8; 16]) -> Result<()> {
    let path = storage.path().display();
    match find(storage)? {
        Found::Sound { uuid: old, errors: false, .. } if old == uuid => return Ok(()),
        Found::Sound { errors: false, .. } => {}
        other => {
            return Err(Error::new(ErrorKind::Corrupt, format!("{path} has no sound btrfs of one device: {other:?}")));
        }
    }
    for offset in OFFSETS.into_iter().rev() {
        let Some(mut block) = read(storage, offset)? else { continue };
        verify(&block, offset).map_err(|reason| {
            Error::new(ErrorKind::Corrupt, format!("the btrfs superblock at {offset} of {path} is damaged: {reason}"))
        })?;
        set_identity(&mut block, uuid);
        storage.write(offset, &block)?;
    }
    Ok(())
}

fn read(storage: &Storage, offset: u64) -> Result<Option<Vec<u8>>> {
    Ok(storage.read(offset, LENGTH)?.filter(|block| Fields(block).has(0x40, MAGIC)))
}

fn verify(block: &[u8], offset: u64) -> Result<(), String> {
    let fields = Fields(block);
    if fields.le32(0) != checksum(block) {
        Err("its checksum does not match".to_owned())
    } else if fields.le64(0x30) != offset {
        Err("it belongs to another place".to_owned())
    } else {
        Ok(())
    }
}

fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c(block.get(AT_FSID..).unwrap_or_default())
}

fn set_identity(block: &mut [u8], uuid: [u8; 16]) {
    let fields = Fields(block);
    let incompat = fields.le64(AT_INCOMPAT);
    let old: [u8; 16] = fields.bytes(AT_FSID);
    if incompat & INCOMPAT_METADATA_UUID == 0 {
        put(block, AT_METADATA_UUID, &old);
        put(block, AT_INCOMPAT, &(incompat | INCOMPAT_METADATA_UUID).to_le_bytes());
    }
    put(block, AT_FSID, &uuid);
    let checksum = checksum(block);
    put(block, 0, &checksum.to_le_bytes());
}
