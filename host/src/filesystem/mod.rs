//! File systems on images and devices: recognised by their own superblocks, made only where nothing is, given a new
//! UUID, checked without being changed, grown.
//!
//! Superblocks are read in process, with pread(2): no cache of another program and no symlink decides what is mounted.

mod btrfs;
mod check;
mod ext4;
mod fields;
mod grow;
mod make;
mod probe;
mod signatures;
mod storage;
mod uuid;
mod xfs;

pub use check::check;
pub use grow::grow;
pub use make::{make, minimum_size};
pub use probe::probe;
pub use uuid::set_uuid;

/// What one file system's reader says of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// Its magic is not there.
    Nothing,
    /// Its superblock verifies.
    Sound { uuid: [u8; 16], size_bytes: u64, errors: bool },
    /// A relative that the driver does not handle (ext2, an external journal).
    Relative(&'static str),
    /// Its magic is there, the rest does not verify: the reason.
    Damaged(String),
}
