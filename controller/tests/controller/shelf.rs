//! A small backend for these tests: it can lack abilities, and it can be stopped in the middle of making a volume.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use volume::*;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const CAPACITY: u64 = 1 << 40;

pub(crate) struct Shelf {
    name: BackendName,
    /// Snapshots, clones, grants, growth and changes in use.
    able: bool,
    state: Mutex<State>,
    /// While closed, `ensure_volume` waits before it acts.
    gate: (Mutex<Gate>, Condvar),
}

#[derive(Default)]
struct Gate {
    closed: bool,
    /// How many came to it while it was closed.
    stopped: usize,
}

#[derive(Default)]
struct State {
    volumes: BTreeMap<VolumeId, Volume>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    nodes: BTreeMap<NodeId, NodeRecord>,
}

impl Shelf {
    pub(crate) fn new(name: &str) -> Arc<Self> {
        Arc::new(Self::with(name, true))
    }

    /// Volumes come and go, nothing else.
    pub(crate) fn bare(name: &str) -> Arc<Self> {
        Arc::new(Self::with(name, false))
    }

    fn with(name: &str, able: bool) -> Self {
        let name = BackendName::parse(name).unwrap();
        Self { name, able, state: Mutex::default(), gate: Default::default() }
    }

    pub(crate) fn add_node(&self, id: &str) {
        let id = NodeId::parse(id).unwrap();
        let identity = NodeIdentity { id: id.clone(), incarnation: Incarnation::new_random(), boot_id: "b".to_owned() };
        let record =
            NodeRecord { identity, state: NodeState::Live, topology: Segments::default(), registered_at_ms: 1 };
        self.state().nodes.insert(id, record);
    }

    pub(crate) fn close_gate(&self) {
        self.gate.0.lock().unwrap().closed = true;
    }

    pub(crate) fn open_gate(&self) {
        self.gate.0.lock().unwrap().closed = false;
        self.gate.1.notify_all();
    }

    pub(crate) async fn wait_until_stopped(&self, count: usize) {
        while self.gate.0.lock().unwrap().stopped < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn pass_gate(&self) {
        let mut gate = self.gate.0.lock().unwrap();
        gate.stopped += usize::from(gate.closed);
        // Bounded, so that a failed test ends.
        drop(self.gate.1.wait_timeout_while(gate, Duration::from_secs(60), |gate| gate.closed).unwrap());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Backend for Shelf {
    fn name(&self) -> &BackendName {
        &self.name
    }

    fn ensure_volume(&self, guard: &VolumeGuard, spec: &VolumeSpec) -> Result<Volume> {
        guard.check(spec.id.as_str())?;
        self.pass_gate();
        let mut state = self.state();
        if let Some(volume) = state.volumes.get(&spec.id) {
            spec.check_compatible(volume)?;
            return Ok(volume.clone());
        }
        spec.topology.check(&self.topology()?)?;
        let source = match &spec.source {
            None => None,
            Some(VolumeSource::Volume(id)) => state.volumes.get(id).map(|v| (v.kind, v.size_bytes)),
            Some(VolumeSource::Snapshot(id)) => state.snapshots.get(id).map(|s| (s.kind, s.size_bytes)),
        };
        if spec.source.is_some() && source.is_none() {
            return Err(Error::not_found("the source is gone"));
        }
        if source.is_some_and(|(kind, _)| kind != spec.kind) {
            return Err(Error::invalid("the source is of another kind"));
        }
        let least = source.map_or(MIB, |(_, size)| size);
        if spec.size.required_bytes.is_some_and(|required| source.is_some() && required < least) {
            return Err(Error::new(ErrorKind::OutOfRange, "the source is larger than the volume"));
        }
        let volume = Volume {
            id: spec.id.clone(),
            name: spec.name.clone(),
            size_bytes: spec.size.choose(64 * MIB, least, MIB)?,
            kind: spec.kind,
            thick: false,
            source: spec.source.clone(),
            parameters: spec.parameters.clone(),
            mutable: spec.mutable.apply_to(Default::default()),
            accessible_topology: self.topology()?,
            epoch: Epoch(0),
            attachment: None,
            created_at_ms: 1_700_000_000_123,
            problem: None,
        };
        state.volumes.insert(spec.id.clone(), volume.clone());
        Ok(volume)
    }

    fn find_volume(&self, id: &VolumeId) -> Result<Option<Volume>> {
        Ok(self.state().volumes.get(id).cloned())
    }

    fn delete_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        guard.check(id.as_str())?;
        let mut state = self.state();
        if let Some(held) = state.volumes.get(id).and_then(|volume| volume.attachment.as_ref()) {
            return Err(Error::new(ErrorKind::FailedPrecondition, format!("{} holds it", held.holder)));
        }
        state.volumes.remove(id);
        Ok(())
    }

    fn list_volumes(&self, page: &PageRequest) -> Result<Page<Volume>> {
        let all = self.state().volumes.values().cloned().collect();
        Page::cut(all, page, |volume: &Volume| volume.id.as_str(), |token| VolumeId::parse(token).is_ok())
    }

    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        let here = self.topology()?;
        let reachable = query.topology.as_ref().is_none_or(|place| here.iter().any(|own| own.is_within(place)));
        let available_bytes = if reachable { CAPACITY } else { 0 };
        Ok(Capacity { available_bytes, minimum_volume_bytes: MIB, maximum_volume_bytes: CAPACITY })
    }

    fn topology(&self) -> Result<Vec<Segments>> {
        Ok(vec![Segments(BTreeMap::from([("csi.hawser.dev/node".to_owned(), "n1".to_owned())]))])
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn restrictions(&self) -> Restrictions {
        Restrictions::default()
    }

    fn attach(&self) -> Option<&dyn Attach> {
        self.able.then_some(self as &dyn Attach)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        self.able.then_some(self as &dyn Snapshots)
    }

    fn can_clone(&self) -> bool {
        self.able
    }

    fn expand(&self) -> Option<&dyn Expand> {
        self.able.then_some(self as &dyn Expand)
    }

    fn modify(&self) -> Option<&dyn Modify> {
        self.able.then_some(self as &dyn Modify)
    }
}

impl Attach for Shelf {
    fn attach(&self, guard: &VolumeGuard, request: &AttachRequest<'_>) -> Result<AttachContext> {
        guard.check(request.volume.as_str())?;
        let mut state = self.state();
        let node = state.nodes.get(request.node).ok_or_else(|| Error::not_found("no such node"))?.clone();
        let volume = state.volumes.get_mut(request.volume).ok_or_else(|| Error::not_found("no such volume"))?;
        match plan_attach(volume.attachment.as_ref(), volume.epoch, &node, request.read_only, 1)? {
            AttachPlan::AlreadyHeld(_) => {}
            AttachPlan::Grant(attachment) => {
                volume.epoch = attachment.epoch;
                volume.attachment = Some(attachment);
            }
        }
        Ok(AttachContext::new(volume.epoch))
    }

    fn detach(&self, guard: &VolumeGuard, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        guard.check(id.as_str())?;
        if let Some(volume) = self.state().volumes.get_mut(id)
            && plan_detach(volume.attachment.as_ref(), node) != DetachPlan::Nothing
        {
            volume.attachment = None;
        }
        Ok(())
    }

    fn nodes(&self) -> Result<Vec<NodeRecord>> {
        Ok(self.state().nodes.values().cloned().collect())
    }
}

impl Snapshots for Shelf {
    fn ensure_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &SnapshotId,
        name: &VolumeName,
        source: &VolumeId,
    ) -> Result<Snapshot> {
        guard.check(id.as_str())?;
        guard.check(source.as_str())?;
        let mut state = self.state();
        if let Some(found) = state.snapshots.get(id) {
            return if found.source == *source {
                Ok(found.clone())
            } else {
                Err(Error::new(ErrorKind::AlreadyExists, "it is of another volume"))
            };
        }
        let volume = state.volumes.get(source).ok_or_else(|| Error::not_found("no such volume"))?;
        let snapshot = Snapshot {
            id: id.clone(),
            name: name.clone(),
            source: source.clone(),
            size_bytes: volume.size_bytes,
            kind: volume.kind,
            created_at_ms: 1_700_000_000_123,
            ready: true,
            group: None,
            accessible_topology: Vec::new(),
        };
        state.snapshots.insert(id.clone(), snapshot.clone());
        Ok(snapshot)
    }

    fn find_snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>> {
        Ok(self.state().snapshots.get(id).cloned())
    }

    fn delete_snapshot(&self, guard: &VolumeGuard, id: &SnapshotId) -> Result<()> {
        guard.check(id.as_str())?;
        self.state().snapshots.remove(id);
        Ok(())
    }

    fn list_snapshots(&self, filter: &SnapshotFilter, page: &PageRequest) -> Result<Page<Snapshot>> {
        let wanted = |snapshot: &&Snapshot| {
            filter.id.as_ref().is_none_or(|id| snapshot.id == *id)
                && filter.source.as_ref().is_none_or(|source| snapshot.source == *source)
        };
        let all = self.state().snapshots.values().filter(wanted).cloned().collect();
        Page::cut(all, page, |snapshot: &Snapshot| snapshot.id.as_str(), |token| SnapshotId::parse(token).is_ok())
    }
}

impl Expand for Shelf {
    fn expand(&self, guard: &VolumeGuard, id: &VolumeId, size: SizeRange) -> Result<(u64, bool)> {
        guard.check(id.as_str())?;
        let mut state = self.state();
        let volume = state.volumes.get_mut(id).ok_or_else(|| Error::not_found("no such volume"))?;
        volume.size_bytes = size.choose(volume.size_bytes, volume.size_bytes, MIB)?;
        Ok((volume.size_bytes, true))
    }
}

impl Modify for Shelf {
    fn modify(&self, guard: &VolumeGuard, id: &VolumeId, change: &MutableChange) -> Result<()> {
        guard.check(id.as_str())?;
        let mut state = self.state();
        let volume = state.volumes.get_mut(id).ok_or_else(|| Error::not_found("no such volume"))?;
        let mutable = change.apply_to(volume.mutable);
        mutable.check_kind(volume.kind)?;
        volume.mutable = mutable;
        Ok(())
    }
}
