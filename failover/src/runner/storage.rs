//! The storage's side: all backends of the controller, as one. Calls block; see [`super::carry_out`].

use super::look::{Look, Record};
use super::orchestrator::Workload;
use crate::{FenceResult, Stays, StorageView, VolumeView, WorkloadId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use volume::{Backend, BackendName, Backends, Failover, FenceHow, Incarnation, NodeId, NodeRecord, Volume, VolumeId};

/// What the supervisor does in the storage. A backend that has only one node registered has nowhere to move a volume to, so its
/// volumes stay, and no fence asks it: that is what a local pool is, and it is out of reach exactly when its node is lost.
pub struct Storage {
    backends: Arc<dyn Backends>,
    /// Who fences, for the records: `supervisor:<name>`.
    actor: String,
    /// The nodes of each backend as last read.
    known: Mutex<BTreeMap<BackendName, Vec<Record>>>,
}

/// One node in one backend.
struct Place {
    backend: Arc<dyn Backend>,
    record: NodeRecord,
}

/// A fresh look at the node in every backend.
#[derive(Default)]
struct Places {
    /// Where others are registered, too.
    shared: Vec<Place>,
    /// Of the node alone.
    own: Vec<Place>,
    /// Of the node alone, and out of reach.
    lost: Vec<(BackendName, Record, String)>,
}

impl Storage {
    pub fn new(backends: Arc<dyn Backends>, actor: String) -> Self {
        Self { backends, actor, known: Mutex::default() }
    }

    pub(super) fn backends(&self) -> Vec<Arc<dyn Backend>> {
        self.backends.all()
    }

    /// Takes in what a look has shown; what could not be read stays as it was.
    pub(super) fn remember(&self, look: &Look) {
        let mut known = self.known();
        let names: BTreeSet<&BackendName> = look.backends.iter().map(|backend| &backend.name).collect();
        known.retain(|name, _| names.contains(name));
        for backend in &look.backends {
            if let Ok(seen) = &backend.seen {
                known.insert(backend.name.clone(), seen.records.clone());
            }
        }
    }

    /// Every node by what the backends said last.
    pub(super) fn records(&self) -> BTreeMap<NodeId, Record> {
        let known = self.known();
        let mut merged: BTreeMap<NodeId, Record> = BTreeMap::new();
        for records in known.values() {
            for record in records {
                let record =
                    if records.len() > 1 { record.clone() } else { Record { is_fenced: false, ..record.clone() } };
                match merged.get_mut(&record.node) {
                    Some(other) => other.merge(&record),
                    None => drop(merged.insert(record.node.clone(), record)),
                }
            }
        }
        merged
    }

    /// Whether the backend is one that failovers depend on.
    pub(super) fn is_shared(&self, backend: &BackendName) -> bool {
        self.known().get(backend).is_none_or(|records| records.len() != 1)
    }

    /// Whether every backend that has the node is its own.
    pub(super) fn is_on_its_own(&self, node: &NodeId) -> bool {
        let known = self.known();
        let mut with_it = known.values().filter(|records| records.iter().any(|record| record.node == *node)).peekable();
        with_it.peek().is_some() && with_it.all(|records| records.len() == 1)
    }

    /// The node's volumes, and whether each moves. What only its own storage could tell is taken from `workloads`.
    pub(super) fn view(&self, node: &NodeId, workloads: &[Workload]) -> Result<StorageView, String> {
        let places = self.places(node)?;
        let life = places.life(node)?;
        let mut volumes = Vec::new();
        for place in &places.shared {
            for volume in held_by(place, node)? {
                volumes.push(VolumeView {
                    is_proven: volume.attachment.as_ref().is_some_and(|held| held.proof.is_some()),
                    stays: stays(place.backend.as_ref(), &volume),
                    id: volume.id,
                });
            }
        }
        let here_alone = |id: VolumeId, backend: &BackendName| {
            let why = format!("backend {backend} is of node {node} alone, so its volumes wait for the node");
            VolumeView { id, is_proven: false, stays: Some(Stays::NoFence(why)) }
        };
        for place in &places.own {
            let held = held_by(place, node)?.into_iter().map(|volume| volume.id);
            volumes.extend(held.map(|id| here_alone(id, place.backend.name())));
        }
        for (backend, ..) in &places.lost {
            let used = workloads.iter().flat_map(|workload| &workload.volumes);
            let used: BTreeSet<&VolumeId> = used.filter(|id| id.backend() == backend.as_str()).collect();
            volumes.extend(used.into_iter().map(|id| here_alone(id.clone(), backend)));
        }
        Ok(StorageView { incarnation: life.incarnation, is_fenced: life.is_fenced, volumes })
    }

    /// The workloads whose volumes all move: those that the node holds, by `view`; others (not attached yet, or with somebody
    /// else already) by what they are.
    pub(super) fn movable(&self, workloads: &[Workload], view: &StorageView) -> Result<Vec<WorkloadId>, String> {
        let mut known: BTreeMap<&VolumeId, bool> =
            view.volumes.iter().map(|volume| (&volume.id, volume.stays.is_none())).collect();
        let mut movable = Vec::new();
        for workload in workloads {
            let mut moves = true;
            for id in &workload.volumes {
                let volume_moves = match known.get(id) {
                    Some(moves) => *moves,
                    None => {
                        let found = self.would_move(id)?;
                        known.insert(id, found);
                        found
                    }
                };
                moves &= volume_moves;
            }
            if moves {
                movable.push(workload.id.clone());
            }
        }
        Ok(movable)
    }

    /// Fences the node in every backend that it shares, if it is still in that life. `confirm` is asked right before each.
    pub(super) fn fence(
        &self,
        node: &NodeId,
        incarnation: Incarnation,
        confirm: impl Fn() -> bool,
    ) -> Result<Vec<FenceResult>, String> {
        let places = self.places_in_life(node, incarnation)?;
        let mut results = Vec::new();
        for Place { backend, record } in &places.shared {
            let Some(fence) = backend.fence() else { continue };
            if !confirm() {
                return Err(super::OVERTAKEN.to_owned());
            }
            // A backend that the node could not reach has an earlier life of it, which is over or lost with this one.
            let life = record.identity.incarnation;
            let report = fence.fence(node, Some(life), &self.actor, FenceHow::Enforce);
            let report = report.map_err(|error| format!("backend {}: {}", backend.name(), error.chain()))?;
            let failed = report.volumes.iter().filter(|outcome| outcome.proof.is_err()).count();
            tracing::warn!(
                target: "audit",
                node = %node,
                incarnation = %life,
                actor = self.actor,
                backend = %backend.name(),
                volumes = report.volumes.len(),
                failed,
                "node fenced"
            );
            results.extend(report.volumes.into_iter().map(|outcome| FenceResult {
                volume: outcome.volume,
                proof: outcome.proof.map(drop).map_err(|error| error.chain()),
            }));
        }
        Ok(results)
    }

    /// Lifts the fence, or has the storage confirm that none stands and nothing is left.
    pub(super) fn unfence(&self, node: &NodeId, incarnation: Incarnation) -> Result<(), String> {
        let places = self.places_in_life(node, incarnation)?;
        for Place { backend, .. } in &places.shared {
            let Some(fence) = backend.fence() else { continue };
            let lifted = fence.unfence(node, Some(incarnation), &self.actor);
            lifted.map_err(|error| format!("backend {}: {}", backend.name(), error.chain()))?;
            tracing::warn!(target: "audit", node = %node, actor = self.actor, backend = %backend.name(), "node unfenced");
        }
        Ok(())
    }

    fn places_in_life(&self, node: &NodeId, incarnation: Incarnation) -> Result<Places, String> {
        let places = self.places(node)?;
        let found = places.life(node)?.incarnation;
        if found == incarnation {
            Ok(places)
        } else {
            Err(format!("node {node} is in another life by now ({found}, not {incarnation})"))
        }
    }

    /// Reads the records anew. A backend that cannot be read is an error unless it is known not to matter.
    fn places(&self, node: &NodeId) -> Result<Places, String> {
        let mut places = Places::default();
        for backend in self.backends.all() {
            let Some(attach) = backend.attach() else { continue };
            let known = self.known().get(backend.name()).cloned();
            let of_one = known.filter(|records| records.len() == 1).and_then(|mut records| records.pop());
            if of_one.as_ref().is_some_and(|record| record.node != *node) {
                continue;
            }
            match (attach.nodes(), of_one) {
                (Ok(records), _) => {
                    let is_own = records.len() == 1;
                    let Some(record) = records.into_iter().find(|record| record.identity.id == *node) else { continue };
                    let list = if is_own { &mut places.own } else { &mut places.shared };
                    list.push(Place { backend: Arc::clone(&backend), record });
                }
                (Err(error), Some(record)) => places.lost.push((backend.name().clone(), record, error.chain())),
                (Err(error), None) => {
                    return Err(format!("backend {} cannot be read: {}", backend.name(), error.chain()));
                }
            }
        }
        Ok(places)
    }

    /// Of a volume that the node does not hold.
    fn would_move(&self, id: &VolumeId) -> Result<bool, String> {
        let Some(backend) = self.backends.all().into_iter().find(|backend| backend.name().as_str() == id.backend())
        else {
            return Ok(false);
        };
        if !self.is_shared(backend.name()) {
            return Ok(false);
        }
        match backend.find_volume(id) {
            // A directory can be written by a node that still lives, and nothing cuts that off.
            Ok(Some(volume)) => Ok(volume.kind.is_single_node() && stays(backend.as_ref(), &volume).is_none()),
            Ok(None) => Ok(true),
            Err(error) => Err(format!("volume {id} cannot be read: {}", error.chain())),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<BackendName, Vec<Record>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// The newest life that any backend records; fenced where a shared one says so of that life.
    fn life(&self, node: &NodeId) -> Result<Record, String> {
        let shared = self.shared.iter().map(|place| Record::of(&place.record));
        let own = self.own.iter().map(|place| Record { is_fenced: false, ..Record::of(&place.record) });
        let lost = self.lost.iter().map(|(_, record, _)| Record { is_fenced: false, ..record.clone() });
        let merged = shared.chain(own).chain(lost).reduce(|mut merged, record| {
            merged.merge(&record);
            merged
        });
        merged.ok_or_else(|| format!("no backend knows node {node}"))
    }
}

fn held_by(place: &Place, node: &NodeId) -> Result<Vec<Volume>, String> {
    let held = place.backend.attach().map_or(Ok(Vec::new()), |attach| attach.held_by(node));
    held.map_err(|error| format!("backend {} cannot be read: {}", place.backend.name(), error.chain()))
}

fn stays(backend: &dyn Backend, volume: &Volume) -> Option<Stays> {
    if volume.parameters.failover == Failover::Off {
        return Some(Stays::OptedOut);
    }
    if let Some(why) = backend.restrictions().no_fence {
        return Some(Stays::NoFence(why.to_owned()));
    }
    backend.fence().is_none().then(|| Stays::NoFence(format!("backend {} cannot fence", backend.name())))
}
