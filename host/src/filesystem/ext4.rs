//! ext4's superblock (kernel: Documentation/filesystems/ext4/super.rst).

use super::Found;
use super::fields::{Fields, put};
use super::storage::Storage;
use crate::command::{Command, run};
use std::time::Duration;
use volume::{Error, ErrorKind, Result};

pub(super) const OFFSET: u64 = 1024;
const LENGTH: usize = 1024;
const MAGIC: u16 = 0xef53;

const STATE_VALID: u16 = 0x1;
const STATE_ERRORS: u16 = 0x2;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const COMPAT_STABLE_INODES: u32 = 0x800;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEVICE: u32 = 0x8;
const INCOMPAT_MMP: u32 = 0x100;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
/// filetype, recover, meta_bg: what ext3 knows. Anything more makes it ext4, as blkid(8) has it.
const INCOMPAT_EXT3: u32 = 0x2 | INCOMPAT_RECOVER | 0x10;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
/// sparse_super, large_file, btree_dir.
const RO_COMPAT_EXT3: u32 = 0x7;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

const REPLAY: Duration = Duration::from_secs(120);
const MAX_LOOKS: u32 = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

const AT_STATE: usize = 0x3a;
const AT_UUID: usize = 0x68;
const AT_HASH_SEED: usize = 0xec;
const AT_CHECKSUM: usize = 0x3fc;

/// A superblock, the primary or a backup.
pub(super) struct Superblock {
    bytes: Vec<u8>,
}

pub(super) fn find(storage: &Storage) -> Result<Found> {
    let Some(superblock) = Superblock::read_primary(storage)? else { return Ok(Found::Nothing) };
    if let Some(relative) = superblock.relative() {
        return Ok(Found::Relative(relative));
    }
    Ok(match superblock.verify(storage.size_bytes()) {
        Err(reason) => Found::Damaged(reason),
        Ok(()) => Found::Sound {
            uuid: superblock.uuid(),
            size_bytes: superblock.size_bytes(),
            errors: superblock.wants_check(),
        },
    })
}

/// Gives the file system another UUID, and another seed for directory hashes where it has never been mounted and so
/// has no hashed directory yet. Backups first: once the primary has it, all have.
pub(super) fn set_uuid(storage: &Storage, uuid: [u8; 16]) -> Result<()> {
    let path = storage.path().display();
    let mut primary = read_sound(storage)?;
    if primary.needs_recovery() {
        // The journal may hold a copy of the superblock that a later replay would put over ours.
        replay_journal(storage)?;
        primary = read_sound(storage)?;
    }
    if primary.uuid() == uuid {
        return Ok(());
    }
    if let Some(reason) = primary.why_uuid_is_fixed() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the UUID of the ext4 on {path} cannot be set: {reason}"),
        ));
    }
    let hash_seed = primary.is_never_mounted().then(|| uuid::Uuid::new_v4().into_bytes());
    for offset in primary.backups() {
        // What is no superblock is left as it is, for e2fsck to see.
        if let Some(mut backup) = Superblock::read(storage, offset)? {
            backup.set_identity(uuid, hash_seed);
            storage.write(offset, &backup.bytes)?;
        }
    }
    primary.set_identity(uuid, hash_seed);
    storage.write(OFFSET, &primary.bytes)
}

/// Replays the journal and frees the orphans that it names, as a mount would, and does nothing else.
pub(super) fn replay_journal(storage: &Storage) -> Result<()> {
    let replay = Command::new("e2fsck", REPLAY).args(["-p", "-E", "journal_only"]);
    run(&replay.arg(storage.path_for_child()).accept(&[1]))
        .map_err(|e| e.context(format!("replay the journal of the ext4 on {}", storage.path().display())))
        .map(drop)
}

pub(super) fn read_sound(storage: &Storage) -> Result<Superblock> {
    let path = storage.path().display();
    let superblock = Superblock::read_primary(storage)?
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("{path} has no ext4 superblock")))?;
    superblock.verify(storage.size_bytes()).map_err(|reason| {
        Error::new(ErrorKind::Corrupt, format!("the ext4 superblock of {path} is damaged: {reason}"))
    })?;
    Ok(superblock)
}

impl Superblock {
    /// `None` where the magic is not.
    pub(super) fn read(storage: &Storage, offset: u64) -> Result<Option<Self>> {
        let bytes = storage.read(offset, LENGTH)?;
        Ok(bytes.map(|bytes| Self { bytes }).filter(|superblock| superblock.fields().le16(0x38) == MAGIC))
    }

    /// The kernel changes the superblock of a mounted file system in the very cache that this reads, so it can be
    /// seen half changed; a second look then finds it whole.
    fn read_primary(storage: &Storage) -> Result<Option<Self>> {
        let mut looks = 1;
        loop {
            let superblock = Self::read(storage, OFFSET)?;
            if looks == MAX_LOOKS || superblock.as_ref().is_none_or(Self::is_whole) {
                return Ok(superblock);
            }
            looks += 1;
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    fn is_whole(&self) -> bool {
        self.ro_compat() & RO_COMPAT_METADATA_CSUM == 0 || self.fields().le32(AT_CHECKSUM) == self.checksum()
    }

    fn fields(&self) -> Fields<'_> {
        Fields(&self.bytes)
    }

    fn compat(&self) -> u32 {
        self.fields().le32(0x5c)
    }

    fn incompat(&self) -> u32 {
        self.fields().le32(0x60)
    }

    fn ro_compat(&self) -> u32 {
        self.fields().le32(0x64)
    }

    pub(super) fn uuid(&self) -> [u8; 16] {
        self.fields().bytes(AT_UUID)
    }

    pub(super) fn block_size(&self) -> u64 {
        1024 << self.fields().le32(0x18).min(6)
    }

    pub(super) fn blocks_per_group(&self) -> u64 {
        self.fields().le32(0x20).into()
    }

    pub(super) fn blocks(&self) -> u64 {
        let high = if self.incompat() & 0x80 != 0 { self.fields().le32(0x150) } else { 0 };
        u64::from(self.fields().le32(0x4)) | u64::from(high) << 32
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.blocks().saturating_mul(self.block_size())
    }

    pub(super) fn needs_recovery(&self) -> bool {
        self.incompat() & INCOMPAT_RECOVER != 0
    }

    /// The kernel found errors, or a file system without a journal was not unmounted.
    pub(super) fn wants_check(&self) -> bool {
        let state = self.fields().le16(AT_STATE);
        state & STATE_ERRORS != 0 || state & STATE_VALID == 0
    }

    /// As resize2fs(8) sees it: it wants a full check of what was mounted since the last one.
    pub(super) fn is_checked_since_mounted(&self) -> bool {
        let (mounted, checked) = (self.fields().le32(0x2c), self.fields().le32(0x40));
        !self.wants_check() && !self.needs_recovery() && checked >= mounted
    }

    fn is_never_mounted(&self) -> bool {
        self.fields().le32(0x2c) == 0 && self.fields().le16(0x34) == 0
    }

    fn relative(&self) -> Option<&'static str> {
        if self.incompat() & INCOMPAT_JOURNAL_DEVICE != 0 {
            Some("external ext4 journal")
        } else if self.incompat() & !INCOMPAT_EXT3 != 0 || self.ro_compat() & !RO_COMPAT_EXT3 != 0 {
            None
        } else if self.compat() & COMPAT_HAS_JOURNAL != 0 {
            Some("ext3")
        } else {
            Some("ext2")
        }
    }

    fn verify(&self, device_bytes: u64) -> Result<(), String> {
        if !self.is_whole() {
            return Err("its checksum does not match".to_owned());
        }
        let fields = self.fields();
        if fields.le32(0x18) > 6 || fields.le32(0x20) == 0 || fields.le32(0x28) == 0 || self.blocks() == 0 {
            return Err("its geometry is impossible".to_owned());
        }
        if self.size_bytes() > device_bytes {
            let size = self.size_bytes();
            return Err(format!(
                "the file system has {size} bytes but only {device_bytes} are there: it was truncated"
            ));
        }
        Ok(())
    }

    /// CRC-32C without the final inversion.
    fn checksum(&self) -> u32 {
        !crc32c::crc32c(self.bytes.get(..AT_CHECKSUM).unwrap_or_default())
    }

    fn why_uuid_is_fixed(&self) -> Option<&'static str> {
        if self.ro_compat() & RO_COMPAT_METADATA_CSUM == 0 || self.incompat() & INCOMPAT_CSUM_SEED == 0 {
            Some("all its checksums depend on it (it was made without metadata_csum_seed)")
        } else if self.compat() & COMPAT_STABLE_INODES != 0 {
            Some("its encryption depends on it (stable_inodes)")
        } else if self.incompat() & INCOMPAT_MMP != 0 {
            Some("it has multiple-mount protection (mmp)")
        } else {
            None
        }
    }

    fn set_identity(&mut self, uuid: [u8; 16], hash_seed: Option<[u8; 16]>) {
        put(&mut self.bytes, AT_UUID, &uuid);
        if let Some(seed) = hash_seed {
            put(&mut self.bytes, AT_HASH_SEED, &seed);
        }
        let checksum = self.checksum();
        put(&mut self.bytes, AT_CHECKSUM, &checksum.to_le_bytes());
    }

    /// Where the backups are, in bytes. The bytes of a block group's superblock are at the start of its first block.
    fn backups(&self) -> impl Iterator<Item = u64> + use<> {
        let fields = self.fields();
        let (first, per_group) = (u64::from(fields.le32(0x14)), self.blocks_per_group());
        let groups = self.blocks().saturating_sub(first).div_ceil(per_group.max(1));
        let candidates: Vec<u64> = if self.compat() & COMPAT_SPARSE_SUPER2 != 0 {
            let listed = [fields.le32(0x24c), fields.le32(0x250)];
            listed.into_iter().map(u64::from).filter(|&group| group > 0 && group < groups).collect()
        } else if self.ro_compat() & RO_COMPAT_SPARSE_SUPER != 0 {
            let powers = [3, 5, 7].map(|base: u64| {
                std::iter::successors(Some(base), move |power| power.checked_mul(base)).take_while(move |&g| g < groups)
            });
            let mut sparse: Vec<u64> = powers.into_iter().flatten().chain((groups > 1).then_some(1)).collect();
            sparse.sort_unstable();
            sparse
        } else {
            (1..groups).collect()
        };
        let block_size = self.block_size();
        candidates.into_iter().map(move |group| (first + group * per_group).saturating_mul(block_size))
    }
}
