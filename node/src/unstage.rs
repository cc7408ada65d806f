//! NodeUnstageVolume: unmounts the volume from its staging path and disconnects it.

use crate::node::Node;
use crate::observe::{View, list};
use crate::target::NodePath;
use crate::unpublish::epoch_of;
use journal::{Intent, Operation};
use rpc::Trace;
use std::path::Path;
use volume::{Connector, Error, ErrorKind, Result, VolumeGuard, VolumeId};

impl Node {
    pub(crate) fn unstage(
        &self,
        guard: &VolumeGuard,
        id: &VolumeId,
        staging_target_path: &NodePath,
        trace: &mut Trace,
    ) -> Result<()> {
        trace.step("observe");
        let path = staging_target_path.resolve(self.host.as_ref())?;
        // Only a volume of a configured backend can be staged here.
        let Ok(connector) = self.connector(id) else { return Ok(()) };
        let view = View::read(self, connector, id)?;
        let elsewhere = view.places_other_than(&path);
        if !elsewhere.is_empty() && (view.is_ours_at(&path) || view.has_raw_targets()) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("volume {id} is still published at {}; unpublish it there first", list(&elsewhere)),
            ));
        }
        // CSI 1.13, NodeUnstageVolume: a volume that is not staged to this path is OK. Nothing of it is taken away
        // while it is used elsewhere; a connection that nothing uses is what an unfinished stage left, or a raw device.
        if view.connected.is_none() || !elsewhere.is_empty() {
            // One that was unstaged may not have been given back yet.
            if elsewhere.is_empty() {
                self.give_back(guard, connector, id)?;
            }
            self.forget(guard, id);
            return Ok(());
        }
        let intent = Intent {
            staging_target_path: Some(path.clone()),
            ..Intent::new(id, Operation::Unstage, epoch_of(view.connected.as_ref()))
        };
        self.journaled(guard, &intent, |_| {
            trace.step("unmount");
            self.take_down_staging(guard, connector, id, &path)
        })
    }

    /// Unmounts the volume from `path`, disconnects it, and gives its grant back where the node took it. The path itself is the caller's.
    pub(crate) fn take_down_staging(
        &self,
        guard: &VolumeGuard,
        connector: &dyn Connector,
        id: &VolumeId,
        path: &Path,
    ) -> Result<()> {
        // First, so that what is left to write is not held back by the volume's limits.
        self.untune(id);
        self.unmount_ours(connector, id, path)?;
        self.disconnect(guard, connector, id)?;
        self.give_back(guard, connector, id)
    }
}
