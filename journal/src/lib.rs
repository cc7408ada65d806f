//! Records of one node: what it had begun, and (durably) who it is. They say where to look after a crash, never what is
//! true: that is in the mount table, the device tables and the backend. Nothing here is a lock or a compare-and-swap;
//! callers hold the volume's guard.
#![forbid(unsafe_code)]

mod intent;
pub mod record;

pub use intent::{Entry, Intent, Journal, Operation};
