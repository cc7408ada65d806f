//! The system calls and ioctls that nix lacks, each as thin as it can be: the crate's `unsafe` is here, and nothing here
//! decides anything. Every function works on descriptors it is lent and turns -1 into the errno.

pub(crate) mod block;
pub(crate) mod fiemap;
pub(crate) mod file;
pub(crate) mod inode;
pub(crate) mod loops;
pub(crate) mod memory;
pub(crate) mod mount;
pub(crate) mod process;
