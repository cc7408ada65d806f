//! The suite that every storage backend passes, through [`volume::Backend`] and [`volume::Connector`] alone.
//!
//! `conformance::backend_suite!(module, make)` turns it into tests; `make` gives a fresh [`Subject`] for each, or the
//! reason why this machine cannot run it. What a backend says it cannot do ([`volume::Restrictions`], an optional
//! object that is not there) is then checked to be refused.

pub mod attaching;
pub mod changed_blocks;
pub mod copies;
pub mod fencing;
pub mod groups;
pub mod guards;
pub mod health;
pub mod modify;
pub mod racing;
pub mod sizes;
pub mod volumes;

use std::any::Any;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use volume::{
    AttachContext, AttachRequest, Backend, Connector, Error, ErrorKind, FsType, GroupSnapshot, GroupSnapshotId,
    Incarnation, LockTable, NodeId, NodeIdentity, Parameters, Result, SizeRange, Snapshot, SnapshotId,
    TopologyRequirement, Volume, VolumeGuard, VolumeId, VolumeKind, VolumeName, VolumeSource, VolumeSpec,
};

/// One MiB, the step in which the suite asks for sizes.
pub const MIB: u64 = 1 << 20;
/// Large enough for ext4 everywhere; xfs and btrfs are asked for by their minimum.
pub const SIZE: u64 = 64 * MIB;

/// Device, offset in bytes, bytes; whole blocks of 4096.
pub type WriteDevice = Box<dyn Fn(&Path, u64, &[u8]) -> Result<()> + Send + Sync>;

/// One empty backend to test, with its node half.
pub struct Subject {
    pub backend: Arc<dyn Backend>,
    pub connector: Arc<dyn Connector>,
    /// Opens the same storage once more, as a second controller does.
    pub another: Box<dyn Fn() -> Arc<dyn Backend> + Send + Sync>,
    /// Writes to a device that the connector gave, durably: [`write_device`], or what a simulated machine has.
    pub write: WriteDevice,
    /// Cuts the volume's image to a length, or lengthens it with zeros, behind the backend's back.
    pub set_image_bytes: SetImageBytes,
    /// Dropped last: what the storage stands on.
    pub keep: Box<dyn Any + Send + Sync>,
}

pub type SetImageBytes = Box<dyn Fn(&VolumeId, u64) + Send + Sync>;

/// Runs one test of the suite on a fresh subject; a subject that cannot be made here is a skip with its reason.
pub fn run(test: &str, make: impl FnOnce() -> std::result::Result<Subject, String>, body: impl FnOnce(&Subject)) {
    match make() {
        Ok(subject) => body(&subject),
        Err(reason) => println!("SKIPPED: {test}: {reason}"),
    }
}

/// The whole suite as `#[test]` functions in a module of that name.
#[macro_export]
macro_rules! backend_suite {
    ($module:ident, $make:expr) => {
        mod $module {
            $crate::backend_suite! { @tests $make;
                volumes: create_is_idempotent, create_refuses_a_different_volume, names, kinds, paging, topology,
                    delete_is_idempotent, parameters_are_kept, unknown_volumes;
                sizes: chosen_sizes, thick, too_large, expand, capacity;
                copies: snapshots_are_idempotent, snapshot_listing, restore, clone, copies_of_copies,
                    copies_outlive_their_source, directories_are_not_copied;
                changed_blocks: refusals, what_is_the_same, what_was_written, growth, lists_go_on;
                groups: group_snapshots_are_idempotent, members_are_snapshots, refused_groups, groups_outlive_their_sources,
                    two_controllers_take_groups;
                attaching: contract, late_and_empty_detach, held_volumes_stay, connected_volumes_stay_attached,
                    stale_contexts, directories_are_shared, read_only, what_a_node_holds, a_node_grants_to_itself,
                    signs_of_life;
                fencing: fence_then_grant, fence_is_idempotent, fenced_nodes_are_refused,
                    lives_are_told_apart, powered_off, orphans;
                guards: wrong_guards;
                health: healthy_is_empty, unknown, pages_of_unhealthy, trims;
                modify: named_keys_change, attached_volumes_change, creation, what_a_kind_cannot_have,
                    two_controllers_modify, marks;
                racing: two_controllers_create, two_nodes_attach, create_and_delete;
            }
        }
    };
    (@tests $make:expr; $($group:ident: $($test:ident),+;)+) => {
        $(mod $group {
            $(#[test]
            fn $test() {
                $crate::backend::run(
                    concat!(module_path!(), "::", stringify!($test)),
                    $make,
                    $crate::backend::$group::$test,
                );
            })+
        })+
    };
}

impl Subject {
    pub fn volume_id(&self, name: &str) -> VolumeId {
        VolumeId::of_name(self.backend.name(), &VolumeName::parse(name).unwrap())
    }

    pub fn snapshot_id(&self, name: &str) -> SnapshotId {
        SnapshotId::of_name(self.backend.name(), &VolumeName::parse(name).unwrap())
    }

    /// An ext4 volume of [`SIZE`].
    pub fn spec(&self, name: &str) -> VolumeSpec {
        VolumeSpec {
            id: self.volume_id(name),
            name: VolumeName::parse(name).unwrap(),
            size: at_least(SIZE),
            kind: VolumeKind::FileSystem(FsType::Ext4),
            source: None,
            parameters: Parameters::default(),
            mutable: Default::default(),
            topology: TopologyRequirement::default(),
        }
    }

    pub fn spec_from(&self, name: &str, source: VolumeSource) -> VolumeSpec {
        VolumeSpec { size: SizeRange::default(), source: Some(source), ..self.spec(name) }
    }

    pub fn ensure(&self, spec: &VolumeSpec) -> Result<Volume> {
        let source = match &spec.source {
            Some(VolumeSource::Volume(id)) => Some(id.as_str()),
            Some(VolumeSource::Snapshot(id)) => Some(id.as_str()),
            None => None,
        };
        let guard = LockTable::default().try_lock([spec.id.as_str()].into_iter().chain(source)).unwrap();
        self.backend.ensure_volume(&guard, spec)
    }

    pub fn create(&self, name: &str) -> Volume {
        self.ensure(&self.spec(name)).unwrap()
    }

    pub fn find(&self, id: &VolumeId) -> Volume {
        self.backend.find_volume(id).unwrap().unwrap_or_else(|| panic!("{id} is gone"))
    }

    pub fn delete(&self, id: &VolumeId) -> Result<()> {
        self.backend.delete_volume(&lock(id.as_str()), id)
    }

    pub fn snapshot(&self, name: &str, source: &VolumeId) -> Result<Snapshot> {
        let id = self.snapshot_id(name);
        let guard = LockTable::default().try_lock([id.as_str(), source.as_str()]).unwrap();
        let snapshots = self.backend.snapshots().expect("the backend takes no snapshots");
        snapshots.ensure_snapshot(&guard, &id, &VolumeName::parse(name).unwrap(), source)
    }

    pub fn group_id(&self, name: &str) -> GroupSnapshotId {
        GroupSnapshotId::of_name(self.backend.name(), &VolumeName::parse(name).unwrap())
    }

    pub fn group(&self, name: &str, sources: &[&VolumeId]) -> Result<GroupSnapshot> {
        take_group(&*self.backend, name, sources)
    }

    /// Registers the node in a new life.
    pub fn register(&self, node: &str) -> NodeIdentity {
        let identity = NodeIdentity {
            id: NodeId::parse(node).unwrap(),
            incarnation: Incarnation::new_random(),
            boot_id: "5f2f7c1e-0f0d-4c0a-9a3e-0d5d1a7b8c9d".to_owned(),
        };
        let record = self.connector.register(&identity).unwrap();
        assert!(!record.is_fenced(), "a new life starts live");
        identity
    }

    pub fn attach(&self, id: &VolumeId, node: &NodeIdentity) -> Result<AttachContext> {
        let attach = self.backend.attach().expect("the backend grants nothing");
        attach.attach(&lock(id.as_str()), &AttachRequest { volume: id, node: &node.id, read_only: false })
    }

    pub fn detach(&self, id: &VolumeId, node: Option<&NodeIdentity>) -> Result<()> {
        let attach = self.backend.attach().expect("the backend grants nothing");
        attach.detach(&lock(id.as_str()), id, node.map(|n| &n.id))
    }

    pub fn connect(
        &self,
        id: &VolumeId,
        node: &NodeIdentity,
        context: Option<&AttachContext>,
    ) -> Result<volume::Connected> {
        let request = volume::ConnectRequest { volume: id, node, read_only: false, context };
        self.connector.connect(&lock(id.as_str()), &request)
    }

    pub fn disconnect(&self, id: &VolumeId, node: &NodeIdentity) {
        self.connector.disconnect(&lock(id.as_str()), id, node).unwrap();
    }

    /// The node that holds the volume by its record.
    pub fn holder(&self, id: &VolumeId) -> Option<NodeId> {
        self.find(id).attachment.map(|held| held.holder.node)
    }
}

/// For a [`Subject`] whose devices are this machine's.
pub fn write_device() -> WriteDevice {
    Box::new(|device, offset_bytes, bytes| {
        let failed = |e| Error::io(format!("writing to {}", device.display()), e);
        let file = std::fs::File::options().write(true).open(device).map_err(failed)?;
        file.write_all_at(bytes, offset_bytes).and_then(|()| file.sync_all()).map_err(failed)
    })
}

pub fn at_least(required_bytes: u64) -> SizeRange {
    SizeRange { required_bytes: Some(required_bytes), limit_bytes: None }
}

pub fn at_most(limit_bytes: u64) -> SizeRange {
    SizeRange { required_bytes: None, limit_bytes: Some(limit_bytes) }
}

/// A group snapshot by any controller of the storage, under locks of its own.
pub fn take_group(backend: &dyn Backend, name: &str, sources: &[&VolumeId]) -> Result<GroupSnapshot> {
    let (groups, name) = (backend.group_snapshots().expect("the backend takes no groups"), VolumeName::parse(name)?);
    let id = GroupSnapshotId::of_name(backend.name(), &name);
    let members: Vec<SnapshotId> = sources.iter().map(|source| SnapshotId::of_member(&id, source)).collect();
    let ids = sources.iter().map(|source| source.as_str()).chain(members.iter().map(SnapshotId::as_str));
    let guard = LockTable::default().try_lock(ids.chain([id.as_str()])).unwrap();
    let sources: Vec<VolumeId> = sources.iter().map(|&source| source.clone()).collect();
    groups.ensure_group_snapshot(&guard, &id, &name, &sources)
}

pub fn lock(id: &str) -> VolumeGuard {
    LockTable::default().try_lock([id]).unwrap()
}

/// Asserts the kind of a refusal and that its message says something; gives the message.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Error>, kind: ErrorKind) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", error.chain());
    assert!(error.to_string().len() > 10, "a message that helps nobody: {error}");
    error.chain()
}
