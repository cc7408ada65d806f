//! CSI's Controller service over any [`volume::Backend`]s.
//!
//! Each call is split by verb: `prepare` reads the whole request and takes the locks before anything happens, `run`
//! does the work on a thread of its own, `reply` writes the answer.
#![forbid(unsafe_code)]

mod call;
mod capabilities;
mod capacity;
mod core;
mod create;
mod delete;
mod expand;
mod group;
mod group_snapshot;
mod health;
mod list;
mod metadata;
mod modify;
mod paging;
mod place;
mod publish;
mod reply;
mod service;
mod snapshot;
mod validate;

pub use group::GroupControllerService;
pub use metadata::SnapshotMetadataService;
pub use service::ControllerService;
