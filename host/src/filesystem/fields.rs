//! Numbers inside of on-disk structures.

/// Reads fields of a block; what lies outside of it reads as zero, so no input can make a reader panic.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn bytes<const N: usize>(self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        if let Some(found) = self.0.get(at..at.saturating_add(N)) {
            field.copy_from_slice(found);
        }
        field
    }

    pub(super) fn byte(self, at: usize) -> u8 {
        u8::from_le_bytes(self.bytes(at))
    }

    pub(super) fn le16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    pub(super) fn le32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub(super) fn le64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    pub(super) fn be16(self, at: usize) -> u16 {
        u16::from_be_bytes(self.bytes(at))
    }

    pub(super) fn be32(self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes(at))
    }

    pub(super) fn be64(self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes(at))
    }

    pub(super) fn has(self, at: usize, magic: &[u8]) -> bool {
        self.0.get(at..at.saturating_add(magic.len())) == Some(magic)
    }
}

/// Writes a field; nothing happens outside of the block.
pub(super) fn put(block: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = block.get_mut(at..at.saturating_add(field.len())) {
        place.copy_from_slice(field);
    }
}
