//! Grants of volumes to nodes. What to grant is decided in `volume::plan_attach` and `plan_detach`; here it is read,
//! swapped, and on a loser's side read again.

use crate::loops::{is_cut_off, is_not_newer};
use crate::model::{VolumeRecord, label_epoch};
use crate::record::RecordDir;
use crate::{Pool, Scope, now_ms};
use host::file::Dir;
use volume::{
    Attach, AttachContext, AttachPlan, AttachRequest, Attachment, DetachPlan, Error, ErrorKind, FenceMethod,
    FenceProof, NodeId, NodeRecord, Result, Volume, VolumeGuard, VolumeId, plan_attach, plan_detach,
};

impl Attach for Pool {
    fn attach(&self, guard: &VolumeGuard, request: &AttachRequest<'_>) -> Result<AttachContext> {
        guard.check(request.volume.as_str())?;
        self.check_reachable()?;
        let state = RecordDir::<VolumeRecord>::change(&self.volumes, request.volume.as_str(), |state| {
            self.plan_grant(state.dir(), state.record(), request)
        })?;
        let state = state.ok_or_else(|| no_volume(request.volume))?;
        let record = state.record();
        // A fence of this node that began after the plan may have looked at the volume before the grant was there.
        // The grant stays, for the next fence to find; but it is not given out.
        let node = self.known_node(request.node)?;
        if node.is_fenced() {
            plan_attach(None, record.epoch, &node, request.read_only, now_ms())?;
        }
        tracing::info!(volume = %record.id, node = %request.node, epoch = %record.epoch, "granted");
        Ok(AttachContext::new(record.epoch))
    }

    fn detach(&self, guard: &VolumeGuard, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        guard.check(id.as_str())?;
        self.check_reachable()?;
        // From here on nobody may connect, so what is looked for next cannot appear behind our back.
        let state = RecordDir::<VolumeRecord>::change(&self.volumes, id.as_str(), |state| {
            let record = state.record();
            Ok(match plan_detach(record.attachment.as_ref(), node) {
                DetachPlan::Nothing => None,
                DetachPlan::ReleaseFenced => Some(released(record)),
                DetachPlan::ReleaseIfQuiet if record.releasing => None,
                DetachPlan::ReleaseIfQuiet => Some(VolumeRecord { releasing: true, ..record.clone() }),
            })
        })?;
        let Some(state) = state else { return Ok(()) };
        let (Some(held), true) = (&state.record().attachment, state.record().releasing) else { return Ok(()) };
        if node != Some(&held.holder.node) {
            return Ok(());
        }
        let quiet = self.check_quiet(state.dir(), state.record(), held);
        self.end_release(id, &state, held, quiet)
    }

    fn nodes(&self) -> Result<Vec<volume::NodeRecord>> {
        self.check_reachable()?;
        self.all_nodes()
    }

    fn signs_of_life(&self) -> Result<Option<Vec<(NodeId, u64)>>> {
        self.marks_alive()
    }

    fn held_by(&self, node: &NodeId) -> Result<Vec<Volume>> {
        self.check_reachable()?;
        let mut held = Vec::new();
        for id in self.volume_ids()? {
            // A damaged record hides no other.
            let Ok(Some(state)) = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str()) else { continue };
            let record = state.record();
            if !record.deleting && record.attachment.as_ref().is_some_and(|held| held.holder.node == *node) {
                held.push(self.to_volume(state.dir(), record));
            }
        }
        Ok(held)
    }
}

impl Pool {
    /// `None`: nothing to write. Reads the node's record after the volume's, as every grant must.
    fn plan_grant(
        &self,
        dir: &Dir,
        record: &VolumeRecord,
        request: &AttachRequest<'_>,
    ) -> Result<Option<VolumeRecord>> {
        if record.deleting {
            return Err(no_volume(request.volume));
        }
        let node = self.known_node(request.node)?;
        self.check_reaches(&node.identity.id)?;
        if !record.kind.is_single_node() {
            // Only asks whether the node may have anything at all.
            return plan_attach(None, record.epoch, &node, request.read_only, now_ms()).map(|_| None);
        }
        let held =
            record.attachment.clone().map(|held| self.prove_reincarnated(dir, record, held, &node)).transpose()?;
        let plan = plan_attach(held.as_ref(), record.epoch, &node, request.read_only, now_ms())?;
        Ok(match plan {
            // A detach that was cut short is over: the holder is wanted again.
            AttachPlan::AlreadyHeld(_) if record.releasing => Some(VolumeRecord { releasing: false, ..record.clone() }),
            AttachPlan::AlreadyHeld(_) => None,
            AttachPlan::Grant(grant) => {
                self.check_limit(&node.identity.id, &record.id)?;
                Some(VolumeRecord { epoch: grant.epoch, attachment: Some(grant), staged: true, ..released(record) })
            }
        })
    }

    /// The second half of a detach: `marked` is the state with its mark, `quiet` what was seen of the holder since.
    fn end_release(
        &self,
        id: &VolumeId,
        marked: &RecordDir<VolumeRecord>,
        held: &Attachment,
        quiet: Result<()>,
    ) -> Result<()> {
        let still_releasing = |record: &VolumeRecord| {
            record.releasing && record.attachment.as_ref().is_some_and(|now| now.epoch == held.epoch)
        };
        let ended = RecordDir::<VolumeRecord>::change(&self.volumes, id.as_str(), |state| {
            let record = state.record();
            Ok(match &quiet {
                // Since any other change the holder may have been let in and connected again.
                Ok(()) => (state.generation() == marked.generation()).then(|| released(record)),
                Err(_) => still_releasing(record).then(|| VolumeRecord { releasing: false, ..record.clone() }),
            })
        })?;
        quiet?;
        match ended.as_ref().and_then(|state| state.record().attachment.as_ref()) {
            Some(again) if again.holder == held.holder && again.epoch == held.epoch && again.proof.is_none() => {
                Err(Error::new(ErrorKind::Busy, format!("volume {id} changed while it was detached; retry")))
            }
            _ => Ok(()),
        }
    }

    fn check_reaches(&self, node: &NodeId) -> Result<()> {
        match (self.config.scope, &self.config.node) {
            (Scope::Local, Some(own)) if own != node => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "pool {} is local to node {own}: node {node} cannot reach its volumes; schedule the workload by \
                     the volume's topology, or use a shared pool",
                    self.config.name
                ),
            )),
            _ => Ok(()),
        }
    }

    /// CSI 1.13, ControllerPublishVolume: RESOURCE_EXHAUSTED once the node has all it can take. Reads every record, so it costs
    /// nothing unless a limit is configured.
    fn check_limit(&self, node: &NodeId, wanted: &VolumeId) -> Result<()> {
        let Some(limit) = self.config.max_volumes_per_node else { return Ok(()) };
        let mut held = 0;
        // One that the node held in an earlier life takes its own place again.
        for id in self.volume_ids()?.iter().filter(|id| *id != wanted) {
            // One whose record cannot be read is held by nobody who could use it.
            let state = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str()).ok().flatten();
            let attachment = state.as_ref().and_then(|state| state.record().attachment.as_ref());
            held += u64::from(attachment.is_some_and(|held| held.holder.node == *node && held.proof.is_none()));
        }
        if held < limit {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Exhausted,
            format!(
                "node {node} holds {held} volumes and takes {limit} (max_volumes_per_node); detach one there or raise the limit"
            ),
        ))
    }

    /// A holder whose node has come back in a new life wrote its last: it takes a new incarnation only once its old
    /// mounts and devices are gone. Where this kernel sees the loops, it looks for itself.
    fn prove_reincarnated(
        &self,
        dir: &Dir,
        record: &VolumeRecord,
        held: Attachment,
        asking: &NodeRecord,
    ) -> Result<Attachment> {
        if held.proof.is_some() || held.holder.node == asking.identity.id {
            return Ok(held);
        }
        let Some(now) = self.find_node(&held.holder.node)? else { return Ok(held) };
        if now.identity.incarnation == held.holder.incarnation || self.check_quiet(dir, record, &held).is_err() {
            return Ok(held);
        }
        let proof = FenceProof {
            method: FenceMethod::Reincarnated,
            actor: format!("node:{}", held.holder.node),
            at_ms: now.registered_at_ms,
            fenced_image: record.image.clone(),
            evidence: vec![format!("registered as incarnation {}", now.identity.incarnation)],
        };
        Ok(Attachment { proof: Some(proof), ..held })
    }

    /// `FailedPrecondition` while the storage sees that the holder can still write.
    fn check_quiet(&self, dir: &Dir, record: &VolumeRecord, held: &Attachment) -> Result<()> {
        let connected = |what: String| {
            Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "volume {} is still connected on node {} {what}; unstage it there, or if that node is dead: \
                     hawser fence {}",
                    record.id, held.holder.node, held.holder.node
                ),
            ))
        };
        if !self.sees_all_loops() {
            return if record.connected { connected("by its own account".to_owned()) } else { Ok(()) };
        }
        // Of the current image alone: what a fenced holder still has of an orphan, or of a deleted volume of the same
        // name, keeps nobody.
        let Some(image) = &record.image else { return Ok(()) };
        let loops = self.loops_of_image(dir, image)?;
        let writes = |device: &&host::LoopDevice| match label_epoch(self.tag(), &record.id, &device.label) {
            Some(epoch) => epoch == held.epoch,
            None => !is_cut_off(device),
        };
        match loops.iter().filter(|device| is_not_newer(self.tag(), record, device, held.epoch)).find(writes) {
            Some(device) => connected(format!("as {}", device.path.display())),
            None => Ok(()),
        }
    }
}

/// The record without a holder.
fn released(record: &VolumeRecord) -> VolumeRecord {
    VolumeRecord { attachment: None, releasing: false, connected: false, ..record.clone() }
}

pub(crate) fn no_volume(id: &VolumeId) -> Error {
    Error::not_found(format!("there is no volume {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::lab;
    use conformance::backend::refused;
    use volume::FsType;

    /// One that slept after it found the holder quiet, while that was attached, connected, and is being detached again.
    #[test]
    fn a_late_detach_releases_nobody_who_came_back() {
        let Some((s, pool)) = lab("a_late_detach_releases_nobody_who_came_back", FsType::Xfs) else { return };
        let (id, n1) = (s.create("v").id, s.register("n1"));
        s.attach(&id, &n1).unwrap();
        let mark = || {
            RecordDir::<VolumeRecord>::change(&pool.volumes, id.as_str(), |state| {
                Ok(Some(VolumeRecord { releasing: true, ..state.record().clone() }))
            })
            .unwrap()
            .unwrap()
        };
        let marked = mark();
        let held = marked.record().attachment.clone().unwrap();
        let quiet = pool.check_quiet(marked.dir(), marked.record(), &held);
        s.attach(&id, &n1).unwrap();
        s.connect(&id, &n1, None).unwrap();
        drop(mark());
        refused(pool.end_release(&id, &marked, &held, quiet), ErrorKind::Busy);
        assert_eq!(s.holder(&id), Some(n1.id.clone()));
        s.disconnect(&id, &n1);
        s.detach(&id, Some(&n1)).unwrap();
        assert_eq!(s.holder(&id), None);
    }
}
