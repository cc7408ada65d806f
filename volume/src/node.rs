//! Nodes as the storage records them. "Fenced" stands in the node's own record before any of its volumes is
//! touched, and every grant reads it.

use crate::{Error, ErrorKind, Incarnation, NodeId, Result, Segments};
use serde::{Deserialize, Serialize};

/// Who a node service is in this life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    pub id: NodeId,
    pub incarnation: Incarnation,
    /// `/proc/sys/kernel/random/boot_id`. Equal ids do not prove the same kernel (a restored machine snapshot).
    pub boot_id: String,
}

/// What a backend keeps of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub identity: NodeIdentity,
    pub state: NodeState,
    pub topology: Segments,
    /// Milliseconds since the Unix epoch.
    pub registered_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum NodeState {
    Live,
    /// No grant is given to this incarnation, and its attachments may be taken over once each has its proof.
    Fenced {
        /// Who asked: `cli:root@host`, `supervisor:<name>`.
        actor: String,
        at_ms: u64,
        powered_off: bool,
    },
}

impl NodeRecord {
    pub fn is_fenced(&self) -> bool {
        matches!(self.state, NodeState::Fenced { .. })
    }

    /// `FailedPrecondition` when the record is not of the life that the caller means. To be checked on the very state
    /// that is then swapped.
    pub fn check_life(&self, expected: Option<Incarnation>) -> Result<()> {
        let NodeIdentity { id, incarnation: found, .. } = &self.identity;
        match expected {
            Some(expected) if expected != *found => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("node {id} is registered in life {found} and life {expected} is meant; nothing was changed"),
            )),
            Some(_) | None => Ok(()),
        }
    }
}
