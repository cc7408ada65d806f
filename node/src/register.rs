//! Who this node is in this life, and the end of a life by a fence.
//!
//! An incarnation lasts from one boot to the next, across restarts of the plugin (`node.json`). A fenced one never
//! takes a volume into use again: this node first takes away everything it had, verifies that nothing is left, and
//! only then begins a new life. So "another incarnation asks" proves to the storage that the earlier one is over.

use crate::node::{Life, Node};
use crate::observe::{View, directory_volume, may_be_directory};
use host::{MountEntry, deadline};
use journal::record;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use volume::{Connected, Connector, DeviceNumber, Error, ErrorKind, Incarnation, NodeIdentity, Result, VolumeId};

const FILE: &str = "node.json";

impl Node {
    /// Makes this node known to every backend, or finds that it was fenced and comes back clean. To be called before
    /// anything is served, and then again and again: it costs one read of the node's record a backend.
    pub(crate) fn register(self: &Arc<Self>) -> Result<()> {
        let _one_at_a_time = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
        let life = self.life().clone();
        let result = match life {
            Life::Starting(_) => self.begin_or_continue().and_then(|identity| self.register_as(identity)),
            Life::Live(identity) => self.register_as(identity),
            Life::Fenced { identity, .. } => self.come_back(identity),
        };
        if let Err(error) = &result {
            match &mut *self.life() {
                Life::Starting(reason) | Life::Fenced { reason, .. } => *reason = error.chain(),
                // A backend that cannot be read now has not fenced us; its own calls fail while it is away.
                Life::Live(_) => {}
            }
        }
        result
    }

    /// This boot's identity, or a new one that nothing of an earlier life stands in the way of.
    fn begin_or_continue(self: &Arc<Self>) -> Result<NodeIdentity> {
        let boot_id = self.host.boot_id()?;
        let earlier: Option<NodeIdentity> = record::read(&self.state, FILE)?;
        if let Some(earlier) = earlier
            && earlier.boot_id == boot_id
            && earlier.id == self.id
        {
            return Ok(earlier);
        }
        let identity = NodeIdentity { id: self.id.clone(), incarnation: Incarnation::new_random(), boot_id };
        let left = self.everything_of(&identity)?;
        if !left.is_empty() {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "{} does not know this life of node {}, yet volumes of it are in use here: {}. Restore the state directory, \
                     or stop what uses them and unmount them, or reboot",
                    self.state.path().join(FILE).display(),
                    self.id,
                    names(&left)
                ),
            ));
        }
        record::replace(&self.state, FILE, &identity)?;
        Ok(identity)
    }

    fn register_as(self: &Arc<Self>, identity: NodeIdentity) -> Result<()> {
        let (is_fenced, failures) = self.ask_all(&identity);
        if is_fenced {
            tracing::warn!(node = %self.id, "this node was fenced: it takes away all it had before it goes on");
            return self.come_back(identity);
        }
        let is_known = failures.len() < self.connectors.len();
        if is_known {
            // A backend that is away keeps its own volumes from being used, since each use reads its record, and no others.
            *self.life() = Life::Live(identity);
        }
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// Registers with every backend: whether one says that this life is fenced, and which could not be asked.
    fn ask_all(self: &Arc<Self>, identity: &NodeIdentity) -> (bool, Vec<Error>) {
        let (mut is_fenced, mut failures) = (false, Vec::new());
        for (name, connector) in &self.connectors {
            let what = format!("registering with backend {name}");
            // A thread that hangs keeps the lock, so there is never more than one a backend.
            let asked = self.locks.try_lock([what.as_str()]).and_then(|guard| {
                let (connector, identity) = (connector.clone(), identity.clone());
                let work = move || {
                    let _guard = guard;
                    connector.register(&identity)
                };
                deadline::run(self.step_deadline_ms, &what, work)
            });
            match asked {
                Ok(record) => is_fenced |= record.is_fenced(),
                Err(error) => failures.push(error.context(what)),
            }
        }
        (is_fenced, failures)
    }

    fn come_back(self: &Arc<Self>, identity: NodeIdentity) -> Result<()> {
        let reason = "what it had is being taken away".to_owned();
        *self.life() = Life::Fenced { identity: identity.clone(), reason };
        self.take_everything_away(&identity)?;
        let left = self.everything_of(&identity)?;
        if !left.is_empty() {
            return Err(Error::new(ErrorKind::FailedPrecondition, format!("still in use here: {}", names(&left))));
        }
        let next = NodeIdentity { incarnation: Incarnation::new_random(), boot_id: self.host.boot_id()?, ..identity };
        record::replace(&self.state, FILE, &next)?;
        let (is_fenced, failures) = self.ask_all(&next);
        if let Some(error) = failures.into_iter().next() {
            // The new life is in the file; the next try begins with it.
            *self.life() = Life::Starting(error.chain());
            return Err(error);
        }
        if is_fenced {
            return Err(Error::new(ErrorKind::Held, "the new life of this node was fenced at once; retrying"));
        }
        tracing::info!(node = %self.id, incarnation = %next.incarnation, "this node came back clean after a fence");
        *self.life() = Life::Live(next);
        Ok(())
    }

    /// Shuts every file system down first, so that no workload writes on while the slower steps run.
    fn take_everything_away(self: &Arc<Self>, identity: &NodeIdentity) -> Result<()> {
        let mut failures = Vec::new();
        let volumes = self.everything_of(identity)?;
        for work in [Self::shut_down, Self::take_away] {
            for id in &volumes {
                let (node, own_id) = (self.clone(), id.clone());
                let what = format!("taking volume {id} away");
                let step = move || work(&node, &own_id);
                if let Err(error) = deadline::run(self.step_deadline_ms, &what, step) {
                    failures.push(format!("{id}: {}", error.chain()));
                }
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(Error::new(ErrorKind::FailedPrecondition, failures.join("; "))) }
    }

    fn shut_down(&self, id: &VolumeId) -> Result<()> {
        let connector = self.connector(id)?;
        let view = View::read(self, connector, id)?;
        // Where nobody else stops it; else it is cut off already, and this is best effort and not the proof.
        if connector.lease().is_some()
            && let Some(Connected::Device { path, number, .. }) = &view.connected
        {
            return self.stop_writing(path, *number);
        }
        match view.writable_place() {
            // btrfs has no such call.
            Some(place) => match self.host.shutdown_filesystem(place) {
                Err(error) if error.kind() != ErrorKind::Unsupported => Err(error),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    fn take_away(&self, id: &VolumeId) -> Result<()> {
        let guard = self.locks.try_lock([id.as_str()])?;
        let connector = self.connector(id)?;
        self.untune(id);
        let view = View::read(self, connector, id)?;
        let places: Vec<PathBuf> = view.places().into_iter().rev().map(Into::into).collect();
        // The orchestrator may not know of the fence and start the workload again here, where it would write to a bare
        // directory of the node's disk what nobody ever sees. The first place is staging's, where no workload looks; its
        // directory is the orchestrator's to remove.
        for target in view.file_system_places().into_iter().skip(1) {
            match self.host.seal_target(target) {
                Ok(true) => {}
                Ok(false) => tracing::warn!(volume = %id, ?target, "what is below the mount cannot be sealed"),
                Err(error) => {
                    tracing::warn!(volume = %id, ?target, error = error.chain(), "what is below the mount is not sealed");
                }
            }
        }
        for place in &places {
            self.unmount_ours(connector, id, place)?;
        }
        self.disconnect(&guard, connector, id)?;
        self.forget(&guard, id);
        Ok(())
    }

    /// The volumes that this node has mounted or connected.
    pub(crate) fn everything_of(&self, identity: &NodeIdentity) -> Result<BTreeSet<VolumeId>> {
        self.survey(identity).map(|survey| survey.volumes)
    }

    /// One look at all mounts and connections.
    pub(crate) fn survey(&self, identity: &NodeIdentity) -> Result<Survey> {
        let mounts: Arc<[MountEntry]> = self.host.mounts()?.into();
        let mut volumes: BTreeSet<VolumeId> = mounts
            .iter()
            .filter_map(directory_volume)
            .filter(|id| self.connector(id).is_ok_and(|connector| may_be_directory(connector, id)))
            .collect();
        let mut connections: BTreeMap<VolumeId, Vec<Connected>> = BTreeMap::new();
        let mounted: BTreeSet<DeviceNumber> = mounts.iter().map(|entry| entry.device).collect();
        for connector in self.connectors.values() {
            for (id, connected) in connector.observe_all()? {
                if is_of(connector.as_ref(), &id, &connected, identity, &mounted, &mounts)? {
                    volumes.insert(id.clone());
                }
                connections.entry(id).or_default().push(connected);
            }
        }
        Ok(Survey { volumes, connections, mounts })
    }
}

/// What one look at the whole node found.
pub(crate) struct Survey {
    /// The node's own.
    pub(crate) volumes: BTreeSet<VolumeId>,
    /// Of a volume, the present connection first.
    pub(crate) connections: BTreeMap<VolumeId, Vec<Connected>>,
    pub(crate) mounts: Arc<[MountEntry]>,
}

/// Whether this connection is the node's. The kernel's tables are of the machine, which can carry several nodes
/// (mount namespaces); what is mounted here is ours, of the rest the volume's record tells whose it is. What no record
/// speaks of any more counts as ours: disconnecting it harms nobody, since the kernel refuses while it is in use.
fn is_of(
    connector: &dyn Connector,
    id: &VolumeId,
    connected: &Connected,
    identity: &NodeIdentity,
    mounted: &BTreeSet<DeviceNumber>,
    mounts: &[MountEntry],
) -> Result<bool> {
    let Connected::Device { number, path, epoch, .. } = connected else { return Ok(false) };
    if mounted.contains(number) || mounts.iter().any(|entry| crate::observe::is_file_system_of(entry, path, *number)) {
        return Ok(true);
    }
    match connector.volume(id) {
        Ok(volume) => {
            Ok(volume.attachment.filter(|held| held.epoch == *epoch).is_none_or(|held| held.holder.node == identity.id))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

fn names(volumes: &BTreeSet<VolumeId>) -> String {
    volumes.iter().map(VolumeId::as_str).collect::<Vec<_>>().join(", ")
}
