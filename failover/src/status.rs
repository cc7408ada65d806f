//! What `hawser failover ls` shows.

use crate::{Cause, Refusal, Supervisor};
use serde::Serialize;
use volume::NodeId;

/// How far a failover is. The order is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Inspecting,
    Fencing,
    ReadingBack,
    Tainting,
    Evicting,
    Reattaching,
    /// All has moved; the node is still away.
    AwaitingReturn,
    /// Something stands in the way; see the refusal.
    Refused,
    /// The node is there again, and is watched before it is let in.
    Returning,
    Unfencing,
    Untainting,
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    pub node: NodeId,
    pub suspected: Option<Cause>,
    pub stage: Option<Stage>,
    /// How long the stage has lasted.
    pub since_ms: Option<u64>,
    pub refusal: Option<Refusal>,
}

impl Stage {
    /// Whether it takes one of the places of failovers at the same time.
    pub(crate) fn is_under_way(self) -> bool {
        self <= Self::Reattaching
    }
}

impl Supervisor {
    /// Nodes of which there is something to say.
    pub fn status(&self) -> Vec<NodeStatus> {
        let said = self.nodes.iter().filter_map(|node| {
            let status = NodeStatus {
                node: node.id.clone(),
                suspected: node.suspicion,
                stage: node.case.as_ref().map(|case| case.stage),
                since_ms: node.case.as_ref().map(|case| self.now_ms.saturating_sub(case.stage_since_ms)),
                refusal: node.refusal.as_ref().map(|(why, _)| why.clone()),
            };
            let is_quiet = status.suspected.is_none() && status.stage.is_none() && status.refusal.is_none();
            (!is_quiet).then_some(status)
        });
        said.collect()
    }
}
