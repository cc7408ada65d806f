//! Thin wrappers of system calls that nix does not have. Nothing here decides anything.

pub(crate) mod file;
