//! The operations, one for each method of [`Backend`] and of its optional objects that is not answered from memory.

use crate::envelope::WireError;
use crate::operation::{Known, Operation, lacking, operations};
use crate::ranges::{self, RangesPage};
use serde::{Deserialize, Serialize};
use volume::{
    AttachContext, AttachRequest, Backend, Capacity, CapacityQuery, FenceHow, FenceProof, FenceReport, GroupSnapshot,
    GroupSnapshotId, Incarnation, MutableChange, NodeId, NodeRecord, Orphan, Page, PageRequest, Result, Severity,
    SizeRange, Snapshot, SnapshotFilter, SnapshotId, Volume, VolumeGuard, VolumeHealth, VolumeId, VolumeName,
    VolumeSource, VolumeSpec,
};

operations! {
    EnsureVolume("ensure_volume") { spec: VolumeSpec } -> Volume,
        |op| {
            let source = op.spec.source.as_ref().map(|source| match source {
                VolumeSource::Snapshot(id) => id.to_string(),
                VolumeSource::Volume(id) => id.to_string(),
            });
            [op.spec.id.to_string()].into_iter().chain(source).collect()
        },
        |op, backend, guard| backend.ensure_volume(guard, &op.spec);
    FindVolume("find_volume") { id: VolumeId } -> Option<Volume>, |_| vec![],
        |op, backend, _| backend.find_volume(&op.id);
    DeleteVolume("delete_volume") { id: VolumeId } -> (), |op| vec![op.id.to_string()],
        |op, backend, guard| backend.delete_volume(guard, &op.id);
    ListVolumes("list_volumes") { page: PageRequest } -> Page<Volume>, |_| vec![],
        |op, backend, _| backend.list_volumes(&op.page);
    RebuildVolume("rebuild_volume") { id: VolumeId } -> (), |op| vec![op.id.to_string()],
        |op, backend, guard| backend.rebuild_volume(guard, &op.id);
    CapacityOf("capacity") { query: CapacityQuery } -> Capacity, |_| vec![],
        |op, backend, _| backend.capacity(&op.query);
    TotalBytes("total_bytes") {} -> Option<u64>, |_| vec![], |_, backend, _| backend.total_bytes();

    Attach("attach") { volume: VolumeId, node: NodeId, read_only: bool } -> AttachContext,
        |op| vec![op.volume.to_string()],
        |op, backend, guard| {
            let request = AttachRequest { volume: &op.volume, node: &op.node, read_only: op.read_only };
            backend.attach().ok_or_else(|| lacking(backend, "grants"))?.attach(guard, &request)
        };
    Detach("detach") { volume: VolumeId, node: Option<NodeId> } -> (), |op| vec![op.volume.to_string()],
        |op, backend, guard| {
            let attach = backend.attach().ok_or_else(|| lacking(backend, "grants"))?;
            attach.detach(guard, &op.volume, op.node.as_ref())
        };
    Nodes("nodes") {} -> Vec<NodeRecord>, |_| vec![],
        |_, backend, _| backend.attach().ok_or_else(|| lacking(backend, "grants"))?.nodes();
    HeldBy("held_by") { node: NodeId } -> Vec<Volume>, |_| vec![],
        |op, backend, _| backend.attach().ok_or_else(|| lacking(backend, "grants"))?.held_by(&op.node);
    SignsOfLife("signs_of_life") {} -> Option<Vec<(NodeId, u64)>>, |_| vec![],
        |_, backend, _| backend.attach().ok_or_else(|| lacking(backend, "grants"))?.signs_of_life();

    EnsureSnapshot("ensure_snapshot") { id: SnapshotId, name: VolumeName, source: VolumeId } -> Snapshot,
        |op| vec![op.id.to_string(), op.source.to_string()],
        |op, backend, guard| {
            let snapshots = backend.snapshots().ok_or_else(|| lacking(backend, "snapshots"))?;
            snapshots.ensure_snapshot(guard, &op.id, &op.name, &op.source)
        };
    FindSnapshot("find_snapshot") { id: SnapshotId } -> Option<Snapshot>, |_| vec![],
        |op, backend, _| backend.snapshots().ok_or_else(|| lacking(backend, "snapshots"))?.find_snapshot(&op.id);
    DeleteSnapshot("delete_snapshot") { id: SnapshotId } -> (), |op| vec![op.id.to_string()],
        |op, backend, guard| {
            backend.snapshots().ok_or_else(|| lacking(backend, "snapshots"))?.delete_snapshot(guard, &op.id)
        };
    ListSnapshots("list_snapshots") { filter: SnapshotFilter, page: PageRequest } -> Page<Snapshot>, |_| vec![],
        |op, backend, _| {
            backend.snapshots().ok_or_else(|| lacking(backend, "snapshots"))?.list_snapshots(&op.filter, &op.page)
        };

    EnsureGroupSnapshot("ensure_group_snapshot") { id: GroupSnapshotId, name: VolumeName, sources: Vec<VolumeId> }
        -> GroupSnapshot,
        |op| {
            let members = op.sources.iter().map(|source| SnapshotId::of_member(&op.id, source).to_string());
            let sources = op.sources.iter().map(VolumeId::to_string);
            [op.id.to_string()].into_iter().chain(members).chain(sources).collect()
        },
        |op, backend, guard| {
            let groups = backend.group_snapshots().ok_or_else(|| lacking(backend, "group snapshots"))?;
            groups.ensure_group_snapshot(guard, &op.id, &op.name, &op.sources)
        };
    FindGroupSnapshot("find_group_snapshot") { id: GroupSnapshotId } -> Option<GroupSnapshot>, |_| vec![],
        |op, backend, _| {
            backend.group_snapshots().ok_or_else(|| lacking(backend, "group snapshots"))?.find_group_snapshot(&op.id)
        };
    DeleteGroupSnapshot("delete_group_snapshot") { id: GroupSnapshotId } -> (), |op| vec![op.id.to_string()],
        |op, backend, guard| {
            let groups = backend.group_snapshots().ok_or_else(|| lacking(backend, "group snapshots"))?;
            groups.delete_group_snapshot(guard, &op.id)
        };

    Allocated("allocated_blocks") { snapshot: SnapshotId, from_bytes: u64 } -> RangesPage, |_| vec![],
        |op, backend, _| {
            let blocks = backend.changed_blocks().ok_or_else(|| lacking(backend, "changed blocks"))?;
            ranges::page(backend, &[&op.snapshot], || blocks.allocated(&op.snapshot, op.from_bytes))
        };
    Changed("changed_blocks") { base: SnapshotId, target: SnapshotId, from_bytes: u64 } -> RangesPage, |_| vec![],
        |op, backend, _| {
            let blocks = backend.changed_blocks().ok_or_else(|| lacking(backend, "changed blocks"))?;
            ranges::page(backend, &[&op.base, &op.target], || blocks.changed(&op.base, &op.target, op.from_bytes))
        };

    Expand("expand") { id: VolumeId, size: SizeRange } -> (u64, bool), |op| vec![op.id.to_string()],
        |op, backend, guard| {
            backend.expand().ok_or_else(|| lacking(backend, "volumes that grow"))?.expand(guard, &op.id, op.size)
        };
    Modify("modify") { id: VolumeId, change: MutableChange } -> (), |op| vec![op.id.to_string()],
        |op, backend, guard| {
            let modify = backend.modify().ok_or_else(|| lacking(backend, "volumes that can be changed"))?;
            modify.modify(guard, &op.id, &op.change)
        };

    HealthOf("volume_health") { id: VolumeId } -> WireHealth, |_| vec![],
        |op, backend, _| {
            let health = backend.health().ok_or_else(|| lacking(backend, "health"))?;
            health.volume_health(&op.id).map(WireHealth::from)
        };
    ListUnhealthy("list_unhealthy") { page: PageRequest } -> Page<WireHealth>, |_| vec![],
        |op, backend, _| {
            let page = backend.health().ok_or_else(|| lacking(backend, "health"))?.list_unhealthy(&op.page)?;
            let entries = page.entries.into_iter().map(WireHealth::from).collect();
            Ok(Page { entries, next_token: page.next_token })
        };

    Fence("fence") { node: NodeId, expected: Option<Incarnation>, actor: String, how: FenceHow } -> WireFenceReport,
        |_| vec![],
        |op, backend, _| {
            let fence = backend.fence().ok_or_else(|| lacking(backend, "fence"))?;
            fence.fence(&op.node, op.expected, &op.actor, op.how).map(WireFenceReport::from)
        };
    Unfence("unfence") { node: NodeId, expected: Option<Incarnation>, actor: String } -> (), |_| vec![],
        |op, backend, _| {
            let fence = backend.fence().ok_or_else(|| lacking(backend, "fence"))?;
            fence.unfence(&op.node, op.expected, &op.actor)
        };
    Orphans("orphans") {} -> Vec<Orphan>, |_| vec![],
        |_, backend, _| backend.fence().ok_or_else(|| lacking(backend, "fence"))?.orphans();
    RemoveOrphans("remove_orphans") { volume: Option<VolumeId> } -> Vec<Orphan>, |_| vec![],
        |op, backend, _| {
            backend.fence().ok_or_else(|| lacking(backend, "fence"))?.remove_orphans(op.volume.as_ref())
        };
}

/// [`VolumeHealth`], whose reasons are words of the program that found them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireHealth {
    pub(crate) volume: VolumeId,
    pub(crate) problems: Vec<WireProblem>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireProblem {
    pub(crate) severity: Severity,
    pub(crate) reason: String,
    pub(crate) message: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireFenceReport {
    pub(crate) node: NodeRecord,
    pub(crate) volumes: Vec<WireFenceOutcome>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireFenceOutcome {
    pub(crate) volume: VolumeId,
    pub(crate) proof: std::result::Result<FenceProof, WireError>,
}

impl From<VolumeHealth> for WireHealth {
    fn from(health: VolumeHealth) -> Self {
        let problem = |problem: volume::HealthProblem| WireProblem {
            severity: problem.severity,
            reason: problem.reason.to_owned(),
            message: problem.message,
        };
        Self { volume: health.volume, problems: health.problems.into_iter().map(problem).collect() }
    }
}

impl From<FenceReport> for WireFenceReport {
    fn from(report: FenceReport) -> Self {
        let outcome = |outcome: volume::FenceOutcome| WireFenceOutcome {
            volume: outcome.volume,
            proof: outcome.proof.map_err(|error| WireError::of(&error)),
        };
        Self { node: report.node, volumes: report.volumes.into_iter().map(outcome).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::CHANGES_WITHOUT_KEYS;

    #[test]
    fn names_are_of_one_operation_each() {
        let mut names: Vec<_> = ALL.iter().map(|known| known.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for name in CHANGES_WITHOUT_KEYS {
            assert!(names.contains(&name), "{name}");
        }
        let node = NodeId::parse("n1").unwrap();
        assert!(HeldBy { node: node.clone() }.only_reads() && Nodes {}.only_reads());
        assert!(!RemoveOrphans { volume: None }.only_reads());
        assert!(!Unfence { node, expected: None, actor: String::new() }.only_reads());
    }

    #[test]
    fn what_an_operation_locks() {
        let id = |text: &str| VolumeId::parse(&format!("pool.v{}", text.repeat(32))).unwrap();
        let group = GroupSnapshotId::parse(&format!("pool.g{}", "0".repeat(32))).unwrap();
        let sources = vec![id("1"), id("2")];
        let name = VolumeName::parse("g").unwrap();
        let keys = EnsureGroupSnapshot { id: group.clone(), name, sources }.keys();
        assert_eq!(keys.len(), 5);
        assert!(keys.contains(&SnapshotId::of_member(&group, &id("2")).to_string()));
        assert_eq!(DeleteVolume { id: id("3") }.keys(), [id("3").to_string()]);
    }
}
