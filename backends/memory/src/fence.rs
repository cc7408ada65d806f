//! The fence: the node's record, then for each of its volumes the limit on every loop, the fork, and the proof.

use crate::state::{Image, OrphanRecord};
use crate::{MemoryBackend, Storage, now_ms};
use host::Host;
use volume::{
    Error, ErrorKind, Fence, FenceHow, FenceMethod, FenceOutcome, FenceProof, FenceReport, Incarnation, NodeId,
    NodeRecord, NodeState, Orphan, Result, VolumeId,
};

const DEADLINE_MS: u64 = 10_000;
/// How long orphans are kept that nobody removes by hand.
const KEEP_MS: u64 = 24 * 60 * 60 * 1000;

impl Fence for MemoryBackend {
    fn fence(&self, node: &NodeId, expected: Option<Incarnation>, actor: &str, how: FenceHow) -> Result<FenceReport> {
        let storage = &self.storage;
        let (node, held) = {
            let mut state = storage.state();
            state.node(node)?.check_life(expected)?;
            if let Some(record) = state.nodes.get_mut(node) {
                mark_fenced(record, actor, how);
            }
            let is_held = |record: &&crate::state::VolumeRecord| {
                record.volume.attachment.as_ref().is_some_and(|held| held.holder.node == *node)
            };
            let held: Vec<VolumeId> = state.volumes.values().filter(is_held).map(|r| r.volume.id.clone()).collect();
            (state.node(node)?.clone(), held)
        };
        let fence_one = |volume: VolumeId| {
            let proof = storage.fence_volume(&volume, &node, actor, how);
            FenceOutcome { volume, proof }
        };
        let volumes = held.into_iter().map(fence_one).collect();
        Ok(FenceReport { node, volumes })
    }

    fn unfence(&self, node: &NodeId, expected: Option<Incarnation>, _actor: &str) -> Result<()> {
        let images: Vec<(VolumeId, Image)> = {
            let state = self.storage.state();
            state.node(node)?.check_life(expected)?;
            // An orphan's loop is what a fenced holder has left.
            let orphans = state.orphans.iter().filter(|record| record.node == *node).map(|record| {
                let image = Image { path: record.path.clone(), identity: record.orphan.image.clone() };
                (record.orphan.volume.clone(), image)
            });
            let current = state.volumes.values().filter_map(|record| {
                let held = record.volume.attachment.as_ref().filter(|held| held.holder.node == *node)?;
                held.proof.as_ref()?;
                Some((record.volume.id.clone(), record.image.clone()?))
            });
            current.chain(orphans).collect()
        };
        let loops = self.storage.host.loops()?;
        for (volume, image) in images {
            if let Some(device) = loops.iter().find(|device| device.backing_inode == image.identity.inode) {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!(
                        "node {node} stays fenced: volume {volume} is still connected as {}",
                        device.path.display()
                    ),
                ));
            }
        }
        if let Some(record) = self.storage.state().nodes.get_mut(node) {
            record.check_life(expected)?;
            record.state = NodeState::Live;
        }
        Ok(())
    }

    fn orphans(&self) -> Result<Vec<Orphan>> {
        Ok(self.storage.state().orphans.iter().map(|record| record.orphan.clone()).collect())
    }

    fn remove_orphans(&self, volume: Option<&VolumeId>) -> Result<Vec<Orphan>> {
        let now = now_ms();
        let is_due = |record: &mut OrphanRecord| match volume {
            Some(volume) => record.orphan.volume == *volume,
            None => now.saturating_sub(record.orphan.created_at_ms) >= KEEP_MS,
        };
        let mut state = self.storage.state();
        let removed: Vec<OrphanRecord> = state.orphans.extract_if(.., is_due).collect();
        for record in &removed {
            self.storage.host.remove_all(&record.path);
        }
        Ok(removed.into_iter().map(|record| record.orphan).collect())
    }
}

fn mark_fenced(record: &mut NodeRecord, actor: &str, how: FenceHow) {
    let powered_off = how == FenceHow::PoweredOff;
    // The first fence stands as it was recorded, but an administrator's word adds to it.
    if !record.is_fenced() || powered_off {
        record.state = NodeState::Fenced { actor: actor.to_owned(), at_ms: now_ms(), powered_off };
    }
}

impl Storage {
    fn fence_volume(&self, id: &VolumeId, node: &NodeRecord, actor: &str, how: FenceHow) -> Result<FenceProof> {
        let (held, image) = {
            let state = self.state();
            let record = state.volume(id)?;
            (record.volume.attachment.clone(), record.image.clone())
        };
        let held = held.filter(|held| held.holder.node == node.identity.id).ok_or_else(|| moved_on(id))?;
        if let Some(proof) = held.proof {
            return Ok(proof);
        }
        let mut evidence = Vec::new();
        if how == FenceHow::Enforce {
            // Again until none is left: a stage under way may attach after the first look.
            loop {
                let loops = self.writable_loops(image.as_ref())?;
                if loops.is_empty() {
                    break;
                }
                for device in loops {
                    if let Some(fenced) = self.host.fence_loop(&device, DEADLINE_MS)? {
                        evidence.push(format!(
                            "{} limited to {} bytes",
                            device.path.display(),
                            fenced.size_limit_bytes
                        ));
                    }
                }
            }
        }
        let mut state = self.state();
        let record = state.volume_mut(id)?;
        let allocated_bytes = self.allocated_bytes(record);
        let Some(current) = record.volume.attachment.as_mut() else { return Err(moved_on(id)) };
        if current.holder != held.holder || current.epoch != held.epoch {
            return Err(moved_on(id));
        }
        if let Some(proof) = &current.proof {
            return Ok(proof.clone());
        }
        let method = match how {
            FenceHow::Enforce => FenceMethod::LimitAndFork,
            FenceHow::PoweredOff => FenceMethod::PoweredOff,
        };
        let fenced_image = image.as_ref().map(|image| image.identity.clone());
        let at_ms = now_ms();
        let proof = FenceProof { method, actor: actor.to_owned(), at_ms, fenced_image, evidence };
        let fork = match (how, image) {
            (FenceHow::Enforce, Some(old)) => {
                let path = self.image_path(id, held.epoch.next());
                self.host.clone_image(&old.path, &path)?;
                let identity = self.host.image_identity(&path)?;
                Some((old, Image { path, identity }))
            }
            _ => None,
        };
        current.proof = Some(proof.clone());
        if let Some((old, new)) = fork {
            record.image = Some(new);
            let orphan = Orphan { volume: id.clone(), image: old.identity, allocated_bytes, created_at_ms: at_ms };
            state.orphans.push(OrphanRecord { orphan, node: held.holder.node, path: old.path });
        }
        Ok(proof)
    }
}

fn moved_on(id: &VolumeId) -> Error {
    Error::new(ErrorKind::Busy, format!("the attachment of volume {id} changed while it was fenced; retry"))
}
