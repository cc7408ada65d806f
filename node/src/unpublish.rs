//! NodeUnpublishVolume: takes the volume away from a target path.

use crate::node::Node;
use crate::observe::{View, describe};
use crate::target::NodePath;
use host::PathState;
use journal::{Intent, Operation};
use rpc::Trace;
use std::path::Path;
use volume::{Connected, Connector, Epoch, Error, ErrorKind, Result, VolumeGuard, VolumeId};

impl Node {
    /// Also for volumes that no longer exist: the mount table alone decides what there is to undo.
    pub(crate) fn unpublish(
        &self,
        guard: &VolumeGuard,
        id: &VolumeId,
        target_path: &NodePath,
        trace: &mut Trace,
    ) -> Result<()> {
        trace.step("observe");
        let target = target_path.resolve(self.host.as_ref())?;
        // Only a volume of a configured backend can be published here.
        let Ok(connector) = self.connector(id) else { return self.remove_unmounted(&target) };
        let view = View::read(self, connector, id)?;
        if let Some(entry) = view.top(&target)
            && !view.is_ours_at(&target)
        {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "what is mounted at {} is not volume {id} but {}; it was left alone",
                    target.display(),
                    describe(entry)
                ),
            ));
        }
        let own_staging = self.own_staging_path(id);
        let is_last_of_own_staging =
            !self.is_staged_by_caller && view.places_other_than(&own_staging).iter().all(|place| *place == target);
        let has_own_staging = !self.is_staged_by_caller && view.connected.is_some();
        if view.top(&target).is_none() && !(is_last_of_own_staging && has_own_staging) {
            if is_last_of_own_staging {
                self.give_back(guard, connector, id)?;
            }
            self.forget(guard, id);
            return self.remove_unmounted(&target);
        }
        let intent = Intent {
            staging_target_path: (!self.is_staged_by_caller).then(|| own_staging.clone()),
            target_path: Some(target.clone()),
            ..Intent::new(id, Operation::Unpublish, epoch_of(view.connected.as_ref()))
        };
        self.journaled(guard, &intent, |_| {
            trace.step("unmount");
            self.take_down_target(connector, id, &target)?;
            if is_last_of_own_staging {
                trace.step("unstage");
                self.take_down_staging(guard, connector, id, &own_staging)?;
                self.host.remove_target(&own_staging)?;
            }
            Ok(())
        })
    }

    /// Unmounts the volume from `target` and removes what it was mounted on.
    pub(crate) fn take_down_target(&self, connector: &dyn Connector, id: &VolumeId, target: &Path) -> Result<()> {
        self.unmount_ours(connector, id, target)?;
        self.remove_unmounted(target)
    }

    /// Removes an empty target. What is not empty, or is no file or directory, was not made by us and stays.
    pub(crate) fn remove_unmounted(&self, target: &Path) -> Result<()> {
        match self.host.observe_path(target)? {
            PathState::Absent => Ok(()),
            PathState::Directory { is_empty: true } | PathState::File { size_bytes: 0 } => {
                self.host.remove_target(target)
            }
            found => {
                tracing::warn!(target = ?target, ?found, "the target path is not removed: it is not what a publish leaves");
                Ok(())
            }
        }
    }
}

pub(crate) fn epoch_of(connected: Option<&Connected>) -> Epoch {
    match connected {
        Some(Connected::Device { epoch, .. }) => *epoch,
        Some(Connected::Directory { .. }) | None => Epoch::default(),
    }
}
