//! Where the orchestrator attaches nothing, this node takes the grant of a volume when it stages it and gives it back when
//! it has unstaged it. The contract is the same: the storage decides, and a grant without a proof never passes on.

use crate::node::Node;
use crate::stage::Stager;
use volume::{AttachRequest, Attacher, Connector, Error, ErrorKind, Result, Volume, VolumeGuard, VolumeId, VolumeKind};

impl Node {
    pub(crate) fn takes_grants(&self) -> bool {
        self.attacher == Attacher::Node
    }

    /// The volume as it is recorded once this node has its grant; a retry finds that it has. Unchanged where the
    /// controller grants. `Held` while another node has it.
    pub(crate) fn take_grant(&self, stager: &Stager<'_>) -> Result<Volume> {
        let Stager { volume, connector, guard, .. } = *stager;
        // Nobody holds a directory.
        if !self.takes_grants() || volume.kind == VolumeKind::Directory {
            return Ok(volume.clone());
        }
        let grants = connector.grants().ok_or_else(|| {
            let backend = volume.id.backend();
            let message = format!(
                "backend {backend} gives no grant to nodes; serve it with attach = \"controller\", and with attachRequired: true \
                 in Kubernetes"
            );
            Error::new(ErrorKind::FailedPrecondition, message)
        })?;
        let read_only = stager.capability.access_mode.is_read_only();
        grants.attach(guard, &AttachRequest { volume: &volume.id, node: &self.id, read_only })?;
        connector.volume(&volume.id)
    }

    /// Fine when it has none, or another node has it by now. Nothing is given back of what is still connected here.
    pub(crate) fn give_back(&self, guard: &VolumeGuard, connector: &dyn Connector, id: &VolumeId) -> Result<()> {
        let Some(grants) = connector.grants().filter(|_| self.takes_grants()) else { return Ok(()) };
        if !connector.is_surely_unconnected(id)? && connector.observe(id)?.is_some() {
            return Ok(());
        }
        grants.detach(guard, id, Some(&self.id))
    }

    /// After a call that took a grant: when it failed, nobody may come to unstage the volume, so the grant goes unless
    /// something of the volume is still here.
    pub(crate) fn keep_grant_if_used<T>(&self, stager: &Stager<'_>, result: Result<T>) -> Result<T> {
        let Stager { volume, connector, guard, .. } = *stager;
        if result.is_err()
            && let Err(error) = self.give_back(guard, connector, &volume.id)
        {
            tracing::warn!(volume = %volume.id, error = error.chain(), "a grant stays here; it goes when this driver starts");
        }
        result
    }

    /// Of the volumes whose records name this node, in whichever of its lives.
    pub(crate) fn granted_to_us(&self) -> Vec<Result<Vec<VolumeId>>> {
        if !self.takes_grants() {
            return Vec::new();
        }
        let held = |connector: &dyn Connector| {
            let held = connector.grants().map_or(Ok(Vec::new()), |grants| grants.held_by(&self.id))?;
            Ok(held.into_iter().map(|volume| volume.id).collect())
        };
        self.connectors.values().map(|connector| held(connector.as_ref())).collect()
    }
}
