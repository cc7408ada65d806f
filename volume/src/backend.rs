//! The controller's half of a backend: a small core, and optional objects for what not every storage can do.
//!
//! Calls are synchronous: they run on threads of their own with a deadline (see `rpc`), because most of them end in
//! system calls that block. What a driver advertises is derived from which of the optional objects are there.

use crate::{
    AttachContext, BackendName, ChangedBlocks, Error, ErrorKind, FsType, GroupSnapshots, Health, ImageIdentity,
    Incarnation, Modify, NodeId, NodeRecord, Result, Segments, SizeRange, Snapshot, SnapshotFilter, SnapshotId,
    TopologyRequirement, Trim, Volume, VolumeGuard, VolumeId, VolumeKind, VolumeName, VolumeSpec,
};
use serde::{Deserialize, Serialize};

/// For looks at all volumes: many at a time, and a page of them is no burden to anybody.
const VOLUMES_AT_ONCE: usize = 1000;

pub trait Backend: Send + Sync {
    fn name(&self) -> &BackendName;

    /// Creates the volume, or finds it made by an earlier call. `AlreadyExists` when it is there but differs in size,
    /// kind, source or parameters. The guard covers the volume's id and its source's.
    fn ensure_volume(&self, guard: &VolumeGuard, spec: &VolumeSpec) -> Result<Volume>;

    fn find_volume(&self, id: &VolumeId) -> Result<Option<Volume>>;

    /// Fine when absent. `FailedPrecondition` while a node holds the volume.
    fn delete_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()>;

    /// In the order of ids. The token names the last id given out, so entries that come and go meanwhile do no harm.
    fn list_volumes(&self, page: &PageRequest) -> Result<Page<Volume>>;

    /// Makes a lost or damaged record of the volume again from its data; fine when the record is well. The caller
    /// vouches that no node uses the volume; `FailedPrecondition` when the storage sees that one does.
    fn rebuild_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        guard.check(id.as_str())?;
        Err(Error::new(ErrorKind::Unsupported, format!("backend {} keeps no records to rebuild", self.name())))
    }

    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity>;

    /// The size of the storage, where it has one that is cheap to know.
    fn total_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// From where volumes of this backend can be reached; empty: from everywhere.
    fn topology(&self) -> Result<Vec<Segments>>;

    /// `Ok` when the storage can be reached and used now; else what is wrong and what to do. Cheap: Probe calls it.
    fn check(&self) -> Result<()>;

    /// What this backend cannot do that others can, in words, for docs, logs and refusals.
    fn restrictions(&self) -> Restrictions;

    fn attach(&self) -> Option<&dyn Attach> {
        None
    }
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }
    /// Clones of volumes go through [`Backend::ensure_volume`]; this says whether it takes them.
    fn can_clone(&self) -> bool {
        false
    }
    fn group_snapshots(&self) -> Option<&dyn GroupSnapshots> {
        None
    }
    fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
        None
    }
    fn expand(&self) -> Option<&dyn Expand> {
        None
    }
    fn modify(&self) -> Option<&dyn Modify> {
        None
    }
    fn health(&self) -> Option<&dyn Health> {
        None
    }
    fn fence(&self) -> Option<&dyn Fence> {
        None
    }
    fn trim(&self) -> Option<&dyn Trim> {
        None
    }
}

/// Grants of single-writer volumes to nodes: the attachment contract (docs/architecture.md, invariant 1).
pub trait Attach: Send + Sync {
    /// Idempotent for the same unfenced incarnation. `Held` names the holder. `NotFound`: no such volume or node.
    fn attach(&self, guard: &VolumeGuard, request: &AttachRequest<'_>) -> Result<AttachContext>;

    /// Releases the grant of `node`. `None` is CSI's "all nodes" and never detaches a living holder. Fine when the
    /// volume is gone, free, or held by another node (late calls after a failover change nothing). `FailedPrecondition`
    /// while the storage sees that the node can still write.
    fn detach(&self, guard: &VolumeGuard, id: &VolumeId, node: Option<&NodeId>) -> Result<()>;

    fn nodes(&self) -> Result<Vec<NodeRecord>>;

    /// All volumes whose records name the node as their holder, in whichever of its lives; [`held_by`] for storage that
    /// has no shorter way. A volume whose record cannot be read is not among them.
    fn held_by(&self, node: &NodeId) -> Result<Vec<Volume>>;

    /// The mark that each node keeps in the storage, a number that grows for as long as the node's process runs and can
    /// reach the storage ([`crate::Connector::show_life`]); only its growing says anything. A node that has not shown any
    /// is not among them. `None`: this storage keeps no such marks.
    fn signs_of_life(&self) -> Result<Option<Vec<(NodeId, u64)>>> {
        Ok(None)
    }
}

/// [`Attach::held_by`] by a look at every volume.
pub fn held_by(backend: &dyn Backend, node: &NodeId) -> Result<Vec<Volume>> {
    let is_held = |volume: &Volume| volume.attachment.as_ref().is_some_and(|held| held.holder.node == *node);
    let (mut held, mut token) = (Vec::new(), None);
    loop {
        let page = backend.list_volumes(&PageRequest { max_entries: VOLUMES_AT_ONCE, token })?;
        held.extend(page.entries.into_iter().filter(is_held));
        token = page.next_token;
        if token.is_none() {
            return Ok(held);
        }
    }
}

#[derive(Debug)]
pub struct AttachRequest<'a> {
    pub volume: &'a VolumeId,
    pub node: &'a NodeId,
    pub read_only: bool,
}

pub trait Snapshots: Send + Sync {
    /// Idempotent by name. `AlreadyExists` when the snapshot is of another volume. The guard covers both ids.
    fn ensure_snapshot(
        &self,
        guard: &VolumeGuard,
        id: &SnapshotId,
        name: &VolumeName,
        source: &VolumeId,
    ) -> Result<Snapshot>;
    fn find_snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>>;
    /// Fine when absent.
    fn delete_snapshot(&self, guard: &VolumeGuard, id: &SnapshotId) -> Result<()>;
    fn list_snapshots(&self, filter: &SnapshotFilter, page: &PageRequest) -> Result<Page<Snapshot>>;
}

pub trait Expand: Send + Sync {
    /// Grows to the smallest size that answers `size`; the size in bytes and whether the node must act too.
    /// A volume that is already large enough is fine.
    fn expand(&self, guard: &VolumeGuard, id: &VolumeId, size: SizeRange) -> Result<(u64, bool)>;
}

/// Cutting a node off. The order is fixed: the node's own record first, then each volume it holds.
pub trait Fence: Send + Sync {
    /// Fences the node and every attachment it holds. Idempotent: a volume that has its proof is not fenced again.
    /// Volumes that could not be fenced are in the report with the error, and no grant passes them.
    ///
    /// With `expected`, only if the node's record is of that life, which is checked in the same compare-and-swap that marks
    /// it fenced; else `FailedPrecondition` tells which one it is of, and nothing has changed.
    fn fence(&self, node: &NodeId, expected: Option<Incarnation>, actor: &str, how: FenceHow) -> Result<FenceReport>;

    /// Lets the node's next incarnation in after its old one was cleaned up. `FailedPrecondition` while something of
    /// the old one can still write, and as for [`Fence::fence`] when the record is not of the life that is `expected`.
    fn unfence(&self, node: &NodeId, expected: Option<Incarnation>, actor: &str) -> Result<()>;

    /// Images left behind by forks, which hold what a fenced node wrote last.
    fn orphans(&self) -> Result<Vec<Orphan>>;

    /// Removes orphans older than the backend's keeping time, or all of `volume`'s when given.
    fn remove_orphans(&self, volume: Option<&VolumeId>) -> Result<Vec<Orphan>>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FenceHow {
    /// By the storage's own means.
    Enforce,
    /// An administrator asserts that the machine is off. As strong as their word; recorded.
    PoweredOff,
}

#[derive(Debug)]
pub struct FenceReport {
    pub node: NodeRecord,
    pub volumes: Vec<FenceOutcome>,
}

#[derive(Debug)]
pub struct FenceOutcome {
    pub volume: VolumeId,
    pub proof: Result<crate::FenceProof>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    pub volume: VolumeId,
    pub image: ImageIdentity,
    pub allocated_bytes: u64,
    pub created_at_ms: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CapacityQuery {
    pub kind: Option<VolumeKind>,
    pub thick: bool,
    pub topology: Option<Segments>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// What new volumes of the query's sort can still take, in bytes.
    pub available_bytes: u64,
    pub minimum_volume_bytes: u64,
    pub maximum_volume_bytes: u64,
}

/// `max_entries` 0: no limit. `token` is what the previous page gave.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PageRequest {
    pub max_entries: usize,
    pub token: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page<T> {
    pub entries: Vec<T>,
    pub next_token: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Restrictions {
    /// Clones and snapshots copy data instead of sharing blocks.
    pub copies_are_full: bool,
    /// Raw block volumes are refused, and why.
    pub no_block: Option<&'static str>,
    /// A node cannot be fenced by force (only by its own clean-up or an administrator's word), and why.
    pub no_fence: Option<&'static str>,
    /// The fence does not promise that no acknowledged write is lost; use for failover is an opt-in.
    pub weak_fence: Option<&'static str>,
}

impl<T> Page<T> {
    /// Cuts one page out of `all`, which is sorted by `key`. A token is the key of the last entry given out.
    /// `is_token` tells keys that this driver could have given; anything else is `BadPageToken` (CSI: ABORTED).
    pub fn cut(
        all: Vec<T>,
        page: &PageRequest,
        key: impl Fn(&T) -> &str,
        is_token: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let after = match page.token.as_deref() {
            None | Some("") => 0,
            Some(token) if is_token(token) => all.partition_point(|entry| key(entry) <= token),
            Some(token) => {
                return Err(Error::new(
                    ErrorKind::BadPageToken,
                    format!("page token {token:?} is not one this driver gave out; list from the start"),
                ));
            }
        };
        let mut entries: Vec<T> = all.into_iter().skip(after).collect();
        let more = page.max_entries > 0 && entries.len() > page.max_entries;
        if more {
            entries.truncate(page.max_entries);
        }
        let next_token = if more { entries.last().map(|last| key(last).to_owned()) } else { None };
        Ok(Self { entries, next_token })
    }
}

impl VolumeSpec {
    /// Whether `existing`, found under the same name, answers this request; else `AlreadyExists` with the difference.
    pub fn check_compatible(&self, existing: &Volume) -> Result<()> {
        let differs = |what: String| {
            Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("volume {:?} exists as {} but {what}", self.name.as_str(), existing.id),
            ))
        };
        if existing.name != self.name {
            return differs(format!("belongs to the name {:?}, whose hash is the same", existing.name.as_str()));
        }
        if existing.kind != self.kind {
            return differs(format!("is a {} volume; a {} volume is asked for", existing.kind, self.kind));
        }
        if !self.size.admits(existing.size_bytes) {
            return differs(format!("has {} bytes, outside what is asked for", existing.size_bytes));
        }
        if existing.source != self.source {
            return differs("was made from another source".to_owned());
        }
        if existing.parameters != self.parameters {
            return differs("was made with other parameters".to_owned());
        }
        // CSI 1.13, CreateVolume: compatible with mutable_parameters too. What is not asked for may be anything.
        if self.mutable.apply_to(existing.mutable) != existing.mutable {
            return differs("has other mutable parameters; ControllerModifyVolume changes them".to_owned());
        }
        if !self.topology.is_met_by(&existing.accessible_topology) {
            return differs("cannot be reached from where it is asked for".to_owned());
        }
        Ok(())
    }

    pub fn fs_type(&self) -> Option<FsType> {
        match self.kind {
            VolumeKind::FileSystem(fs) => Some(fs),
            VolumeKind::Block | VolumeKind::Directory => None,
        }
    }
}

impl TopologyRequirement {
    /// `Exhausted` (CSI: no accessible_topology can be met) unless a backend reachable from `accessible` will do.
    pub fn check(&self, accessible: &[Segments]) -> Result<()> {
        if self.is_met_by(accessible) {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Exhausted,
                format!("the topology asked for is not where this storage is: it can be reached from {accessible:?}"),
            ))
        }
    }
}
