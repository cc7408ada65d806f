//! Grants, as the attachment contract plans them. One lock over all records makes each change a compare-and-swap.

use crate::state::{Image, VolumeRecord};
use crate::{MemoryBackend, Storage, now_ms};
use host::{Host, LoopDevice};
use volume::{
    Attach, AttachContext, AttachPlan, AttachRequest, DetachPlan, Error, ErrorKind, NodeId, NodeRecord, Result, Volume,
    VolumeGuard, VolumeId, held_by, plan_attach, plan_detach,
};

impl Attach for MemoryBackend {
    fn attach(&self, guard: &VolumeGuard, request: &AttachRequest<'_>) -> Result<AttachContext> {
        guard.check(request.volume.as_str())?;
        let mut state = self.storage.state();
        let volume = &state.volume(request.volume)?.volume;
        let node = state.node(request.node)?;
        let is_single_node = volume.kind.is_single_node();
        // Nobody holds a directory, but a fenced node gets none either.
        let held = volume.attachment.as_ref().filter(|_| is_single_node);
        let plan = plan_attach(held, volume.epoch, node, request.read_only, now_ms())?;
        let held = |record: &&VolumeRecord| {
            let attachment = record.volume.attachment.as_ref();
            attachment.is_some_and(|held| held.holder.node == *request.node && held.proof.is_none())
        };
        let is_new = is_single_node && matches!(plan, AttachPlan::Grant(_));
        let held = state.volumes.values().filter(held).count() as u64;
        if let Some(limit) = self.storage.max_volumes.filter(|&limit| is_new && held >= limit) {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!("node {} holds {held} volumes and takes {limit} (max_volumes_per_node)", request.node),
            ));
        }
        let record = state.volume_mut(request.volume)?;
        Ok(AttachContext::new(match plan {
            AttachPlan::AlreadyHeld(epoch) => epoch,
            AttachPlan::Grant(_) if !is_single_node => record.volume.epoch,
            AttachPlan::Grant(attachment) => {
                record.volume.epoch = attachment.epoch;
                record.volume.attachment.insert(attachment).epoch
            }
        }))
    }

    fn detach(&self, guard: &VolumeGuard, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        guard.check(id.as_str())?;
        loop {
            let (held, image) = {
                let state = self.storage.state();
                let Some(record) = state.volumes.get(id) else { return Ok(()) };
                (record.volume.attachment.clone(), record.image.clone())
            };
            match plan_detach(held.as_ref(), node) {
                DetachPlan::Nothing => return Ok(()),
                DetachPlan::ReleaseFenced => {}
                DetachPlan::ReleaseIfQuiet => {
                    if let Some(device) = self.storage.writable_loops(image.as_ref())?.first() {
                        return Err(Error::new(
                            ErrorKind::FailedPrecondition,
                            format!("volume {id} is not detached: it is connected as {}", device.path.display()),
                        ));
                    }
                }
            }
            let mut state = self.storage.state();
            let Some(record) = state.volumes.get_mut(id) else { return Ok(()) };
            if record.volume.attachment == held {
                record.volume.attachment = None;
                return Ok(());
            }
        }
    }

    fn nodes(&self) -> Result<Vec<NodeRecord>> {
        Ok(self.storage.state().nodes.values().cloned().collect())
    }

    fn held_by(&self, node: &NodeId) -> Result<Vec<Volume>> {
        held_by(self, node)
    }

    fn signs_of_life(&self) -> Result<Option<Vec<(NodeId, u64)>>> {
        Ok(Some(self.storage.state().signs_of_life.clone().into_iter().collect()))
    }
}

impl Storage {
    /// Loops through which the image can still be written to.
    pub(crate) fn writable_loops(&self, image: Option<&Image>) -> Result<Vec<LoopDevice>> {
        let Some(image) = image else { return Ok(Vec::new()) };
        let mut loops = self.host.loops()?;
        loops.retain(|device| device.backing_inode == image.identity.inode && device.size_limit_bytes == 0);
        Ok(loops)
    }
}
