//! NodeStageVolume: connects the volume and, for file systems, mounts it at the staging path.

use crate::content::{check_content, grow_if_smaller};
use crate::node::{Node, Undo, check_granted};
use crate::observe::{Staged, Staging, View, list};
use crate::ownership;
use crate::target::{NodePath, Wanted, check_target};
use host::MountRequest;
use journal::{Intent, Operation};
use rpc::Trace;
use std::collections::BTreeSet;
use std::path::Path;
use volume::{
    AccessType, AttachContext, ConnectRequest, Connected, Connector, DeviceNumber, Error, ErrorKind, FsType,
    NodeIdentity, Parameters, Result, Volume, VolumeCapability, VolumeGuard, VolumeId, VolumeKind,
};

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

/// One staging: of its own call, or inside a publish where the orchestrator does not stage.
#[derive(Clone, Copy)]
pub(crate) struct Stager<'a> {
    pub(crate) node: &'a Node,
    pub(crate) guard: &'a VolumeGuard,
    pub(crate) connector: &'a dyn Connector,
    pub(crate) identity: &'a NodeIdentity,
    pub(crate) volume: &'a Volume,
    pub(crate) context: Option<&'a AttachContext>,
    pub(crate) capability: &'a VolumeCapability,
    pub(crate) parameters: &'a Parameters,
    /// As the mount table shows it.
    pub(crate) path: &'a Path,
}

impl Node {
    pub(crate) fn stage(&self, guard: &VolumeGuard, request: &StageRequest, trace: &mut Trace) -> Result<()> {
        trace.step("observe");
        let identity = self.identity()?;
        let connector = self.connector(&request.volume)?;
        let volume = connector.volume(&request.volume)?;
        check_capability(&volume, &request.capability)?;
        let path = request.staging_target_path.resolve(self.host.as_ref())?;
        let stager = Stager {
            node: self,
            guard,
            connector,
            identity: &identity,
            volume: &volume,
            // Where the node grants to itself, its word is the record alone.
            context: request.context.as_ref().filter(|_| !self.takes_grants()),
            capability: &request.capability,
            parameters: request.parameters.as_ref().unwrap_or(&volume.parameters),
            path: &path,
        };
        stager.check_flags()?;
        let volume = self.take_grant(&stager)?;
        let stager = Stager { volume: &volume, ..stager };
        self.keep_grant_if_used(&stager, self.stage_granted(stager, trace))
    }

    fn stage_granted(&self, stager: Stager<'_>, trace: &mut Trace) -> Result<()> {
        let Stager { guard, volume, path, .. } = stager;
        if stager.find()?.is_some() {
            self.tuner.notice(&volume.id);
            self.forget(guard, &volume.id);
            return Ok(());
        }
        let intent = Intent {
            staging_target_path: Some(path.to_owned()),
            ..Intent::new(&volume.id, Operation::Stage, volume.epoch)
        };
        self.journaled(guard, &intent, |undo| stager.run(undo, trace)).map(drop)
    }
}

impl<'a> Stager<'a> {
    /// The staging that is there, when it is as asked for; `None` when it has to be done, and can be.
    pub(crate) fn find(&self) -> Result<Option<Staged>> {
        let id = &self.volume.id;
        if self.is_surely_unstaged()? {
            check_target(self.node.host.as_ref(), "staging path", self.path, Wanted::Directory)?;
            return Ok(None);
        }
        let view = View::read(self.node, self.connector, id)?;
        // Without mounts the connector decides: it replaces what is connected of an earlier grant, and takes over the
        // grant of an earlier life of this node, which no orchestrator asks for again after a reboot.
        if !view.places().is_empty() {
            check_granted(self.volume, self.identity, view.connected.as_ref(), self.context)?;
        }
        let VolumeKind::FileSystem(fs) = self.volume.kind else {
            // Nothing is mounted at the staging path, and connecting finds a connection that is there.
            return Ok(None);
        };
        let path = self.path.display();
        match view.staging(fs, self.path) {
            Staging::Staged(staged) => {
                self.check_same_access(&staged)?;
                Ok(Some(staged))
            }
            Staging::Foreign(what) => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("staging path {path} of volume {id} is taken by another mount: {what}; it was left alone"),
            )),
            Staging::Corrupt(what) => {
                Err(Error::new(ErrorKind::Corrupt, format!("volume {id} is at {path} but {what}; unstage it")))
            }
            Staging::Absent => {
                let elsewhere = view.places_other_than(self.path);
                if !elsewhere.is_empty() {
                    return Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        format!(
                            "volume {id} is mounted at {} already and cannot be staged at {path} too; unpublish and unstage it there",
                            list(&elsewhere)
                        ),
                    ));
                }
                check_target(self.node.host.as_ref(), "staging path", self.path, Wanted::Directory)?;
                Ok(None)
            }
        }
    }

    /// The common case of a first staging, told without the tables of all loops and mounts, which grow with the number of
    /// volumes: nothing has the volume, and nothing is mounted at the staging path.
    fn is_surely_unstaged(&self) -> Result<bool> {
        Ok(matches!(self.volume.kind, VolumeKind::FileSystem(_))
            && self.connector.is_surely_unconnected(&self.volume.id)?
            && self.node.host.mount_at(self.path)?.is_none())
    }

    /// Does what [`Stager::find`] found missing.
    pub(crate) fn run(&self, undo: &mut Undo<'a>, trace: &mut Trace) -> Result<Staged> {
        let Self { node, guard, connector, volume, .. } = *self;
        trace.step("connect");
        let is_connected = !connector.is_surely_unconnected(&volume.id)?
            && connector.observe(&volume.id)?.is_some_and(|connected| match connected {
                Connected::Device { epoch, .. } => epoch == volume.epoch,
                Connected::Directory { .. } => true,
            });
        if !is_connected {
            let id = volume.id.clone();
            undo.push("disconnect", move || node.disconnect(guard, connector, &id));
        }
        let request = ConnectRequest {
            volume: &volume.id,
            node: self.identity,
            read_only: self.connects_read_only(),
            context: self.context,
        };
        match (connector.connect(guard, &request)?, volume.kind) {
            (Connected::Device { path, number, .. }, VolumeKind::FileSystem(fs)) => {
                trace.step("tune");
                node.tune_connected(guard, volume, &path, number);
                self.mount(&path, number, fs, undo, trace)
            }
            (Connected::Device { path, number, read_only, .. }, VolumeKind::Block) => {
                trace.step("tune");
                node.tune_connected(guard, volume, &path, number);
                Ok(Staged::Block { device: path, number, read_only })
            }
            (Connected::Directory { path }, VolumeKind::Directory) => {
                ownership::apply(node.host.as_ref(), &path, self.parameters, self.capability)?;
                Ok(Staged::Directory { path })
            }
            (connected, kind) => Err(Error::internal(format!(
                "volume {} is a {kind} volume but was connected as {connected:?}",
                volume.id
            ))),
        }
    }

    fn mount(
        &self,
        device: &Path,
        number: DeviceNumber,
        fs: FsType,
        undo: &mut Undo<'a>,
        trace: &mut Trace,
    ) -> Result<Staged> {
        let Self { node, guard, connector, path, .. } = *self;
        let (host, id) = (node.host.as_ref(), &self.volume.id);
        trace.step("probe");
        let fs_bytes = check_content(host, id, device, fs)?;

        trace.step("mount");
        if check_target(host, "staging path", path, Wanted::Directory)? {
            host.ensure_directory(path)?;
        }
        // From here on nothing may format it, even if this is the last thing we ever do.
        connector.mark_staged(guard, id)?;
        let read_only = mounts_read_only(self.volume, self.parameters, self.capability);
        let flags = mount_flags(self.parameters, self.capability);
        let request = MountRequest { device, number, fs, target: path, read_only, flags: &flags };
        let (undo_id, undo_path) = (id.clone(), path.to_owned());
        undo.push("unmount", move || node.unmount_ours(connector, &undo_id, &undo_path));
        host.mount(&request).map_err(|error| {
            error.context(format!("mounting volume {id} ({}) at {}", device.display(), path.display()))
        })?;
        if !read_only {
            trace.step("grow");
            grow_if_smaller(host, &request, fs_bytes)?;
            trace.step("owner");
            ownership::apply(host, path, self.parameters, self.capability)?;
        }
        Ok(Staged::FileSystem { mounted_at: path.to_owned(), read_only })
    }

    /// CSI 1.13, NodeStageVolume errors: "Volume published but is incompatible".
    fn check_same_access(&self, staged: &Staged) -> Result<()> {
        let wanted = mounts_read_only(self.volume, self.parameters, self.capability);
        let Staged::FileSystem { read_only, mounted_at } = staged else { return Ok(()) };
        if *read_only == wanted {
            return Ok(());
        }
        let access = |read_only| if read_only { "read-only" } else { "read-write" };
        Err(Error::new(
            ErrorKind::AlreadyExists,
            format!(
                "volume {} is staged {} at {} and asked for {}; unstage it first",
                self.volume.id,
                access(*read_only),
                mounted_at.display(),
                access(wanted)
            ),
        ))
    }

    /// The device of a file system is read-only only when the grant is: replaying the journal after a crash needs to
    /// write even for a read-only mount, and the holder is the only one who can. A raw block device has no mount to
    /// hold writes off, so there the access mode counts too.
    fn connects_read_only(&self) -> bool {
        is_granted_read_only(self.volume)
            || (self.volume.kind == VolumeKind::Block && self.capability.access_mode.is_read_only())
    }

    /// Before anything is done; the host checks them again where it mounts.
    pub(crate) fn check_flags(&self) -> Result<()> {
        let flags = mount_flags(self.parameters, self.capability);
        match self.volume.kind {
            VolumeKind::FileSystem(fs) => host::check_mount_flags(fs, &flags),
            VolumeKind::Block | VolumeKind::Directory if flags.is_empty() => Ok(()),
            kind => Err(Error::invalid(format!(
                "volume {} is a {kind} volume, which takes no mount flags; {} given",
                self.volume.id,
                flags.join(", ")
            ))),
        }
    }
}

/// The flags of the volume's parameters, then those of the capability, each once.
fn mount_flags(parameters: &Parameters, capability: &VolumeCapability) -> Vec<String> {
    let mut flags = parameters.mount_flags.clone();
    if let AccessType::Mount { mount_flags, .. } = &capability.access_type {
        flags.extend(mount_flags.iter().cloned());
    }
    let mut seen = BTreeSet::new();
    flags.retain(|flag| seen.insert(flag.clone()));
    flags
}

/// CSI 1.13, errors of NodeStageVolume and NodePublishVolume: "Exceeds capabilities" is FAILED_PRECONDITION.
pub(crate) fn check_capability(volume: &Volume, capability: &VolumeCapability) -> Result<()> {
    volume
        .kind
        .check(capability)
        .map_err(|error| Error::new(ErrorKind::FailedPrecondition, format!("volume {}: {}", volume.id, error.chain())))
}

/// A mount is read-only for read-only access modes, grants and flags.
pub(crate) fn mounts_read_only(volume: &Volume, parameters: &Parameters, capability: &VolumeCapability) -> bool {
    capability.access_mode.is_read_only()
        || is_granted_read_only(volume)
        || mount_flags(parameters, capability).iter().any(|flag| flag == "ro")
}

fn is_granted_read_only(volume: &Volume) -> bool {
    volume.attachment.as_ref().is_some_and(|held| held.read_only)
}
