//! A backend on another machine, as the controller sees it. Calls block, as those of every backend do.

use crate::describe::Described;
use crate::link::Link;
use crate::operation::Operation;
use crate::operations as op;
use crate::ranges;
use crate::reach::{Choice, Reach};
use crate::words::Words;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::runtime::Handle;
use volume::{
    Attach, AttachContext, AttachRequest, Backend, BackendName, BlockRanges, Capacity, CapacityQuery, ChangedBlocks,
    Error, ErrorKind, Expand, Fence, FenceHow, FenceOutcome, FenceReport, GroupSnapshot, GroupSnapshotId,
    GroupSnapshots, Health, HealthProblem, Incarnation, Modify, MutableChange, NodeId, NodeRecord, Orphan, Page,
    PageRequest, Restrictions, Result, Segments, SizeRange, Snapshot, SnapshotFilter, SnapshotId, Snapshots, Volume,
    VolumeGuard, VolumeHealth, VolumeId, VolumeName, VolumeSource, VolumeSpec,
};

/// Reached by one agent, or by several that have the same storage: whichever is there.
pub struct RemoteBackend {
    reach: Arc<Reach>,
    words: Arc<Words>,
}

/// How many entries of a list are asked for at once.
const PAGE: usize = 1000;

impl RemoteBackend {
    pub(crate) fn new(name: BackendName, words: Arc<Words>, handle: Handle) -> Self {
        Self { reach: Arc::new(Reach::new(name, handle)), words }
    }

    /// As [`Reach::update`].
    pub(crate) fn update(&self, link: &Arc<Link>, described: Option<Described>) -> bool {
        self.reach.update(link, described)
    }

    fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        self.reach.call(operation)
    }

    /// Of the agent on the node that holds the volumes, which alone may be able to freeze what is mounted there; where they
    /// are held by several, on the one that holds most.
    fn call_beside<O: Operation>(&self, operation: &O, sources: &[VolumeId]) -> Result<O::Reply> {
        if !self.reach.has_choice() {
            return self.call(operation);
        }
        let mut holders: BTreeMap<NodeId, usize> = BTreeMap::new();
        for source in sources {
            if let Some(held) = self.find_volume(source)?.and_then(|volume| volume.attachment) {
                *holders.entry(held.holder.node).or_default() += 1;
            }
        }
        let most = holders.iter().max_by_key(|(_, held)| **held).map(|(node, _)| node);
        self.reach.call_at(operation, most.map_or(Choice::Any, Choice::Rather))
    }

    /// One whose last agent has just gone has everything: what is then asked of it is told that.
    fn has(&self, ability: impl Fn(&Described) -> bool) -> Option<&Self> {
        self.reach.described().is_none_or(|described| ability(&described)).then_some(self)
    }

    /// All that `list` gives in pages of a size that fits into a message.
    fn pages<T>(&self, page: &PageRequest, list: impl Fn(PageRequest) -> Result<Page<T>>) -> Result<Page<T>> {
        let (mut entries, mut token) = (Vec::new(), page.token.clone());
        loop {
            let wanted = if page.max_entries == 0 { PAGE } else { (page.max_entries - entries.len()).min(PAGE) };
            let got = list(PageRequest { max_entries: wanted, token })?;
            entries.extend(got.entries);
            token = got.next_token;
            if token.is_none() || (page.max_entries > 0 && entries.len() >= page.max_entries) {
                return Ok(Page { entries, next_token: token });
            }
        }
    }
}

impl Backend for RemoteBackend {
    fn name(&self) -> &BackendName {
        &self.reach.name
    }

    fn ensure_volume(&self, guard: &VolumeGuard, spec: &VolumeSpec) -> Result<Volume> {
        guard.check(spec.id.as_str())?;
        match &spec.source {
            Some(VolumeSource::Snapshot(id)) => guard.check(id.as_str())?,
            Some(VolumeSource::Volume(id)) => guard.check(id.as_str())?,
            None => {}
        }
        let operation = op::EnsureVolume { spec: spec.clone() };
        match &spec.source {
            Some(VolumeSource::Volume(source)) => self.call_beside(&operation, std::slice::from_ref(source)),
            Some(VolumeSource::Snapshot(_)) | None => self.call(&operation),
        }
    }

    fn find_volume(&self, id: &VolumeId) -> Result<Option<Volume>> {
        self.call(&op::FindVolume { id: id.clone() })
    }

    fn delete_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        guard.check(id.as_str())?;
        self.call(&op::DeleteVolume { id: id.clone() })
    }

    fn list_volumes(&self, page: &PageRequest) -> Result<Page<Volume>> {
        self.pages(page, |page| self.call(&op::ListVolumes { page }))
    }

    fn rebuild_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        guard.check(id.as_str())?;
        self.call(&op::RebuildVolume { id: id.clone() })
    }

    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        self.call(&op::CapacityOf { query: query.clone() })
    }

    fn total_bytes(&self) -> Result<Option<u64>> {
        self.call(&op::TotalBytes {})
    }

    fn topology(&self) -> Result<Vec<Segments>> {
        Ok(self.reach.described().map(|described| described.topology.clone()).unwrap_or_default())
    }

    /// From the last heartbeat.
    fn check(&self) -> Result<()> {
        let (route, session) = self.reach.session(Choice::Any)?;
        let last = session.last();
        match last.1.backends.iter().find(|state| state.name == self.reach.name.as_str() && !state.usable) {
            None => Ok(()),
            Some(state) => {
                let message = format!("backend {} on node {}: {}", self.reach.name, route.link.node, state.problem);
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    fn restrictions(&self) -> Restrictions {
        self.reach.described().map(|described| described.restrictions(&self.words)).unwrap_or_default()
    }

    fn attach(&self) -> Option<&dyn Attach> {
        self.has(|it| it.has.attach).map(|it| it as _)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        self.has(|it| it.has.snapshots).map(|it| it as _)
    }

    fn can_clone(&self) -> bool {
        self.has(|it| it.has.clone).is_some()
    }

    fn group_snapshots(&self) -> Option<&dyn GroupSnapshots> {
        self.has(|it| it.has.group_snapshots).map(|it| it as _)
    }

    fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
        self.has(|it| it.has.changed_blocks).map(|it| it as _)
    }

    fn expand(&self) -> Option<&dyn Expand> {
        self.has(|it| it.has.expand).map(|it| it as _)
    }

    fn modify(&self) -> Option<&dyn Modify> {
        self.has(|it| it.has.modify).map(|it| it as _)
    }

    fn health(&self) -> Option<&dyn Health> {
        self.has(|it| it.has.health).map(|it| it as _)
    }

    fn fence(&self) -> Option<&dyn Fence> {
        self.has(|it| it.has.fence).map(|it| it as _)
    }

    // No `trim`: it acts on a file system that is mounted on the machine of whoever asks, and the controller, or the one
    // agent of several that a call happens to go to, has the mounts of no other.
}

impl Attach for RemoteBackend {
    fn attach(&self, guard: &VolumeGuard, request: &AttachRequest<'_>) -> Result<AttachContext> {
        guard.check(request.volume.as_str())?;
        let AttachRequest { volume, node, read_only } = *request;
        self.call(&op::Attach { volume: volume.clone(), node: node.clone(), read_only })
    }

    fn detach(&self, guard: &VolumeGuard, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        guard.check(id.as_str())?;
        self.call(&op::Detach { volume: id.clone(), node: node.cloned() })
    }

    fn nodes(&self) -> Result<Vec<NodeRecord>> {
        self.call(&op::Nodes {})
    }

    fn held_by(&self, node: &NodeId) -> Result<Vec<Volume>> {
        self.call(&op::HeldBy { node: node.clone() })
    }

    fn signs_of_life(&self) -> Result<Option<Vec<(NodeId, u64)>>> {
        self.call(&op::SignsOfLife {})
    }
}

impl Snapshots for RemoteBackend {
    fn ensure_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &SnapshotId,
        name: &VolumeName,
        source: &VolumeId,
    ) -> Result<Snapshot> {
        guard.check(id.as_str())?;
        guard.check(source.as_str())?;
        let operation = op::EnsureSnapshot { id: id.clone(), name: name.clone(), source: source.clone() };
        self.call_beside(&operation, std::slice::from_ref(source))
    }

    fn find_snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>> {
        self.call(&op::FindSnapshot { id: id.clone() })
    }

    fn delete_snapshot(&self, guard: &VolumeGuard, id: &SnapshotId) -> Result<()> {
        guard.check(id.as_str())?;
        self.call(&op::DeleteSnapshot { id: id.clone() })
    }

    fn list_snapshots(&self, filter: &SnapshotFilter, page: &PageRequest) -> Result<Page<Snapshot>> {
        self.pages(page, |page| self.call(&op::ListSnapshots { filter: filter.clone(), page }))
    }
}

impl GroupSnapshots for RemoteBackend {
    fn ensure_group_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &GroupSnapshotId,
        name: &VolumeName,
        sources: &[VolumeId],
    ) -> Result<GroupSnapshot> {
        let operation = op::EnsureGroupSnapshot { id: id.clone(), name: name.clone(), sources: sources.to_vec() };
        for key in operation.keys() {
            guard.check(&key)?;
        }
        self.call_beside(&operation, sources)
    }

    fn find_group_snapshot(&self, id: &GroupSnapshotId) -> Result<Option<GroupSnapshot>> {
        self.call(&op::FindGroupSnapshot { id: id.clone() })
    }

    fn delete_group_snapshot(&self, guard: &VolumeGuard, id: &GroupSnapshotId) -> Result<()> {
        guard.check(id.as_str())?;
        self.call(&op::DeleteGroupSnapshot { id: id.clone() })
    }
}

impl ChangedBlocks for RemoteBackend {
    fn allocated(&self, snapshot: &SnapshotId, from_bytes: u64) -> Result<BlockRanges> {
        let (reach, snapshot) = (Arc::clone(&self.reach), snapshot.clone());
        ranges::fetched(from_bytes, move |from_bytes| {
            reach.call(&op::Allocated { snapshot: snapshot.clone(), from_bytes })
        })
    }

    fn changed(&self, base: &SnapshotId, target: &SnapshotId, from_bytes: u64) -> Result<BlockRanges> {
        let (reach, base, target) = (Arc::clone(&self.reach), base.clone(), target.clone());
        ranges::fetched(from_bytes, move |from_bytes| {
            reach.call(&op::Changed { base: base.clone(), target: target.clone(), from_bytes })
        })
    }
}

impl Expand for RemoteBackend {
    fn expand(&self, guard: &VolumeGuard, id: &VolumeId, size: SizeRange) -> Result<(u64, bool)> {
        guard.check(id.as_str())?;
        self.call(&op::Expand { id: id.clone(), size })
    }
}

impl Modify for RemoteBackend {
    fn modify(&self, guard: &VolumeGuard, id: &VolumeId, change: &MutableChange) -> Result<()> {
        guard.check(id.as_str())?;
        self.call(&op::Modify { id: id.clone(), change: *change })
    }
}

impl Health for RemoteBackend {
    fn volume_health(&self, id: &VolumeId) -> Result<VolumeHealth> {
        Ok(self.health_of(self.call(&op::HealthOf { id: id.clone() })?))
    }

    fn list_unhealthy(&self, page: &PageRequest) -> Result<Page<VolumeHealth>> {
        let page = self.pages(page, |page| self.call(&op::ListUnhealthy { page }))?;
        let entries = page.entries.into_iter().map(|health| self.health_of(health)).collect();
        Ok(Page { entries, next_token: page.next_token })
    }
}

impl RemoteBackend {
    fn health_of(&self, wire: op::WireHealth) -> VolumeHealth {
        let problem = |problem: op::WireProblem| HealthProblem {
            severity: problem.severity,
            reason: self.words.keep(&problem.reason, "Other"),
            message: problem.message,
        };
        VolumeHealth { volume: wire.volume, problems: wire.problems.into_iter().map(problem).collect() }
    }
}

impl Fence for RemoteBackend {
    fn fence(&self, node: &NodeId, expected: Option<Incarnation>, actor: &str, how: FenceHow) -> Result<FenceReport> {
        let operation = op::Fence { node: node.clone(), expected, actor: actor.to_owned(), how };
        // Whoever is to be cut off is not to be trusted with it, and is likely not to be there.
        let report = self.reach.call_at(&operation, Choice::Not(node))?;
        let outcome = |outcome: op::WireFenceOutcome| FenceOutcome {
            volume: outcome.volume,
            proof: outcome.proof.map_err(crate::envelope::WireError::into_error),
        };
        Ok(FenceReport { node: report.node, volumes: report.volumes.into_iter().map(outcome).collect() })
    }

    fn unfence(&self, node: &NodeId, expected: Option<Incarnation>, actor: &str) -> Result<()> {
        self.call(&op::Unfence { node: node.clone(), expected, actor: actor.to_owned() })
    }

    fn orphans(&self) -> Result<Vec<Orphan>> {
        self.call(&op::Orphans {})
    }

    fn remove_orphans(&self, volume: Option<&VolumeId>) -> Result<Vec<Orphan>> {
        self.call(&op::RemoveOrphans { volume: volume.cloned() })
    }
}
