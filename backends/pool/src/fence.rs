//! Cutting a node off from the volumes it holds, in an order in which each step may be the last before a crash:
//! the node's record, then for each volume every loop of its image, the fork, and one swap of the record.
//!
//! Where the pool's file system is this kernel's own, all loops are in sight and each is limited; where it can clone
//! files, the image is forked besides, because a process that has the loop open could undo the limit. On a network file system a fork is
//! all there is. When an administrator says that the machine is off, the same is done as far as it goes: it costs
//! milliseconds, and if they err, what the node still writes lands in an orphan.

use crate::ballast::with_ballast;
use crate::loops::{is_cut_off, is_not_newer};
use crate::model::{Former, VolumeRecord, fork_name, image_epoch, label_epoch};
use crate::record::{RecordDir, Swap};
use crate::{Pool, now_ms};
use host::LoopDevice;
use host::file::{Dir, allocate, clone_file};
use std::time::{Duration, Instant};
use volume::{
    Attachment, Epoch, Error, ErrorKind, Fence, FenceHow, FenceMethod, FenceOutcome, FenceProof, FenceReport,
    ImageIdentity, Incarnation, NodeId, Orphan, Result, VolumeId, VolumeKind,
};

/// Volumes fenced at the same time: more would only queue at the pool's disk.
const AT_ONCE: usize = 8;
/// Another fencer that is faster ends this one's work; this many others in a row are none.
const MAX_ROUNDS: u32 = 16;
/// Formers kept in a record, the latest: it must not grow without bound.
const MAX_FORMERS: usize = 256;
/// Two that limit one loop at the same time disturb each other.
const MAX_COLLISIONS: u32 = 16;

impl Fence for Pool {
    fn fence(&self, node: &NodeId, expected: Option<Incarnation>, actor: &str, how: FenceHow) -> Result<FenceReport> {
        self.check_reachable()?;
        let record = self.mark_fenced(node, expected, actor, how)?;
        tracing::warn!(%node, actor, ?how, "fencing");
        let mut held = Vec::new();
        let mut volumes = Vec::new();
        for id in self.volume_ids()? {
            match self.is_held(&id, node) {
                Ok(true) => held.push(id),
                Ok(false) => {}
                // It may name the node as its holder.
                Err(error) => volumes.push(FenceOutcome { volume: id, proof: Err(error) }),
            }
        }
        for ids in held.chunks(AT_ONCE) {
            volumes.extend(self.fence_together(ids, node, actor, how));
        }
        Ok(FenceReport { node: record, volumes })
    }

    fn unfence(&self, node: &NodeId, expected: Option<Incarnation>, actor: &str) -> Result<()> {
        self.check_reachable()?;
        let seen = self.known_node(node)?;
        // What is lifted in the end is the fence of this very life, or none.
        seen.check_life(expected)?;
        if !seen.is_fenced() {
            return Ok(());
        }
        self.check_sees_node(&seen)?;
        for id in self.volume_ids()? {
            let state = RecordDir::<VolumeRecord>::change(&self.volumes, id.as_str(), |state| {
                self.check_clean(state.dir(), state.record(), node)?;
                let record = state.record();
                let former: Vec<_> = record.former.iter().filter(|f| f.holder.node != *node).cloned().collect();
                Ok((former.len() < record.former.len()).then(|| VolumeRecord { former, ..record.clone() }))
            });
            state?;
        }
        self.mark_live(&seen)?;
        tracing::warn!(%node, actor, "unfenced");
        Ok(())
    }

    fn orphans(&self) -> Result<Vec<Orphan>> {
        self.all_orphans()
    }

    fn remove_orphans(&self, volume: Option<&VolumeId>) -> Result<Vec<Orphan>> {
        self.remove_old_orphans(volume)
    }
}

impl Pool {
    fn is_held(&self, id: &VolumeId, node: &NodeId) -> Result<bool> {
        let state = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())?;
        Ok(state.is_some_and(|state| holding(state.record(), node).is_some()))
    }

    /// Each on a thread of its own with a deadline, so one that hangs keeps no other from its proof.
    fn fence_together(&self, ids: &[VolumeId], node: &NodeId, actor: &str, how: FenceHow) -> Vec<FenceOutcome> {
        let one = |id: &VolumeId| {
            let (pool, id, node, actor) = (self.clone(), id.clone(), node.clone(), actor.to_owned());
            let what = format!("fencing node {node} from volume {id}");
            host::deadline::run(self.config.fence_deadline_ms, &what, move || {
                pool.fence_volume(&id, &node, &actor, how)
            })
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = ids.iter().map(|id| (id, scope.spawn(move || one(id)))).collect();
            let ended = running.into_iter().map(|(id, thread)| {
                let proof = thread.join().unwrap_or_else(|_| Err(Error::internal("a fence ended unexpectedly")));
                (id, proof)
            });
            let outcome = |(id, proof): (&VolumeId, Result<Option<FenceProof>>)| {
                if let Err(error) = &proof {
                    tracing::error!(volume = %id, %node, error = error.chain(), "not fenced");
                }
                proof.transpose().map(|proof| FenceOutcome { volume: id.clone(), proof })
            };
            ended.filter_map(outcome).collect()
        })
    }

    /// `None` when the node holds the volume no more.
    fn fence_volume(&self, id: &VolumeId, node: &NodeId, actor: &str, how: FenceHow) -> Result<Option<FenceProof>> {
        for _ in 0..MAX_ROUNDS {
            let Some(mut state) = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())? else {
                return Ok(None);
            };
            let record = state.record().clone();
            let Some(held) = holding(&record, node).cloned() else {
                // A fence that somebody built on before it was seen to be won is not tidied up after yet.
                self.settle_logged(&state);
                return Ok(None);
            };
            if let Some(proof) = &held.proof {
                state.dir().sync()?;
                self.settle_logged(&state);
                return Ok(Some(proof.clone()));
            }
            // After the volume's record, as a grant reads it: a fence that slept must not hit the node's next life.
            if !self.known_node(node)?.is_fenced() {
                let message = format!("node {node} came back while it was fenced; volume {id} is left to it");
                return Err(Error::new(ErrorKind::Busy, message));
            }
            let (method, forks) = self.method(&record, how)?;
            let (forks, evidence) = if self.config.is_fence_pretended {
                tracing::error!(volume = %id, %node, "NOTHING IS CUT OFF: this is a test without a fence");
                (false, vec!["nothing was cut off: a test without a fence".to_owned()])
            } else {
                (forks, self.cut_off(state.dir(), &record, held.epoch)?)
            };
            let fork = match forks.then(|| with_ballast(&self.volumes, || self.fork(state.dir(), &record))).transpose()
            {
                Ok(fork) => fork,
                // Another fencer was faster, and the image has another name already.
                Err(_) if !state.is_latest()? => continue,
                Err(error) => return Err(error),
            };
            let proof = FenceProof {
                method,
                actor: actor.to_owned(),
                at_ms: now_ms(),
                fenced_image: record.image.clone(),
                evidence,
            };
            // When this fails it is open which record counts, so the fork stays; a retry finds out.
            match state.publish(fenced(&record, &held, &proof, fork.clone()))? {
                Swap::Won => {
                    tracing::warn!(volume = %id, %node, epoch = %held.epoch, ?method, "fenced");
                    self.settle_logged(&state);
                    return Ok(Some(proof));
                }
                Swap::Lost => self.drop_unless_recorded(id, fork)?,
            }
        }
        Err(Error::new(ErrorKind::Busy, format!("the record of volume {id} keeps changing under the fence; retry")))
    }

    /// How this pool cuts off a holder of this volume, and whether it forks; decided before anything is touched.
    fn method(&self, record: &VolumeRecord, how: FenceHow) -> Result<(FenceMethod, bool)> {
        let refuse = |kind, what: &str| {
            let message = format!("volume {} cannot be fenced: {what}", record.id);
            Err(Error::new(kind, format!("{message}; if the machine is off: hawser fence NODE --powered-off")))
        };
        match how {
            FenceHow::PoweredOff => Ok((FenceMethod::PoweredOff, self.reflink)),
            FenceHow::Enforce if self.sees_all_loops() => match record.kind {
                _ if self.reflink => Ok((FenceMethod::LimitAndFork, true)),
                VolumeKind::Block => refuse(
                    ErrorKind::Unsupported,
                    "its image must be forked, since a workload can undo a raw block device's limit, and the pool's \
                     file system cannot clone files",
                ),
                VolumeKind::FileSystem(_) | VolumeKind::Directory => Ok((FenceMethod::Limit, false)),
            },
            FenceHow::Enforce if !self.config.allow_fork_only_fence => refuse(
                ErrorKind::FailedPrecondition,
                "the pool is on a network file system, where a fence loses what the node still acknowledges; it is \
                 allowed by allow_fork_only_fence",
            ),
            FenceHow::Enforce if self.reflink => Ok((FenceMethod::Fork, true)),
            FenceHow::Enforce => refuse(ErrorKind::Unsupported, "the pool's network file system cannot clone files"),
        }
    }

    /// Limits every loop of the image that the holder of `epoch` can have, until a look finds none that is not. All are
    /// limited at least once by this very run: what an earlier one began may have been cut short.
    fn cut_off(&self, dir: &Dir, record: &VolumeRecord, epoch: Epoch) -> Result<Vec<String>> {
        let Some(image) = &record.image else { return Ok(Vec::new()) };
        if !self.sees_all_loops() {
            return Ok(vec!["loops of other machines are out of sight".to_owned()]);
        }
        let ends = Instant::now() + Duration::from_millis(self.config.fence_deadline_ms);
        let mut done: Vec<LoopDevice> = Vec::new();
        let mut evidence = Vec::new();
        let mut collisions = 0;
        loop {
            let mut loops = self.list_loops_of_image(dir, image)?;
            loops.retain(|device| is_not_newer(self.tag(), record, device, epoch));
            loops.retain(|device| !(is_cut_off(device) && done.iter().any(|known| known.number == device.number)));
            if loops.is_empty() {
                break;
            }
            for device in loops {
                let left = ends.saturating_duration_since(Instant::now());
                let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                if left == 0 {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        format!("new devices of volume {} kept appearing while it was fenced; retry", record.id),
                    ));
                }
                match self.host.fence_loop(&device, left) {
                    Ok(Some(fenced)) => {
                        let how = if fenced.froze { "frozen and limited" } else { "limited twice" };
                        let path = device.path.display();
                        evidence.push(format!("{path} ({}) {how} to {} bytes", device.label, fenced.size_limit_bytes));
                        done.push(device);
                    }
                    Ok(None) => {}
                    // Another fencer set its own limit between this one's and the reading back; neither has a proof yet.
                    Err(error) if error.kind() == ErrorKind::Internal && collisions < MAX_COLLISIONS => {
                        collisions += 1;
                        let (random, ..) = uuid::Uuid::new_v4().as_fields();
                        std::thread::sleep(Duration::from_millis(u64::from(random % 100)));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if evidence.is_empty() {
            evidence.push(format!("no loop device of inode {} on this kernel", image.inode));
        }
        Ok(evidence)
    }

    /// Clones the image into a new one that nothing refers to yet.
    fn fork(&self, dir: &Dir, record: &VolumeRecord) -> Result<ImageIdentity> {
        let image = record.image.as_ref().ok_or_else(|| Error::internal("a volume without image is forked"))?;
        let source = self.open_image(dir, image)?;
        let unnamed = dir.unnamed_file()?;
        clone_file(&source, unnamed.file(), self.effects())?;
        // A clone has only what was written. The volume is worth more than its promise of space.
        if record.thick
            && let Err(error) = allocate(unnamed.file(), 0..record.size_bytes, self.effects())
        {
            tracing::warn!(volume = %record.id, error = error.chain(), "the fork of a thick volume is thin");
        }
        let found = host::file::identity(unnamed.file())?;
        // Above every number that is or was in use: names of images are never used twice.
        let above = image_epoch(&image.name).unwrap_or_default().max(record.epoch);
        let name = fork_name(above.next());
        if !dir.link_unnamed(unnamed, &name)? {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{} is there already; retry", dir.path().join(name).display()),
            ));
        }
        Ok(ImageIdentity { name, inode: found.inode, generation: found.generation })
    }

    /// After a lost swap: the fork goes, unless the swap was won after all and somebody has built on it.
    fn drop_unless_recorded(&self, id: &VolumeId, fork: Option<ImageIdentity>) -> Result<()> {
        let Some(fork) = fork else { return Ok(()) };
        let Some(state) = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())? else { return Ok(()) };
        let record = state.record();
        let is = |image: &ImageIdentity| image.inode == fork.inode && image.name == fork.name;
        let recorded =
            record.image.iter().any(is) || record.former.iter().any(|former| former.image.as_ref().is_some_and(is));
        if recorded {
            return Ok(());
        }
        state.dir().remove_file(&fork.name).map(drop)
    }

    /// What the node did on machines whose loops are out of sight cannot be checked, so it has to be off, or to come
    /// back by itself in a new life.
    fn check_sees_node(&self, node: &volume::NodeRecord) -> Result<()> {
        let off = matches!(node.state, volume::NodeState::Fenced { powered_off: true, .. });
        if off || self.sees_all_loops() {
            return Ok(());
        }
        let id = &node.identity.id;
        Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "node {id} cannot be seen clean from here, since the pool is on a network file system: restart its \
                 driver, which unfences it once its old mounts are gone, or: hawser fence {id} --powered-off"
            ),
        ))
    }

    /// `FailedPrecondition` while something of the fenced node can still write to this volume or one of its images.
    fn check_clean(&self, dir: &Dir, record: &VolumeRecord, node: &NodeId) -> Result<()> {
        let refuse = |what: String| {
            let message = format!("node {node} cannot be unfenced: {what}");
            Err(Error::new(ErrorKind::FailedPrecondition, message))
        };
        let mut epochs: Vec<Epoch> = record.former.iter().filter(|f| f.holder.node == *node).map(|f| f.epoch).collect();
        if let Some(held) = holding(record, node) {
            if held.proof.is_none() {
                return refuse(format!("it holds volume {} without a proof; finish: hawser fence {node}", record.id));
            }
            epochs.push(held.epoch);
        }
        if epochs.is_empty() {
            return Ok(());
        }
        let left = |device: &&LoopDevice| match label_epoch(self.tag(), &record.id, &device.label) {
            Some(epoch) => epochs.contains(&epoch),
            None => true,
        };
        match self.loops_of_volume(dir, record)?.iter().find(left) {
            None => Ok(()),
            Some(device) => refuse(format!(
                "it still has {} of volume {}; unmount and detach it there (its driver does so when it starts)",
                device.path.display(),
                record.id
            )),
        }
    }
}

fn holding<'a>(record: &'a VolumeRecord, node: &NodeId) -> Option<&'a Attachment> {
    record.attachment.as_ref().filter(|held| held.holder.node == *node)
}

/// The record with the proof, and with the fork in place of the image.
fn fenced(record: &VolumeRecord, held: &Attachment, proof: &FenceProof, fork: Option<ImageIdentity>) -> VolumeRecord {
    let mut former = record.former.clone();
    former.push(Former {
        holder: held.holder.clone(),
        epoch: held.epoch,
        image: record.image.clone(),
        fenced_at_ms: proof.at_ms,
    });
    former.drain(..former.len().saturating_sub(MAX_FORMERS));
    VolumeRecord {
        image: fork.or_else(|| record.image.clone()),
        attachment: Some(Attachment { proof: Some(proof.clone()), ..held.clone() }),
        releasing: false,
        connected: false,
        former,
        ..record.clone()
    }
}

#[cfg(test)]
mod tests;
