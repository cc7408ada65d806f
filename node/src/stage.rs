//! NodeStageVolume: connects the volume and, for file systems, mounts it at the staging path.

use crate::node::{Node, Undo, check_granted};
use crate::observe::{Staged, Staging, View, list};
use crate::ownership;
use crate::target::{NodePath, Wanted, check_target};
use host::{FileSystemCheck, MountRequest, Probe};
use journal::{Intent, Operation};
use std::path::Path;
use volume::{
    AccessType, AttachContext, ConnectRequest, Connected, Connector, DeviceNumber, Error, ErrorKind, FsType,
    NodeIdentity, Parameters, Result, Volume, VolumeCapability, VolumeGuard, VolumeId, VolumeKind,
};

/// Less than this at a device's end is what a file system's own granularity leaves unused.
const GROW_FROM_BYTES: u64 = 1 << 20;

/// NodeStageVolumeRequest, parsed. Secrets are not used by any backend and are dropped at the edge.
#[derive(Debug)]
pub(crate) struct StageRequest {
    pub(crate) volume: VolumeId,
    pub(crate) context: Option<AttachContext>,
    pub(crate) staging_target_path: NodePath,
    pub(crate) capability: VolumeCapability,
    /// What the request's volume_context says; `None` where the orchestrator dropped it.
    pub(crate) parameters: Option<Parameters>,
}

/// What staging needs, from either request.
pub(crate) struct StagePlan<'a> {
    pub(crate) volume: &'a Volume,
    pub(crate) context: Option<&'a AttachContext>,
    pub(crate) capability: &'a VolumeCapability,
    pub(crate) parameters: &'a Parameters,
}

impl Node {
    pub(crate) fn stage(&self, guard: &VolumeGuard, request: &StageRequest) -> Result<()> {
        let identity = self.identity()?;
        let connector = self.connector(&request.volume)?;
        let volume = connector.volume(&request.volume)?;
        let plan = StagePlan {
            volume: &volume,
            context: request.context.as_ref(),
            capability: &request.capability,
            parameters: request.parameters.as_ref().unwrap_or(&volume.parameters),
        };
        check_capability(&volume, &request.capability)?;
        let path = request.staging_target_path.resolve(self.host.as_ref())?;
        let intent = Intent {
            staging_target_path: Some(path.clone()),
            ..Intent::new(&volume.id, Operation::Stage, volume.epoch)
        };
        if self.find_staged(connector, &identity, &plan, &path)?.is_some() {
            self.forget(guard, &volume.id);
            return Ok(());
        }
        self.journaled(guard, &intent, |undo| self.do_stage(guard, connector, &identity, &plan, &path, undo)).map(drop)
    }

    /// The staging that is there, when it is as asked for; `None` when staging has to be done, and can be.
    pub(crate) fn find_staged(
        &self,
        connector: &dyn Connector,
        identity: &NodeIdentity,
        plan: &StagePlan<'_>,
        path: &Path,
    ) -> Result<Option<Staged>> {
        let view = View::read(self, connector, &plan.volume.id)?;
        check_granted(plan.volume, identity, view.connected.as_ref(), plan.context)?;
        let VolumeKind::FileSystem(fs) = plan.volume.kind else {
            // Nothing is mounted at the staging path; connecting finds an existing connection by itself.
            return Ok(None);
        };
        match view.staging(fs, path) {
            Staging::Staged(staged) => {
                check_same_access(plan, &staged, path)?;
                Ok(Some(staged))
            }
            Staging::Foreign(what) => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "staging path {} of volume {} is taken by another mount: {what}; it was left alone",
                    path.display(),
                    plan.volume.id
                ),
            )),
            Staging::Corrupt(what) => Err(Error::new(
                ErrorKind::Corrupt,
                format!("volume {} is at {} but {what}; unstage it", plan.volume.id, path.display()),
            )),
            Staging::Absent => {
                let elsewhere = view.places_other_than(path);
                if !elsewhere.is_empty() {
                    return Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        format!(
                            "volume {} is mounted at {} already and cannot be staged at {} too; unpublish and unstage it there",
                            plan.volume.id,
                            list(&elsewhere),
                            path.display()
                        ),
                    ));
                }
                check_target(self.host.as_ref(), "staging path", path, Wanted::Directory)?;
                Ok(None)
            }
        }
    }

    pub(crate) fn do_stage<'a>(
        &'a self,
        guard: &'a VolumeGuard,
        connector: &'a dyn Connector,
        identity: &NodeIdentity,
        plan: &StagePlan<'_>,
        path: &Path,
        undo: &mut Undo<'a>,
    ) -> Result<Staged> {
        let volume = plan.volume;
        let id = volume.id.clone();
        if connector.observe(&id)?.is_none() {
            let id = id.clone();
            undo.push("disconnect", move || self.disconnect(guard, connector, &id));
        }
        let request = ConnectRequest {
            volume: &id,
            node: identity,
            read_only: connects_read_only(volume, plan.capability),
            context: plan.context,
        };
        match (connector.connect(guard, &request)?, volume.kind) {
            (Connected::Device { path: device, number, .. }, VolumeKind::FileSystem(fs)) => {
                self.stage_file_system(guard, connector, plan, Device { path: &device, number, fs }, path, undo)
            }
            (Connected::Device { path: device, number, read_only, .. }, VolumeKind::Block) => {
                Ok(Staged::Block { device, number, read_only })
            }
            (Connected::Directory { path: directory }, VolumeKind::Directory) => {
                ownership::apply(self.host.as_ref(), &directory, plan, false)?;
                Ok(Staged::Directory { path: directory })
            }
            (connected, kind) => {
                Err(Error::internal(format!("volume {id} is a {kind} volume but was connected as {connected:?}")))
            }
        }
    }

    fn stage_file_system<'a>(
        &'a self,
        guard: &'a VolumeGuard,
        connector: &'a dyn Connector,
        plan: &StagePlan<'_>,
        device: Device<'_>,
        path: &Path,
        undo: &mut Undo<'a>,
    ) -> Result<Staged> {
        let id = &plan.volume.id;
        let read_only = mounts_read_only(plan.volume, plan.capability);
        let fs_bytes = self.check_content(id, &device)?;
        let flags = mount_flags(plan);

        if check_target(self.host.as_ref(), "staging path", path, Wanted::Directory)? {
            self.host.ensure_directory(path)?;
        }
        // From here on nothing may format it, even if this is the last thing we ever do.
        connector.mark_staged(guard, id)?;
        let request = MountRequest {
            device: device.path,
            number: device.number,
            fs: device.fs,
            target: path,
            read_only,
            flags: &flags,
        };
        {
            let (id, path) = (id.clone(), path.to_owned());
            undo.push("unmount", move || self.unmount_ours(connector, &id, &path));
        }
        self.host.mount(&request).map_err(|error| {
            let message = format!("mounting volume {id} ({}) at {}", device.path.display(), path.display());
            error.context(message)
        })?;
        if !read_only {
            self.grow_if_smaller(&request, fs_bytes)?;
        }
        ownership::apply(self.host.as_ref(), path, plan, read_only)?;
        Ok(Staged::FileSystem { mounted_at: path.to_owned(), read_only })
    }

    /// Makes sure that the device holds what the volume's record says, unharmed; the file system's size in bytes.
    /// Whatever else is there is never formatted: that happens at creation alone, before anybody could write.
    fn check_content(&self, id: &VolumeId, device: &Device<'_>) -> Result<u64> {
        let refuse = |found: String| {
            Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "volume {id} should hold {} but {found}; nothing was written to it. Look at its image (hawser volume inspect {id}), \
                     and restore it from a snapshot if its content is lost",
                    device.fs
                ),
            ))
        };
        match self.host.probe(device.path)? {
            Probe::FileSystem { fs, .. } if fs != device.fs => refuse(format!("holds {fs}")),
            Probe::Blank => refuse("reads as zeros".to_owned()),
            Probe::Other(what) => refuse(format!("holds {what}")),
            Probe::Damaged { fs, reason } => refuse(format!("its {fs} superblock does not verify ({reason})")),
            Probe::FileSystem { size_bytes, errors: false, .. } => Ok(size_bytes),
            Probe::FileSystem { size_bytes, errors: true, .. } => {
                match self.host.check_filesystem(device.path, device.fs)? {
                    FileSystemCheck::Clean => Ok(size_bytes),
                    FileSystemCheck::NeedsRepair(report) => Err(Error::new(
                        ErrorKind::Corrupt,
                        format!(
                            "the {} of volume {id} is damaged and is not repaired automatically, since that can lose data; nothing was changed. \
                             Take a snapshot of the volume, then run '{}' on its image (hawser volume inspect {id}) while it is unstaged. \
                             The checker said: {report}",
                            device.fs,
                            repair_command(device.fs)
                        ),
                    )),
                }
            }
        }
    }

    /// After a restore into a larger volume, or an expansion while nothing was mounted. It runs on the mounted file
    /// system because mounting replays the journal, which growing offline would refuse; where the kernel forbids that
    /// (ext4 without CAP_SYS_RESOURCE) the now clean file system is grown between an unmount and another mount.
    fn grow_if_smaller(&self, mount: &MountRequest<'_>, fs_bytes: u64) -> Result<()> {
        let device_bytes = self.host.device_size(mount.device)?;
        if device_bytes < fs_bytes.saturating_add(GROW_FROM_BYTES) {
            return Ok(());
        }
        match self.host.grow_filesystem(mount.device, mount.fs, Some(mount.target)) {
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
                self.host.unmount(mount.target)?;
                self.host.grow_filesystem(mount.device, mount.fs, None)?;
                self.host.mount(mount)
            }
            other => other,
        }
    }
}

#[derive(Clone, Copy)]
struct Device<'a> {
    path: &'a Path,
    number: DeviceNumber,
    fs: FsType,
}

/// CSI 1.13, errors of NodeStageVolume and NodePublishVolume: "Exceeds capabilities" is FAILED_PRECONDITION.
pub(crate) fn check_capability(volume: &Volume, capability: &VolumeCapability) -> Result<()> {
    volume
        .kind
        .check(capability)
        .map_err(|error| Error::new(ErrorKind::FailedPrecondition, format!("volume {}: {}", volume.id, error.chain())))
}

/// The mount is read-only for read-only access modes and for grants that are.
pub(crate) fn mounts_read_only(volume: &Volume, capability: &VolumeCapability) -> bool {
    capability.access_mode.is_read_only() || is_granted_read_only(volume)
}

/// The device of a file system is read-only only when the grant is: replaying the journal after a crash needs to write
/// even for a read-only mount, and the holder is the only one who can. A raw block device has no mount to hold writes
/// off, so there the access mode counts too.
fn connects_read_only(volume: &Volume, capability: &VolumeCapability) -> bool {
    is_granted_read_only(volume) || (volume.kind == VolumeKind::Block && capability.access_mode.is_read_only())
}

fn is_granted_read_only(volume: &Volume) -> bool {
    volume.attachment.as_ref().is_some_and(|held| held.read_only)
}

/// CSI 1.13, NodeStageVolume errors: "Volume published but is incompatible".
fn check_same_access(plan: &StagePlan<'_>, staged: &Staged, path: &Path) -> Result<()> {
    let wanted = mounts_read_only(plan.volume, plan.capability);
    let Staged::FileSystem { read_only, .. } = staged else { return Ok(()) };
    if *read_only == wanted {
        return Ok(());
    }
    let access = |read_only| if read_only { "read-only" } else { "read-write" };
    Err(Error::new(
        ErrorKind::AlreadyExists,
        format!(
            "volume {} is staged {} at {} and asked for {}; unstage it first",
            plan.volume.id,
            access(*read_only),
            path.display(),
            access(wanted)
        ),
    ))
}

/// The flags of the volume's parameters, then those of the capability, each once.
fn mount_flags(plan: &StagePlan<'_>) -> Vec<String> {
    let mut flags = plan.parameters.mount_flags.clone();
    if let AccessType::Mount { mount_flags, .. } = &plan.capability.access_type {
        flags.extend(mount_flags.iter().cloned());
    }
    let mut seen = std::collections::BTreeSet::new();
    flags.retain(|flag| seen.insert(flag.clone()));
    flags
}

fn repair_command(fs: FsType) -> &'static str {
    match fs {
        FsType::Ext4 => "e2fsck -f",
        FsType::Xfs => "xfs_repair",
        FsType::Btrfs => "btrfs check",
    }
}
