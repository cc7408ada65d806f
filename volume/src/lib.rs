//! The domain of hawser: identifiers, sizes, capabilities, records, the attachment contract and the
//! traits that storage implements. No gRPC and no I/O here; see `docs/architecture.md`.
#![forbid(unsafe_code)]

mod attachment;
mod backend;
mod backends;
mod capability;
mod changed_blocks;
mod connector;
mod error;
mod group;
mod health;
mod id;
mod lock;
mod modify;
mod node;
mod parameters;
mod size;
mod snapshot;
mod topology;
mod trim;
mod volume;

pub use attachment::{
    AttachPlan, Attacher, Attachment, DetachPlan, Epoch, FenceMethod, FenceProof, Holder, ImageIdentity, plan_attach,
    plan_detach,
};
pub use backend::{
    Attach, AttachRequest, Backend, Capacity, CapacityQuery, Expand, Fence, FenceHow, FenceOutcome, FenceReport,
    Orphan, Page, PageRequest, Restrictions, Snapshots, held_by,
};
pub use backends::Backends;
pub use capability::{AccessMode, AccessType, FsType, VolumeCapability, VolumeKind};
pub use changed_blocks::{BlockRanges, ByteRange, ChangedBlocks};
pub use connector::{AttachContext, ConnectRequest, Connected, Connector, DeviceNumber};
pub use error::{Error, ErrorKind, Result};
pub use group::{GroupSnapshot, GroupSnapshots};
pub use health::{Health, HealthProblem, Severity, VolumeHealth};
pub use id::{BackendName, GroupSnapshotId, Incarnation, NodeId, SnapshotId, VolumeId, VolumeName};
pub use lock::{LockTable, VolumeGuard};
pub use modify::{IoLimits, Modify, MutableChange, MutableParameters};
pub use node::{NodeIdentity, NodeRecord, NodeState};
pub use parameters::{Failover, Parameters};
pub use size::{MAX_SIZE_BYTES, SizeRange};
pub use snapshot::{Snapshot, SnapshotFilter};
pub use topology::{Segments, TopologyRequirement};
pub use trim::{Trim, Trimmed};
pub use volume::{Volume, VolumeSource, VolumeSpec};
