//! The operators' commands. They open the backends themselves: records change by compare-and-swap, so this is as safe
//! beside a running controller as a second controller is.

mod failover;
mod fence;
mod group;
mod list;
mod show;
mod snapshot;
mod trim;
mod volume;

pub use failover::{cordon, drain, list_failovers, uncordon};
pub use fence::{fence, fence_node, unfence};
pub use list::{nodes, orphans, remove_orphans};
pub use show::{kind, proof};
pub use snapshot::snapshot_command;
pub use volume::volume_command;
