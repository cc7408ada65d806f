//! One record: a block of 4 KiB that says who wrote it, when, and whether it is whole.

use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use uuid::Uuid;

pub const BLOCK_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"hawserwr";
const HEADER_BYTES: usize = 64;
const BODY_BYTES: usize = BLOCK_BYTES - 32;

/// What identifies a record. The rest of its block follows from it, so a checker can make the block again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordId {
    pub nonce: Uuid,
    pub epoch: u64,
    pub writer: u32,
    pub seq: u64,
    /// Position in blocks.
    pub slot: u64,
}

/// Block-aligned memory, as O_DIRECT asks for.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl RecordId {
    /// Fills `block` and gives the record's checksum.
    pub fn encode(&self, block: &mut [u8]) -> String {
        let block = &mut block[..BLOCK_BYTES];
        block[..HEADER_BYTES].fill(0);
        block[0..8].copy_from_slice(MAGIC);
        block[8..24].copy_from_slice(self.nonce.as_bytes());
        block[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        block[32..40].copy_from_slice(&self.seq.to_le_bytes());
        block[40..48].copy_from_slice(&self.slot.to_le_bytes());
        block[48..52].copy_from_slice(&self.writer.to_le_bytes());
        // Different bytes in every block: identical ones could hide a write that landed in the wrong place.
        let mut state = self.seq ^ (self.slot << 20) ^ (u64::from(self.writer) << 44) ^ (self.epoch << 56) | 1;
        for word in block[HEADER_BYTES..BODY_BYTES].chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let digest = Sha256::digest(&block[..BODY_BYTES]);
        block[BODY_BYTES..].copy_from_slice(&digest);
        hex(&digest[..16])
    }

    /// The record in `block`, if a whole one is there.
    pub fn decode(block: &[u8]) -> Option<Self> {
        let word = |at: usize| block[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        if block.len() != BLOCK_BYTES || &block[0..8] != MAGIC {
            return None;
        }
        let found = Self {
            nonce: Uuid::from_slice(&block[8..24]).ok()?,
            epoch: word(24)?,
            seq: word(32)?,
            slot: word(40)?,
            writer: u32::from_le_bytes(block[48..52].try_into().ok()?),
        };
        let mut again = vec![0; BLOCK_BYTES];
        found.encode(&mut again);
        (again == block).then_some(found)
    }

    pub fn checksum(&self) -> String {
        self.encode(&mut [0; BLOCK_BYTES])
    }
}

impl Buffer {
    pub fn new() -> Self {
        let bytes = vec![0; 2 * BLOCK_BYTES];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        Self { bytes, start }
    }

    pub fn block(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + BLOCK_BYTES]
    }
}

/// Opens for direct, synchronous writes, or for direct reads; without O_DIRECT where the file system has none.
pub fn open(path: &Path, write: bool) -> io::Result<File> {
    use nix::fcntl::OFlag;
    let sync = if write { OFlag::O_DSYNC } else { OFlag::empty() };
    let attempt = |flags: OFlag| {
        OpenOptions::new().read(true).write(write).custom_flags((flags | sync | OFlag::O_CLOEXEC).bits()).open(path)
    };
    match attempt(OFlag::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32) => attempt(OFlag::empty()),
        opened => opened,
    }
}

/// Reads the block at `slot`; `None` past the end.
pub fn read_block(file: &File, slot: u64, buffer: &mut Buffer) -> io::Result<Option<Vec<u8>>> {
    let read = file.read_at(buffer.block(), slot * BLOCK_BYTES as u64)?;
    Ok((read == BLOCK_BYTES).then(|| buffer.block().to_vec()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_whole_or_not_there() {
        let id = RecordId { nonce: Uuid::new_v4(), epoch: 3, writer: 7, seq: 99, slot: 41 };
        let mut block = vec![0; BLOCK_BYTES];
        id.encode(&mut block);
        assert_eq!(RecordId::decode(&block), Some(id));
        for at in [0, 30, 60, 2000, 4095] {
            let mut torn = block.clone();
            torn[at] ^= 1;
            assert_eq!(RecordId::decode(&torn), None, "byte {at}");
        }
        assert_ne!(id.checksum(), RecordId { seq: 100, ..id }.checksum());
        assert_eq!(RecordId::decode(&[0; BLOCK_BYTES]), None);
    }

    #[test]
    fn buffers_are_aligned() {
        assert_eq!(Buffer::new().block().as_ptr() as usize % BLOCK_BYTES, 0);
    }
}
