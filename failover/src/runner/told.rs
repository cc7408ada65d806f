//! What the runner is told by others.

use crate::{Heartbeat, OrchestratorNode};
use tokio::sync::mpsc;
use volume::NodeId;

#[derive(Debug, Clone)]
pub enum Told {
    Heartbeat(Heartbeat),
    /// The agent's connection.
    Connection {
        node: NodeId,
        is_up: bool,
    },
    /// The machine itself refused a connection to the agent's port: its kernel lives. To be told again while that is so, every few seconds.
    Refused {
        node: NodeId,
    },
    /// How the orchestrator sees a node, when first seen and when changed.
    Node {
        node: NodeId,
        state: OrchestratorNode,
    },
    /// The lease of leadership is held until then, by the runner's clock, counted from when the request was sent; `None`: not held.
    Lease(Option<u64>),
}

/// Where it is told.
#[derive(Debug, Clone)]
pub struct Mailbox(mpsc::Sender<Told>);

/// More than a thousand nodes say in five seconds.
const CAPACITY: usize = 16_384;

pub(super) fn mailbox() -> (Mailbox, mpsc::Receiver<Told>) {
    let (send, receive) = mpsc::channel(CAPACITY);
    (Mailbox(send), receive)
}

impl Mailbox {
    /// For what may be lost, such as a sign of life: a runner that does not keep up does not know what it missed anyway.
    pub fn tell_lossy(&self, told: Told) {
        drop(self.0.try_send(told));
    }

    /// False when the runner is gone.
    pub async fn tell(&self, told: Told) -> bool {
        self.0.send(told).await.is_ok()
    }
}
