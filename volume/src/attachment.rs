//! The attachment contract as pure functions: who holds a single-writer volume, and when it may pass to another node.
//!
//! A record is `(holder, epoch, image, proof)`. Backends change it by compare-and-swap; what to change it to is
//! decided here alone, so the rule is the same on every storage and every orchestrator.

use crate::{Error, ErrorKind, Incarnation, NodeId, NodeRecord, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Counts the grants of one volume; grows by one with each, never falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// One node in one of its lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub node: NodeId,
    pub incarnation: Incarnation,
}

/// Which file (or device) an epoch writes to, so that a fence that was paused cannot hit its successor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// Name inside the volume's directory.
    pub name: String,
    pub inode: u64,
    /// FS_IOC_GETVERSION: differs when an inode number is used again. 0 where the file system has none.
    pub generation: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub holder: Holder,
    pub epoch: Epoch,
    pub read_only: bool,
    pub granted_at_ms: u64,
    /// Once set, the holder provably cannot write to the volume's current image any more.
    pub proof: Option<FenceProof>,
}

/// Why a former holder cannot write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceProof {
    pub method: FenceMethod,
    pub actor: String,
    pub at_ms: u64,
    /// The image the fenced holder wrote to.
    pub fenced_image: Option<ImageIdentity>,
    /// Loop devices limited, with the size that was read back.
    pub evidence: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceMethod {
    /// Every loop of the image cut to one sector and read back, then the image forked.
    LimitAndFork,
    /// As above without a fork (no reflink); file systems only.
    Limit,
    /// The image forked; the old holder may go on writing into the orphan. Weaker, opt-in.
    Fork,
    /// An administrator's word that the machine is off.
    PoweredOff,
    /// The node itself came back in a new life with its old mounts and devices verified gone.
    Reincarnated,
}

/// Who takes a volume's grant for the node that is to use it, and gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attacher {
    /// ControllerPublishVolume and ControllerUnpublishVolume.
    #[default]
    Controller,
    /// The node itself, when it stages and unstages: for orchestrators that attach nothing.
    Node,
}

/// What [`plan_attach`] decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachPlan {
    /// The same incarnation holds it already; nothing to write.
    AlreadyHeld(Epoch),
    /// Swap the record to this attachment.
    Grant(Attachment),
}

/// What [`plan_detach`] decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetachPlan {
    /// Nothing to do: free, or held by somebody whom this call does not mean.
    Nothing,
    /// The holder is cut off already (recorded proof); the grant can be dropped.
    ReleaseFenced,
    /// The grant can be dropped once the storage shows that the holder has let go.
    ReleaseIfQuiet,
}

/// Decides an attach. `held` and `epoch` are the volume's record, `node` the record of the node that asks, all read
/// in one consistent state; the answer is valid only if the compare-and-swap of that state succeeds.
pub fn plan_attach(
    held: Option<&Attachment>,
    epoch: Epoch,
    node: &NodeRecord,
    read_only: bool,
    now_ms: u64,
) -> Result<AttachPlan> {
    if node.is_fenced() {
        return Err(Error::new(
            ErrorKind::Held,
            format!(
                "node {} is fenced: no volume is given to it until it came back clean (it unfences itself when its driver starts, or: hawser unfence {})",
                node.identity.id, node.identity.id
            ),
        ));
    }
    let asks = Holder { node: node.identity.id.clone(), incarnation: node.identity.incarnation };
    let grant = || {
        AttachPlan::Grant(Attachment {
            holder: asks.clone(),
            epoch: epoch.next(),
            read_only,
            granted_at_ms: now_ms,
            proof: None,
        })
    };
    match held {
        None => Ok(grant()),
        Some(own) if own.holder == asks && own.proof.is_none() => {
            if own.read_only == read_only {
                Ok(AttachPlan::AlreadyHeld(own.epoch))
            } else {
                Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!(
                        "node {} holds the volume {} and asks for it {}",
                        own.holder.node,
                        access(own.read_only),
                        access(read_only)
                    ),
                ))
            }
        }
        // Its earlier life is over: a new incarnation is registered only after a reboot or a verified clean-up.
        Some(earlier) if earlier.holder.node == asks.node && earlier.holder.incarnation != asks.incarnation => {
            Ok(grant())
        }
        Some(fenced) if fenced.proof.is_some() => Ok(grant()),
        Some(other) => Err(Error::new(
            ErrorKind::Held,
            format!(
                "node {} holds the volume (epoch {}) and is not fenced; detach it there, or if that node is dead: hawser fence {}",
                other.holder.node, other.epoch, other.holder.node
            ),
        )),
    }
}

/// Decides a detach. `node` is `None` for CSI's empty node_id ("all nodes"), which orchestrators also send for a dead
/// node they forgot; a living holder is never detached on it.
pub fn plan_detach(held: Option<&Attachment>, node: Option<&NodeId>) -> DetachPlan {
    match (held, node) {
        (None, _) => DetachPlan::Nothing,
        (Some(held), Some(node)) if held.holder.node != *node => DetachPlan::Nothing,
        (Some(held), _) if held.proof.is_some() => DetachPlan::ReleaseFenced,
        (Some(_), Some(_)) => DetachPlan::ReleaseIfQuiet,
        (Some(_), None) => DetachPlan::Nothing,
    }
}

impl Epoch {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

fn access(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "read-write" }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (incarnation {})", self.node, self.incarnation)
    }
}
