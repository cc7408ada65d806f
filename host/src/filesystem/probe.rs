//! What a device holds.

use super::storage::Storage;
use super::{Found, btrfs, ext4, signatures, xfs};
use crate::Probe;
use std::path::Path;
use volume::{FsType, Result};

/// How much of the start and of the end must be zero for a device to be blank.
const EDGE_BYTES: u64 = 1 << 20;
/// Superblocks further in that outlive a wiped start: ext4's first backup for each block size, btrfs's mirrors.
const FURTHER_IN: [u64; 5] = [8193 << 10, 16384 << 11, 32768 << 12, btrfs::OFFSETS[1], btrfs::OFFSETS[2]];

/// Says what the image or block device at `path` holds.
///
/// A file system counts when its superblock verifies. Blank is what reads as zeros in its first and last MiB and
/// wherever superblocks have copies. A read that fails or falls short is an error (`Internal`, `Corrupt`).
pub fn probe(path: &Path) -> Result<Probe> {
    probe_storage(&Storage::open(path)?)
}

pub(super) fn probe_storage(storage: &Storage) -> Result<Probe> {
    let found = [
        (FsType::Ext4, ext4::find(storage)?),
        (FsType::Xfs, xfs::find(storage)?),
        (FsType::Btrfs, btrfs::find(storage)?),
    ];
    let mut sound = found.iter().filter_map(|(fs, found)| match found {
        Found::Sound { uuid, size_bytes, errors } => {
            Some(Probe::FileSystem { fs: *fs, uuid: *uuid, size_bytes: *size_bytes, errors: *errors })
        }
        Found::Nothing | Found::Relative(_) | Found::Damaged(_) => None,
    });
    match (sound.next(), sound.next()) {
        (Some(_), Some(_)) => return Ok(Probe::Other("superblocks of several file systems".to_owned())),
        (Some(one), None) => return Ok(one),
        (None, _) => {}
    }
    let size_bytes = storage.size_bytes();
    let edge = EDGE_BYTES.min(size_bytes);
    let head = storage.read(0, edge as usize)?.unwrap_or_default();
    let tail = storage.read(size_bytes - edge, edge as usize)?.unwrap_or_default();
    if let Some(name) = signatures::name(&head, &tail) {
        return Ok(Probe::Other(name.to_owned()));
    }
    for (fs, found) in found {
        match found {
            Found::Damaged(reason) => return Ok(Probe::Damaged { fs, reason }),
            Found::Relative(name) => return Ok(Probe::Other(name.to_owned())),
            Found::Nothing | Found::Sound { .. } => {}
        }
    }
    let mut is_blank = is_zero(&head) && is_zero(&tail);
    for offset in FURTHER_IN {
        is_blank = is_blank && storage.read(offset, 4096)?.is_none_or(|block| is_zero(&block));
    }
    Ok(if is_blank { Probe::Blank } else { Probe::Other("unknown data".to_owned()) })
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;
    use tempfile::NamedTempFile;
    use volume::ErrorKind;

    fn image(size_bytes: u64, parts: &[(u64, &[u8])]) -> NamedTempFile {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(size_bytes).unwrap();
        for (offset, bytes) in parts {
            image.as_file().write_all_at(bytes, *offset).unwrap();
        }
        image
    }

    fn name(size_bytes: u64, parts: &[(u64, &[u8])]) -> Probe {
        probe(image(size_bytes, parts).path()).unwrap()
    }

    fn other(name: &str) -> Probe {
        Probe::Other(name.to_owned())
    }

    #[test]
    fn blank_and_nearly_blank() {
        const SIZE: u64 = 300 << 20;
        assert_eq!(name(0, &[]), Probe::Blank);
        assert_eq!(name(511, &[]), Probe::Blank);
        assert_eq!(name(SIZE, &[]), Probe::Blank);
        for offset in [0, 1 << 19, (1 << 20) - 1, SIZE - (1 << 20), SIZE - 1].into_iter().chain(FURTHER_IN) {
            if offset < SIZE {
                assert_eq!(name(SIZE, &[(offset, &[1])]), other("unknown data"), "{offset}");
            }
        }
    }

    #[test]
    fn names_of_others() {
        const SIZE: u64 = 8 << 20;
        for (expected, offset, magic) in [
            ("LUKS", 0, &b"LUKS\xba\xbe\x00\x02"[..]),
            ("LVM physical volume", 512, b"LABELONE"),
            ("GPT partition table", 512, b"EFI PART"),
            ("GPT partition table (its backup)", SIZE - 512, b"EFI PART"),
            ("MBR partition table or boot sector", 510, b"\x55\xaa"),
            ("md raid member", 4096, b"\xfc\x4e\x2b\xa9"),
            ("md raid member", SIZE - 65536, b"\xfc\x4e\x2b\xa9"),
            ("md raid member", SIZE - 8192, b"\xfc\x4e\x2b\xa9"),
            ("zfs", 150 << 10, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
            ("drbd", SIZE - 4096 + 60, b"\x83\x74\x02\x6b"),
            ("squashfs", 0, b"hsqs"),
            ("ntfs", 3, b"NTFS    "),
        ] {
            assert_eq!(name(SIZE, &[(offset, magic)]), other(expected));
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_blank() {
        let file = image(8 << 20, &[]);
        let storage = Storage::open(file.path()).unwrap();
        file.as_file().set_len(4096).unwrap();
        assert_eq!(probe_storage(&storage).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(probe(Path::new("/dev/null")).unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(probe(Path::new("/nonexistent")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Random bytes, mostly around where superblocks are, with their magic often in place.
        #[test]
        fn arbitrary_bytes_neither_panic_nor_are_blank(
            size_bytes in 1u64..1 << 20,
            parts in prop::collection::vec((0u64..70_000, prop::collection::vec(any::<u8>(), 1..64)), 1..8),
            fs in prop::collection::vec(0usize..3, 0..3),
            block in prop::collection::vec(any::<u8>(), 4096),
        ) {
            let magics: [(u64, usize, &[u8]); 3] =
                [(1024, 0x38, &[0x53, 0xef]), (0, 0, xfs::MAGIC), (65536, 0x40, b"_BHRfS_M")];
            let file = image(size_bytes, &[]);
            let mut is_zeros = true;
            let mut put = |offset: u64, bytes: &[u8]| {
                let end = (offset + bytes.len() as u64).min(size_bytes);
                let bytes = &bytes[..end.saturating_sub(offset) as usize];
                file.as_file().write_all_at(bytes, offset).unwrap();
                is_zeros &= bytes.iter().all(|&b| b == 0);
            };
            for index in fs {
                let (offset, at, magic) = magics[index];
                put(offset, &block);
                put(offset + at as u64, magic);
            }
            for (offset, bytes) in &parts {
                put(*offset, bytes);
            }
            let probed = probe(file.path()).unwrap();
            if !is_zeros {
                // A part that a later zero overwrote may be gone, so only this direction.
                let content = std::fs::read(file.path()).unwrap();
                prop_assert_eq!(probed == Probe::Blank, content.iter().all(|&b| b == 0));
            }
        }
    }
}
