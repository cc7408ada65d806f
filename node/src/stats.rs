//! NodeGetVolumeStats.

use crate::node::Node;
use crate::observe::View;
use crate::target::NodePath;
use host::FileSystemStats;
use rpc::Trace;
use std::path::Path;
use volume::{Connected, Error, Result, VolumeId, VolumeKind};

/// What a volume takes and has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Usage {
    FileSystem(FileSystemStats),
    /// A raw device has a size and no more that could be known from outside.
    Block {
        total_bytes: u64,
    },
}

impl Node {
    pub(crate) fn volume_stats(&self, id: &VolumeId, volume_path: &NodePath, trace: &mut Trace) -> Result<Usage> {
        trace.step("observe");
        let connector = self.connector(id)?;
        let volume = connector.volume(id)?;
        let path = volume_path.resolve(self.host.as_ref())?;
        let view = View::read(self, connector, id)?;
        if !view.is_ours_at(&path) {
            return Err(not_there(id, &path));
        }
        trace.step("statfs");
        match (&view.connected, volume.kind) {
            (Some(Connected::Device { path: device, .. }), VolumeKind::Block) => {
                Ok(Usage::Block { total_bytes: self.host.device_size(device)? })
            }
            _ => self.host.stats(&path).map(Usage::FileSystem),
        }
    }
}

/// CSI 1.13: NOT_FOUND is also "does not exist on specified volume_path".
pub(crate) fn not_there(id: &VolumeId, path: &Path) -> Error {
    Error::not_found(format!("volume {id} is neither staged nor published at {}", path.display()))
}
