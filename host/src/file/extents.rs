//! Where a file's bytes are, without reading them.

use super::io;
use crate::sys::fiemap::{RawExtent, fiemap};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsFd;
use volume::{Error, ErrorKind, Result};

/// FIEMAP_EXTENT_UNWRITTEN.
const UNWRITTEN: u32 = 0x800;
/// FIEMAP_EXTENT_LAST, _MERGED and _SHARED: they say nothing of what the bytes are. SHARED comes and goes with other files.
const HARMLESS: u32 = 0x1 | 0x1000 | 0x2000;

/// A piece of a file that is no hole, as the file system maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset_bytes: u64,
    /// Never 0.
    pub length_bytes: u64,
    pub content: ExtentContent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentContent {
    /// The bytes are at this address of the file system, and nowhere else: two files that have the same address for the
    /// same offset at the same time share the bytes. On btrfs the address is a logical one of the file system's.
    At(u64),
    /// Allocated and never written: reads as zeros.
    Unwritten,
    /// There is data, and its address says nothing: not allocated yet (DELALLOC), unknown, encoded (compressed), inside
    /// metadata (INLINE, TAIL), not aligned to blocks, or flagged as something that this driver does not know.
    Unknown,
}

/// Some of a file's extents, in ascending order; they do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentPage {
    pub extents: Vec<Extent>,
    /// Up to here every byte of the file is in one of `extents` or in a hole. `u64::MAX` when there are no more.
    pub end_bytes: u64,
}

/// The extents from `from_bytes` on, as many as one call gives (at most 1024): the first may begin before. What is in the page
/// cache is written out first. `Unsupported` where the file system has no FIEMAP.
pub fn extents(file: &File, from_bytes: u64) -> Result<ExtentPage> {
    loop {
        // The length is counted from the start, up to the largest offset.
        match fiemap(file.as_fd(), from_bytes, u64::MAX - from_bytes) {
            Ok(raw) => return page(&raw, from_bytes),
            Err(Errno::EINTR) => {}
            // EBADR: the file system does not know the flag SYNC.
            Err(errno @ (Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EBADR)) => {
                let cause = std::io::Error::from(errno);
                let message = "the file system does not tell where a file's extents are (FIEMAP)";
                return Err(Error::with_source(ErrorKind::Unsupported, message, cause));
            }
            Err(errno) => return Err(io("reading where a file's extents are".to_owned(), errno)),
        }
    }
}

fn page(raw: &[RawExtent], from_bytes: u64) -> Result<ExtentPage> {
    let mut extents = Vec::with_capacity(raw.len());
    let mut end_bytes = 0;
    for extent in raw {
        let next = extent.logical.checked_add(extent.length).filter(|&next| extent.length > 0 && next > from_bytes);
        let Some(next) = next.filter(|_| extent.logical >= end_bytes) else {
            let message = format!("the file system lists a file's extents out of order: {extent:?}");
            return Err(Error::new(ErrorKind::Internal, message));
        };
        end_bytes = next;
        let content = content(extent);
        extents.push(Extent { offset_bytes: extent.logical, length_bytes: extent.length, content });
    }
    // Neither a page that is not full nor FIEMAP_EXTENT_LAST is taken for the end: no extent at all is.
    Ok(ExtentPage { end_bytes: if extents.is_empty() { u64::MAX } else { end_bytes }, extents })
}

fn content(extent: &RawExtent) -> ExtentContent {
    match extent.flags & !HARMLESS {
        0 => ExtentContent::At(extent.physical),
        UNWRITTEN => ExtentContent::Unwritten,
        _ => ExtentContent::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn flags() {
        let of = |flags| content(&RawExtent::new(0, 8192, 4096, flags));
        for harmless in [0, 0x1, 0x1000, 0x2000, 0x3001] {
            assert_eq!(of(harmless), ExtentContent::At(8192), "{harmless:#x}");
            assert_eq!(of(harmless | UNWRITTEN), ExtentContent::Unwritten);
        }
        // UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE, DATA_TAIL, and what may come.
        for bit in [0x2, 0x4, 0x8, 0x80, 0x100, 0x200, 0x400, 0x4000, 0x8000_0000] {
            for others in [0, 0x1, 0x2000, UNWRITTEN] {
                assert_eq!(of(bit | others), ExtentContent::Unknown, "{bit:#x} {others:#x}");
            }
        }
    }

    #[test]
    fn pages() {
        let raw = |n: u64| RawExtent::new(n * 8192, n * 4096, 4096, 0);
        let short: Vec<_> = (0..10).map(raw).collect();
        let found = page(&short, 100).unwrap();
        assert_eq!((found.extents.len(), found.end_bytes), (10, 9 * 8192 + 4096));
        assert_eq!(page(&[], 0).unwrap(), ExtentPage { extents: vec![], end_bytes: u64::MAX });
        let wrong = [
            vec![raw(1), raw(0)],
            vec![raw(1), raw(1)],
            vec![RawExtent::new(0, 0, 0, 0)],
            vec![RawExtent::new(u64::MAX - 1, 0, 4096, 0)],
        ];
        for wrong in wrong {
            assert_eq!(page(&wrong, 0).unwrap_err().kind(), ErrorKind::Internal, "{wrong:?}");
        }
        assert!(page(&[raw(0)], 4096).is_err(), "an extent that ends before the start leads nowhere");
    }

    /// Wherever the temporary directory is; the file systems of pools have tests of their own.
    #[test]
    fn of_a_real_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[7; 8192], 65536).unwrap();
        match extents(&file, 0) {
            Ok(found) => {
                let total: u64 = found.extents.iter().map(|extent| extent.length_bytes).sum();
                assert_eq!((found.extents[0].offset_bytes, total, found.end_bytes), (65536, 8192, 65536 + 8192));
                assert_eq!(extents(&file, found.end_bytes).unwrap().end_bytes, u64::MAX);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.chain()),
        }
    }
}
