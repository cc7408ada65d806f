//! NodePublishVolume: shows the staged volume to a workload, at its target path.

use crate::node::{Node, Undo, check_granted};
use crate::observe::{Staged, Staging, View, describe, list};
use crate::stage::{Stager, check_capability, mounts_read_only};
use crate::target::{NodePath, Wanted, check_target};
use host::PathState;
use journal::{Intent, Operation};
use rpc::Trace;
use std::path::Path;
use volume::{
    AccessMode, AttachContext, Connected, Error, ErrorKind, Parameters, Result, VolumeCapability, VolumeGuard,
    VolumeId, VolumeKind,
};

/// NodePublishVolumeRequest, parsed. Secrets are not used by any backend and are dropped at the edge.
#[derive(Debug)]
pub(crate) struct PublishRequest {
    pub(crate) volume: VolumeId,
    pub(crate) context: Option<AttachContext>,
    pub(crate) staging_target_path: Option<NodePath>,
    pub(crate) target_path: NodePath,
    pub(crate) capability: VolumeCapability,
    pub(crate) is_read_only: bool,
    pub(crate) parameters: Option<Parameters>,
}

impl Node {
    pub(crate) fn publish(&self, guard: &VolumeGuard, request: &PublishRequest, trace: &mut Trace) -> Result<()> {
        trace.step("observe");
        let identity = self.identity()?;
        let id = &request.volume;
        let connector = self.connector(id)?;
        let volume = connector.volume(id)?;
        check_capability(&volume, &request.capability)?;
        let target = request.target_path.resolve(self.host.as_ref())?;
        let staging = self.staging_path(id, request.staging_target_path.as_ref())?;
        if staging == target {
            return Err(Error::invalid(format!("target_path and staging_target_path are both {}", target.display())));
        }
        let stager = Stager {
            node: self,
            guard,
            connector,
            identity: &identity,
            volume: &volume,
            context: request.context.as_ref().filter(|_| !self.takes_grants()),
            capability: &request.capability,
            parameters: request.parameters.as_ref().unwrap_or(&volume.parameters),
            path: &staging,
        };
        stager.check_flags()?;
        if self.is_staged_by_caller {
            return self.publish_granted(stager, request, &target, trace);
        }
        let volume = self.take_grant(&stager)?;
        let stager = Stager { volume: &volume, ..stager };
        self.keep_grant_if_used(&stager, self.publish_granted(stager, request, &target, trace))
    }

    fn publish_granted(
        &self,
        stager: Stager<'_>,
        request: &PublishRequest,
        target: &Path,
        trace: &mut Trace,
    ) -> Result<()> {
        let Stager { guard, volume, identity, path: staging, .. } = stager;
        let id = &volume.id;
        let publisher = Publisher {
            stager,
            target,
            read_only: request.is_read_only || mounts_read_only(volume, stager.parameters, &request.capability),
        };
        let (view, staged) = publisher.find_staged()?;
        if staged.is_some() || !view.places().is_empty() {
            check_granted(volume, identity, view.connected.as_ref(), stager.context)?;
        }
        if staged.is_some() && volume.kind.is_single_node() {
            self.tuner.notice(id);
        }
        if publisher.is_published(&view)? {
            self.forget(guard, id);
            return Ok(());
        }
        publisher.check_writers(&view)?;
        check_target(self.host.as_ref(), "target path", target, publisher.wanted())?;
        let intent = Intent {
            staging_target_path: Some(staging.to_owned()),
            target_path: Some(target.to_owned()),
            ..Intent::new(id, Operation::Publish, volume.epoch)
        };
        self.journaled(guard, &intent, |undo| {
            let (staged, connected) = match staged {
                Some(staged) => (staged, view.connected),
                None => (stager.run(undo, trace)?, None),
            };
            trace.step("bind");
            publisher.bind(&staged, connected, undo)
        })
    }
}

struct Publisher<'a> {
    stager: Stager<'a>,
    target: &'a Path,
    read_only: bool,
}

impl<'a> Publisher<'a> {
    /// What is there now, and the staging to publish from; `None` when this publish has to stage it.
    fn find_staged(&self) -> Result<(View, Option<Staged>)> {
        let Stager { node, connector, volume, path, .. } = self.stager;
        let not_staged = |view: &View| {
            let places = view.places();
            let found = if places.is_empty() { String::new() } else { format!("; it is mounted at {}", list(&places)) };
            Error::new(
                ErrorKind::FailedPrecondition,
                format!("volume {} is not staged at {}{found}: stage it there first", volume.id, path.display()),
            )
        };
        match volume.kind {
            VolumeKind::FileSystem(fs) => {
                let view = View::read(node, connector, &volume.id)?;
                match view.staging(fs, path) {
                    Staging::Staged(staged) => Ok((view, Some(staged))),
                    _ if !node.is_staged_by_caller => {
                        // A plugin that was restarted may have lost its own staging, but not what it had published.
                        if !view.is_ours_at(self.target) {
                            // Says why when it cannot be staged.
                            self.stager.find()?;
                        }
                        Ok((view, None))
                    }
                    Staging::Absent | Staging::Foreign(_) => Err(not_staged(&view)),
                    Staging::Corrupt(what) => Err(Error::new(
                        ErrorKind::Corrupt,
                        format!("volume {} is at {} but {what}; unstage it", volume.id, path.display()),
                    )),
                }
            }
            VolumeKind::Block => {
                let view = View::read(node, connector, &volume.id)?;
                match view.connected.clone() {
                    Some(Connected::Device { path: device, number, read_only, epoch })
                        if node.is_staged_by_caller || epoch == volume.epoch || view.has_raw_targets() =>
                    {
                        Ok((view, Some(Staged::Block { device, number, read_only })))
                    }
                    _ if !node.is_staged_by_caller => Ok((view, None)),
                    _ => Err(not_staged(&view)),
                }
            }
            VolumeKind::Directory => {
                // Connecting a directory changes nothing; it finds the path, also where staging was skipped.
                let request = volume::ConnectRequest {
                    volume: &volume.id,
                    node: self.stager.identity,
                    read_only: self.read_only,
                    context: self.stager.context,
                };
                let connected = connector.connect(self.stager.guard, &request)?;
                let Connected::Directory { path } = &connected else {
                    return Err(Error::internal(format!("directory volume {} is {connected:?}", volume.id)));
                };
                let staged = Staged::Directory { path: path.clone() };
                Ok((View::with(node, &volume.id, Some(connected))?, Some(staged)))
            }
        }
    }

    /// Whether the target shows the volume as asked for. "There already, but different" is an error.
    fn is_published(&self, view: &View) -> Result<bool> {
        let Some(entry) = view.top(self.target) else { return Ok(false) };
        let (id, target) = (&self.stager.volume.id, self.target.display());
        if !view.is_ours_at(self.target) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "target path {target} of volume {id} is taken by another mount: {}; it was left alone",
                    describe(entry)
                ),
            ));
        }
        if self.stager.volume.kind != VolumeKind::Block && entry.read_only != self.read_only {
            let access = |read_only| if read_only { "read-only" } else { "read-write" };
            // CSI 1.13, NodePublishVolume errors: "Volume published but is incompatible".
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!(
                    "volume {id} is published {} at {target} and asked for {}; unpublish it first",
                    access(entry.read_only),
                    access(self.read_only)
                ),
            ));
        }
        Ok(true)
    }

    /// CSI 1.13, "second NodePublishVolume": a single-writer mode allows one target. SINGLE_NODE_WRITER allows several,
    /// as orchestrators that know no other mode (and kubelet for ReadWriteOnce) rely on.
    fn check_writers(&self, view: &View) -> Result<()> {
        if self.stager.capability.access_mode != AccessMode::SingleNodeSingleWriter {
            return Ok(());
        }
        let others: Vec<&Path> =
            view.places_other_than(self.stager.path).into_iter().filter(|place| *place != self.target).collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "volume {} is published at {} and its access mode SINGLE_NODE_SINGLE_WRITER allows one target",
                self.stager.volume.id,
                list(&others)
            ),
        ))
    }

    fn wanted(&self) -> Wanted {
        match self.stager.volume.kind {
            VolumeKind::Block => Wanted::File,
            VolumeKind::FileSystem(_) | VolumeKind::Directory => Wanted::Directory,
        }
    }

    /// `connected` is how the volume was seen to be connected; what was just staged is looked for.
    fn bind(&self, staged: &Staged, connected: Option<Connected>, undo: &mut Undo<'a>) -> Result<()> {
        let Stager { node, connector, volume, .. } = self.stager;
        let (host, target) = (node.host.as_ref(), self.target);
        let (source, read_only) = match staged {
            Staged::FileSystem { mounted_at, read_only } => (mounted_at, self.read_only || *read_only),
            Staged::Directory { path } => (path, self.read_only),
            Staged::Block { device, number, read_only } => {
                check_block(volume.id.as_str(), self.read_only, *read_only)?;
                let found = host.observe_path(device)?;
                if found != PathState::BlockDevice(*number) {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        format!(
                            "{} should be the device {}:{} of volume {} but is {found:?}",
                            device.display(),
                            number.major,
                            number.minor,
                            volume.id
                        ),
                    ));
                }
                (device, self.read_only)
            }
        };
        if check_target(host, "target path", target, self.wanted())? {
            undo.push("remove target", move || host.remove_target(target));
            match self.wanted() {
                Wanted::Directory => host.ensure_directory(target)?,
                Wanted::File => host.ensure_file(target)?,
            }
        }
        undo.push("unmount", move || node.unmount_ours(connector, &volume.id, target));
        host.bind(source, target, read_only)?;
        // What was bound is found by path; make sure that it was what we meant.
        let view = match connected {
            Some(_) => View::with(node, &volume.id, connected)?,
            None => View::read(node, connector, &volume.id)?,
        };
        if view.is_ours_at(target) {
            return Ok(());
        }
        host.unmount(target)?;
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("{} changed while volume {} was published from it; retry", source.display(), volume.id),
        ))
    }
}

/// A read-only bind of a device node would not keep anybody from writing to the device.
fn check_block(id: &str, wanted_read_only: bool, is_read_only: bool) -> Result<()> {
    if wanted_read_only && !is_read_only {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "raw block volume {id} is connected read-write and cannot be published read-only beside that; \
                 use a reader-only access mode"
            ),
        ));
    }
    Ok(())
}
