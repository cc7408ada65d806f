//! What the verbs of the node share: the host, the connectors, who this node is now.

use crate::lease::Leases;
use crate::looks::Looks;
use crate::observe::View;
use crate::target::NodePath;
use crate::tuner::Tuner;
use host::Host;
use host::file::Dir;
use journal::{Intent, Journal, Operation};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use volume::{
    AttachContext, Attacher, Connected, Connector, Error, ErrorKind, LockTable, NodeId, NodeIdentity, Result, Volume,
    VolumeGuard, VolumeId,
};

/// Mounts stacked on one path by mistake that one call takes away.
const MAX_STACKED: usize = 32;

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) connectors: BTreeMap<String, Arc<dyn Connector>>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) locks: LockTable,
    pub(crate) journal: Journal,
    pub(crate) tuner: Tuner,
    pub(crate) leases: Leases,
    pub(crate) attacher: Attacher,
    /// Where `node.json` is.
    pub(crate) state: Dir,
    /// Whether the orchestrator stages; else publish does it, below `staging_dir`.
    pub(crate) is_staged_by_caller: bool,
    pub(crate) staging_dir: PathBuf,
    pub(crate) life: Mutex<Life>,
    /// Held by whoever changes `life` step by step.
    pub(crate) registering: Mutex<()>,
    pub(crate) looks: Looks,
    /// For what runs outside of a call: one volume's reconciliation, one backend's registration.
    pub(crate) step_deadline_ms: u64,
}

/// Whether this node may use volumes now.
#[derive(Debug, Clone)]
pub(crate) enum Life {
    /// Not registered with every backend yet; why.
    Starting(String),
    Live(NodeIdentity),
    /// Cut off, and what of its mounts and devices could not be removed yet.
    Fenced {
        identity: NodeIdentity,
        reason: String,
    },
}

impl Node {
    /// The node half of the volume's backend; `NotFound` for a backend that this node does not have.
    pub(crate) fn connector(&self, id: &VolumeId) -> Result<&dyn Connector> {
        self.connectors.get(id.backend()).map(AsRef::as_ref).ok_or_else(|| {
            let known: Vec<_> = self.connectors.keys().map(String::as_str).collect();
            Error::not_found(format!(
                "no volume {id}: this node has no backend {:?}, it has {}",
                id.backend(),
                known.join(", ")
            ))
        })
    }

    /// Who this node is, when it may take volumes into use.
    pub(crate) fn identity(&self) -> Result<NodeIdentity> {
        match &*self.life() {
            Life::Live(identity) => Ok(identity.clone()),
            Life::Starting(reason) => {
                Err(Error::new(ErrorKind::Unavailable, format!("node {} is not registered yet: {reason}", self.id)))
            }
            Life::Fenced { reason, .. } => Err(Error::new(
                ErrorKind::Held,
                format!(
                    "node {} is fenced: nothing is staged or published here until what it had is cleaned up: {reason}",
                    self.id
                ),
            )),
        }
    }

    /// Who this node is or was, for taking things away.
    pub(crate) fn identity_for_cleaning(&self) -> Result<NodeIdentity> {
        match &*self.life() {
            Life::Live(identity) | Life::Fenced { identity, .. } => Ok(identity.clone()),
            Life::Starting(reason) => {
                Err(Error::new(ErrorKind::Unavailable, format!("node {} is not registered yet: {reason}", self.id)))
            }
        }
    }

    pub(crate) fn life(&self) -> MutexGuard<'_, Life> {
        // Every section under the lock is a plain read or assignment.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the volume is staged: the caller's path, or our own where the orchestrator does not stage.
    pub(crate) fn staging_path(&self, id: &VolumeId, given: Option<&NodePath>) -> Result<PathBuf> {
        match given {
            _ if !self.is_staged_by_caller => Ok(self.own_staging_path(id)),
            Some(path) => path.resolve(self.host.as_ref()),
            // CSI 1.13, NodePublishVolume errors: "Staging target path not set".
            None => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("staging_target_path of {id} is not given: stage the volume first and name the path"),
            )),
        }
    }

    pub(crate) fn own_staging_path(&self, id: &VolumeId) -> PathBuf {
        self.staging_dir.join(id.as_str())
    }

    /// Unmounts the volume from `path`, however often it is mounted there; what else is mounted there stays.
    pub(crate) fn unmount_ours(&self, connector: &dyn Connector, id: &VolumeId, path: &Path) -> Result<()> {
        for _ in 0..MAX_STACKED {
            if !View::read(self, connector, id)?.is_ours_at(path) {
                return Ok(());
            }
            self.host.unmount(path)?;
            if self.host.mount_at(path)?.is_none() {
                return Ok(());
            }
        }
        Err(Error::internal(format!("{id} is still mounted at {} after {MAX_STACKED} unmounts", path.display())))
    }

    /// Runs `work` between a note of `intent` and its removal. When it fails, what it did is undone in reverse; a note
    /// stays only when that failed too, so that reconciliation looks there.
    pub(crate) fn journaled<'a, T>(
        &self,
        guard: &VolumeGuard,
        intent: &Intent,
        work: impl FnOnce(&mut Undo<'a>) -> Result<T>,
    ) -> Result<T> {
        if let Err(error) = self.journal.begin(guard, intent) {
            // On a full disk nothing is begun, but what is there must come off: reconciliation finds all of it that
            // matters without a note.
            if !matches!(intent.operation, Operation::Unpublish | Operation::Unstage) {
                return Err(error);
            }
            tracing::warn!(volume = %intent.volume, error = error.chain(), "taken away without a journal entry");
        }
        let mut undo = Undo::default();
        let result = work(&mut undo);
        let is_settled = result.is_ok() || undo.run(&intent.volume);
        if is_settled {
            self.forget(guard, &intent.volume);
        }
        result
    }

    /// Removes the volume's note, when the volume was found to be as it has to be. Failing is no error: a note only
    /// says where to look, and the volume's next operation replaces it.
    pub(crate) fn forget(&self, guard: &VolumeGuard, id: &VolumeId) {
        if let Err(error) = self.journal.end(guard, id) {
            tracing::warn!(volume = %id, error = error.chain(), "a journal entry could not be removed");
        }
    }
}

/// How to take back what an operation did so far.
#[derive(Default)]
pub(crate) struct Undo<'a> {
    steps: Vec<(&'static str, UndoStep<'a>)>,
}

type UndoStep<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

impl<'a> Undo<'a> {
    /// To be called before the step that it takes back, so that a step that failed halfway is taken back as well.
    pub(crate) fn push(&mut self, what: &'static str, step: impl FnOnce() -> Result<()> + 'a) {
        self.steps.push((what, Box::new(step)));
    }

    /// Whether all of it succeeded; what did not is logged, and the rest is done nevertheless.
    fn run(self, id: &VolumeId) -> bool {
        let mut is_complete = true;
        for (what, step) in self.steps.into_iter().rev() {
            if let Err(error) = step() {
                is_complete = false;
                tracing::warn!(volume = %id, step = what, error = error.chain(), "a failed operation could not be undone");
            }
        }
        is_complete
    }
}

/// Whether the record still gives the volume to this node's life, and is the one that `connected` and `context` speak
/// of. A fence that ran since staging shows here.
pub(crate) fn check_granted(
    volume: &Volume,
    identity: &NodeIdentity,
    connected: Option<&Connected>,
    context: Option<&AttachContext>,
) -> Result<()> {
    if !volume.kind.is_single_node() {
        return Ok(());
    }
    let held = |reason: String| Err(Error::new(ErrorKind::Held, format!("volume {}: {reason}", volume.id)));
    let Some(attachment) = &volume.attachment else {
        return held(format!("it is not attached to node {}; attach it (ControllerPublishVolume) first", identity.id));
    };
    if attachment.holder.node != identity.id || attachment.holder.incarnation != identity.incarnation {
        return held(format!("it is held by {}, not by this life of node {}", attachment.holder, identity.id));
    }
    if let Some(proof) = &attachment.proof {
        return held(format!("node {} was cut off from it by {}", identity.id, proof.actor));
    }
    if let Some(context) = context
        && context.epoch != attachment.epoch
    {
        return held(format!(
            "publish_context is of epoch {}, the volume is at epoch {}; attach it again",
            context.epoch, attachment.epoch
        ));
    }
    if let Some(Connected::Device { epoch, path, .. }) = connected
        && *epoch != attachment.epoch
    {
        return held(format!(
            "{} is connected with epoch {epoch}, the volume is at epoch {}; unstage it and stage it again",
            path.display(),
            attachment.epoch
        ));
    }
    Ok(())
}
