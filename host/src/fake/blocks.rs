//! Which blocks of images hold data and which differ, as one who sees all of them tells it.

use super::FakeHost;
use super::block::{BLOCK_BYTES, Content, Disk};
use super::kernel::Kernel;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use volume::Result;

impl FakeHost {
    /// The blocks that hold data, as ranges of bytes in ascending order, which may touch. An image that is not modelled
    /// byte by byte holds data everywhere.
    pub fn allocated_blocks(&self, image: &Path) -> Result<Vec<Range<u64>>> {
        let kernel = self.kernel();
        let disk = kernel.disk_behind(image)?;
        Ok(match data(disk) {
            Some(blocks) => blocks.keys().map(|&index| block(index)).collect(),
            None => whole(disk),
        })
    }

    /// The blocks of `target` that are not those of `base`, as in [`FakeHost::allocated_blocks`]. What is beyond the end
    /// of `base` is compared with zeros.
    pub fn changed_blocks(&self, base: &Path, target: &Path) -> Result<Vec<Range<u64>>> {
        let kernel = self.kernel();
        let (base, target) = (kernel.disk_behind(base)?, kernel.disk_behind(target)?);
        Ok(match (data(base), data(target)) {
            (Some(old), Some(new)) => {
                let differs = |index: &&u64| content(&old, **index) != content(&new, **index);
                let mut indexes: Vec<u64> = old.keys().chain(new.keys()).filter(differs).copied().collect();
                indexes.sort_unstable();
                indexes.dedup();
                indexes.into_iter().map(block).collect()
            }
            _ if base.content == target.content => Vec::new(),
            _ => whole(target),
        })
    }
}

impl Kernel {
    fn disk_behind(&self, image: &Path) -> Result<&Disk> {
        self.disk(self.disk_at(image)?.0)
    }
}

fn data(disk: &Disk) -> Option<BTreeMap<u64, &[u8]>> {
    match &disk.content {
        Content::Blank => Some(BTreeMap::new()),
        Content::Data(blocks) => Some(blocks.iter().map(|(index, bytes)| (*index, bytes.as_slice())).collect()),
        Content::FileSystem { .. } | Content::Damaged { .. } | Content::Other(_) | Content::Unreadable => None,
    }
}

fn content<'a>(blocks: &BTreeMap<u64, &'a [u8]>, index: u64) -> &'a [u8] {
    const ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
    blocks.get(&index).copied().unwrap_or(&ZEROS)
}

fn block(index: u64) -> Range<u64> {
    index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES
}

fn whole(disk: &Disk) -> Vec<Range<u64>> {
    std::iter::once(0..disk.size_bytes).collect()
}
