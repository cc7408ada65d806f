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
    /// While closed, `ensure_volume` and `ensure_group_snapshot` wait before they act.
    gate: (Mutex<Gate>, Condvar),
    /// What its snapshots hold, and in which they differ.
    pub(crate) blocks: Arc<Mutex<Blocks>>,
}

#[derive(Default)]
pub(crate) struct Blocks {
    pub(crate) ranges: Vec<ByteRange>,
    /// Reading fails after so many.
    pub(crate) broken_after: Option<usize>,
    /// How many were read.
    pub(crate) read: usize,
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
    groups: BTreeMap<GroupSnapshotId, GroupSnapshot>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    away: bool,
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
        Self { name, able, state: Mutex::default(), gate: Default::default(), blocks: Arc::default() }
    }

    pub(crate) fn add_node(&self, id: &str) {
        let id = NodeId::parse(id).unwrap();
        let identity = NodeIdentity { id: id.clone(), incarnation: Incarnation::new_random(), boot_id: "b".to_owned() };
        let record =
            NodeRecord { identity, state: NodeState::Live, topology: Segments::default(), registered_at_ms: 1 };
        self.state().nodes.insert(id, record);
    }

    /// The volume has a problem from now on, or none any more.
    pub(crate) fn set_problem(&self, id: &str, problem: Option<&str>) {
        let id = VolumeId::parse(id).unwrap();
        self.state().volumes.get_mut(&id).unwrap().problem = problem.map(str::to_owned);
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.state().away = away;
    }

    fn is_away(&self) -> bool {
        self.state().away
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

    fn group_snapshots(&self) -> Option<&dyn GroupSnapshots> {
        self.able.then_some(self as &dyn GroupSnapshots)
    }

    fn can_clone(&self) -> bool {
        self.able
    }

    fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
        self.able.then_some(self as &dyn ChangedBlocks)
    }

    fn expand(&self) -> Option<&dyn Expand> {
        self.able.then_some(self as &dyn Expand)
    }

    fn health(&self) -> Option<&dyn Health> {
        self.able.then_some(self as &dyn Health)
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

    fn held_by(&self, node: &NodeId) -> Result<Vec<Volume>> {
        volume::held_by(self, node)
    }
}

/// A volume is as its `problem` says.
impl Health for Shelf {
    fn volume_health(&self, id: &VolumeId) -> Result<VolumeHealth> {
        let state = self.state();
        let volume = state.volumes.get(id).ok_or_else(|| Error::not_found("no such volume"))?;
        let problem = |message: &String| HealthProblem::new(Severity::DataLoss, "ImageMissing", message.clone());
        Ok(VolumeHealth { volume: id.clone(), problems: volume.problem.iter().map(problem).collect() })
    }

    fn list_unhealthy(&self, page: &PageRequest) -> Result<Page<VolumeHealth>> {
        if self.is_away() {
            return Err(Error::new(ErrorKind::Unavailable, "the shelf cannot be reached"));
        }
        let ids: Vec<VolumeId> = self.state().volumes.keys().cloned().collect();
        let all = ids.iter().map(|id| self.volume_health(id)).collect::<Result<Vec<_>>>()?;
        let unhealthy = all.into_iter().filter(|health| !health.is_healthy()).collect();
        Page::cut(
            unhealthy,
            page,
            |health: &VolumeHealth| health.volume.as_str(),
            |token| VolumeId::parse(token).is_ok(),
        )
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
            accessible_topology: self.topology()?,
        };
        state.snapshots.insert(id.clone(), snapshot.clone());
        Ok(snapshot)
    }

    fn find_snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>> {
        Ok(self.state().snapshots.get(id).cloned())
    }

    fn delete_snapshot(&self, guard: &VolumeGuard, id: &SnapshotId) -> Result<()> {
        guard.check(id.as_str())?;
        let mut state = self.state();
        if state.snapshots.get(id).is_some_and(|snapshot| snapshot.group.is_some()) {
            return Err(Error::invalid("it goes with its group alone"));
        }
        state.snapshots.remove(id);
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

impl GroupSnapshots for Shelf {
    fn ensure_group_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &GroupSnapshotId,
        name: &VolumeName,
        sources: &[VolumeId],
    ) -> Result<GroupSnapshot> {
        guard.check(id.as_str())?;
        self.pass_gate();
        if let Some(found) = self.state().groups.get(id) {
            let mut of: Vec<_> = found.snapshots.iter().map(|snapshot| snapshot.source.clone()).collect();
            of.sort();
            let differs = || Error::new(ErrorKind::AlreadyExists, "it is of other volumes");
            return (of == sources).then(|| found.clone()).ok_or_else(differs);
        }
        let mut snapshots = Vec::new();
        for source in sources {
            let member = SnapshotId::of_member(id, source);
            let snapshot = Snapshot { group: Some(id.clone()), ..self.ensure_snapshot(guard, &member, name, source)? };
            self.state().snapshots.insert(member, snapshot.clone());
            snapshots.push(snapshot);
        }
        snapshots.sort_by(|a, b| a.id.cmp(&b.id));
        let created_at_ms = 1_700_000_000_123;
        let group = GroupSnapshot { id: id.clone(), name: name.clone(), snapshots, created_at_ms, ready: true };
        self.state().groups.insert(id.clone(), group.clone());
        Ok(group)
    }

    fn find_group_snapshot(&self, id: &GroupSnapshotId) -> Result<Option<GroupSnapshot>> {
        Ok(self.state().groups.get(id).cloned())
    }

    fn delete_group_snapshot(&self, guard: &VolumeGuard, id: &GroupSnapshotId) -> Result<()> {
        guard.check(id.as_str())?;
        let mut state = self.state();
        for member in state.groups.remove(id).into_iter().flat_map(|group| group.snapshots) {
            state.snapshots.remove(&member.id);
        }
        Ok(())
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

impl ChangedBlocks for Shelf {
    fn allocated(&self, snapshot: &SnapshotId, from_bytes: u64) -> Result<BlockRanges> {
        let size_bytes = self.snapshot(snapshot)?.size_bytes;
        if from_bytes > size_bytes {
            return Err(Error::new(ErrorKind::OutOfRange, "the offset is beyond the end"));
        }
        let (blocks, mut next) = (self.blocks.clone(), 0);
        let all = std::iter::from_fn(move || {
            let mut blocks = blocks.lock().unwrap();
            if blocks.broken_after.is_some_and(|after| next >= after) {
                return Some(Err(Error::new(ErrorKind::Unavailable, "the disk is gone")));
            }
            let range = blocks.ranges.get(next).copied()?;
            (next, blocks.read) = (next + 1, blocks.read + 1);
            Some(Ok(range))
        });
        let ends_later = move |range: &Result<ByteRange>| range.as_ref().map_or(true, |r| r.end_bytes() > from_bytes);
        Ok(BlockRanges { size_bytes, ranges: Box::new(all.filter(ends_later)) })
    }

    fn changed(&self, base: &SnapshotId, target: &SnapshotId, from_bytes: u64) -> Result<BlockRanges> {
        if self.snapshot(base)?.source != self.snapshot(target)?.source {
            return Err(Error::invalid("they are of different volumes"));
        }
        self.allocated(target, from_bytes)
    }
}

impl Shelf {
    fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        self.find_snapshot(id)?.ok_or_else(|| Error::not_found(format!("no snapshot {id}")))
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
