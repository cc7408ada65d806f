//! Magic values of everything else that a device may hold. They give a refusal its name; that a device is blank is
//! never concluded from their absence.

use super::fields::Fields;

/// The name of what `head` (the first MiB) or `tail` (the last MiB) of a device shows, if it is known.
pub(super) fn name(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let at_start = AT_START.iter().find(|(_, offset, magic)| Fields(head).has(*offset, magic));
    at_start.map(|(name, ..)| *name).or_else(|| zfs(head)).or_else(|| at_end(tail)).or_else(|| boot_sector(head))
}

/// Name, offset, magic. From the headers of Linux 6.12 (include/uapi/linux/magic.h, raid/md_p.h and each file system's
/// own), LVM2's label.h, cryptsetup's on-disk format papers, UEFI 2.10 chapter 5, ECMA-119 and ECMA-167.
const AT_START: &[(&str, usize, &[u8])] = &[
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("LUKS", 0x4000, b"SKUL\xba\xbe"),
    ("LVM physical volume", 0x000, b"LABELONE"),
    ("LVM physical volume", 0x200, b"LABELONE"),
    ("LVM physical volume", 0x400, b"LABELONE"),
    ("LVM physical volume", 0x600, b"LABELONE"),
    ("md raid member", 0, b"\xfc\x4e\x2b\xa9"),
    ("md raid member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("bcache", 4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("bcachefs", 4096 + 24, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    ("GPT partition table", 512, b"EFI PART"),
    ("GPT partition table", 4096, b"EFI PART"),
    ("swap", 4096 - 10, b"SWAPSPACE2"),
    ("swap", 8192 - 10, b"SWAPSPACE2"),
    ("swap", 16384 - 10, b"SWAPSPACE2"),
    ("swap", 65536 - 10, b"SWAPSPACE2"),
    ("swap", 4096 - 10, b"SWAP-SPACE"),
    ("suspended system", 4096 - 10, b"S1SUSPEND"),
    ("suspended system", 4096 - 10, b"LINHIB0001"),
    ("squashfs", 0, b"hsqs"),
    ("squashfs", 0, b"sqsh"),
    ("cramfs", 0, b"\x45\x3d\xcd\x28"),
    ("romfs", 0, b"-rom1fs-"),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("hfs+", 1024, b"H+\x00\x04"),
    ("hfs+", 1024, b"HX\x00\x05"),
    ("jfs", 32768, b"JFS1"),
    ("reiserfs", 65536 + 52, b"ReIsEr"),
    ("gfs2", 65536, b"\x01\x16\x19\x70"),
    ("ocfs2", 1024, b"OCFSV2"),
    ("ocfs2", 2048, b"OCFSV2"),
    ("ocfs2", 4096, b"OCFSV2"),
    ("iso9660", 32769, b"CD001"),
    ("udf", 32769, b"BEA01"),
    ("apfs", 32, b"NXSB"),
    ("bluestore", 0, b"bluestore block device"),
    ("vdo", 0, b"dmvdo001"),
    ("dm-integrity", 0, b"integrt\x00"),
    ("dm-verity", 0, b"verity\x00\x00"),
    ("bitlocker", 3, b"-FVE-FS-"),
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("vfat", 54, b"FAT1"),
    ("vfat", 82, b"FAT32"),
    ("nilfs2", 1024 + 6, b"\x34\x34"),
];

/// A ring of 1 KiB uberblocks fills the second half of the first 256 KiB label; OpenZFS, uberblock_impl.h.
fn zfs(head: &[u8]) -> Option<&'static str> {
    const MAGIC: u64 = 0x00ba_b10c;
    let ring = head.get(128 << 10..256 << 10)?;
    let is_uberblock = |block: &[u8]| Fields(block).le64(0) == MAGIC || Fields(block).be64(0) == MAGIC;
    ring.chunks(1024).any(is_uberblock).then_some("zfs")
}

fn at_end(tail: &[u8]) -> Option<&'static str> {
    let from_end =
        |distance: usize| Fields(tail.len().checked_sub(distance).and_then(|at| tail.get(at..)).unwrap_or_default());
    const MD: u32 = 0xa92b_4efc;
    let is_md = from_end(8192).le32(0) == MD
        || from_end(64 << 10).le32(0) == MD
        || from_end(128 << 10).0.chunks(64 << 10).any(|part| Fields(part).le32(0) == MD);
    // drbd's internal metadata (drbd_meta_data.c): the superblock is the last 4 KiB.
    let is_drbd = (0x8374_026a..=0x8374_026d).contains(&from_end(4096).be32(60));
    if is_md {
        Some("md raid member")
    } else if is_drbd {
        Some("drbd")
    } else if from_end(512).has(0, b"EFI PART") || from_end(4096).has(0, b"EFI PART") {
        Some("GPT partition table (its backup)")
    } else {
        None
    }
}

/// Last, because file systems and volume managers can have it too.
fn boot_sector(head: &[u8]) -> Option<&'static str> {
    Fields(head).has(510, b"\x55\xaa").then_some("MBR partition table or boot sector")
}
