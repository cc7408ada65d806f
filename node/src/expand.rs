//! NodeExpandVolume: lets the node see the size that the controller gave the volume.

use crate::node::Node;
use crate::observe::View;
use crate::stats::not_there;
use crate::target::NodePath;
use host::PathState;
use rpc::Trace;
use std::path::Path;
use volume::{Connected, Error, ErrorKind, Result, SizeRange, VolumeCapability, VolumeGuard, VolumeId, VolumeKind};

/// NodeExpandVolumeRequest, parsed.
#[derive(Debug)]
pub(crate) struct ExpandRequest {
    pub(crate) volume: VolumeId,
    pub(crate) volume_path: NodePath,
    pub(crate) staging_target_path: Option<NodePath>,
    pub(crate) size: SizeRange,
    pub(crate) capability: Option<VolumeCapability>,
}

impl Node {
    /// The size in bytes.
    pub(crate) fn expand(&self, guard: &VolumeGuard, request: &ExpandRequest, trace: &mut Trace) -> Result<u64> {
        trace.step("observe");
        self.identity()?;
        let id = &request.volume;
        let connector = self.connector(id)?;
        let volume = connector.volume(id)?;
        if let Some(capability) = &request.capability {
            // Here CSI asks for INVALID_ARGUMENT ("Exceeds capabilities").
            volume.kind.check(capability)?;
        }
        let path = request.volume_path.resolve(self.host.as_ref())?;
        let staging =
            request.staging_target_path.as_ref().map(|given| given.resolve(self.host.as_ref())).transpose()?;
        let view = View::read(self, connector, id)?;
        if !view.is_ours_at(&path) && !self.is_staging_of_block(&view, volume.kind, &path, staging.as_deref())? {
            return Err(not_there(id, &path));
        }
        let (device, fs) = match (&view.connected, volume.kind) {
            (Some(Connected::Device { path, .. }), VolumeKind::FileSystem(fs)) => (path, Some(fs)),
            (Some(Connected::Device { path, .. }), VolumeKind::Block) => (path, None),
            // A directory has no size of its own that could be set.
            _ => return Ok(volume.size_bytes),
        };
        trace.step("refresh");
        let size_bytes = connector.refresh_size(guard, id)?;
        check_size(id, &request.size, size_bytes)?;
        if let Some(fs) = fs {
            trace.step("grow");
            let Some(place) = view.writable_place() else {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!("volume {id} is mounted read-only; its {fs} grows when it is next staged read-write"),
                ));
            };
            self.host.grow_filesystem(device, fs, Some(place)).map_err(|error| match error.kind() {
                ErrorKind::PermissionDenied | ErrorKind::Unsupported => Error::with_source(
                    ErrorKind::FailedPrecondition,
                    format!(
                        "the {fs} of volume {id} cannot grow while it is mounted here (ext4 needs CAP_SYS_RESOURCE for that); \
                         it grows when it is next staged"
                    ),
                    error,
                ),
                _ => error.context(format!("growing the {fs} of volume {id} at {}", path.display())),
            })?;
        }
        Ok(size_bytes)
    }

    /// Kubelet expands a raw block volume between staging and publishing; nothing is mounted at its staging path.
    fn is_staging_of_block(&self, view: &View, kind: VolumeKind, path: &Path, staging: Option<&Path>) -> Result<bool> {
        Ok(kind == VolumeKind::Block
            && view.connected.is_some()
            && staging == Some(path)
            && matches!(self.host.observe_path(path)?, PathState::Directory { .. }))
    }
}

/// The controller sets the size; the node can only find that it did not.
fn check_size(id: &VolumeId, wanted: &SizeRange, size_bytes: u64) -> Result<()> {
    if wanted.admits(size_bytes) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::OutOfRange,
        format!(
            "volume {id} has {size_bytes} bytes, outside what is asked for ({wanted:?}); expand it with ControllerExpandVolume first"
        ),
    ))
}
