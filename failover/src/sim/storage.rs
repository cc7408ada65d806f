//! The storage: records changed by compare-and-swap as the attachment contract of `volume` decides, images that a fence
//! forks, and devices that write to them. What holds here for real is what the invariants are checked against.

use super::setup::{Mobility, Setup};
use super::world::{Control, Event, World};
use crate::{Stays, StorageView, VolumeView, Witness};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use std::collections::BTreeMap;
use volume::{
    AttachPlan, Attachment, DetachPlan, Epoch, Holder, Incarnation, NodeId, NodeIdentity, NodeRecord, NodeState,
    Segments, VolumeId, plan_attach, plan_detach,
};

/// The storage counts a node as silent after this long without its mark.
const SILENT_AFTER_MS: u64 = 1_200;

pub(super) struct Storage {
    pub(super) nodes: Vec<StoredNode>,
    pub(super) volumes: Vec<StoredVolume>,
    /// What was written to each image, in order.
    pub(super) images: Vec<Vec<u32>>,
    pub(super) devices: Vec<Device>,
    pub(super) last_device: u64,
    pub(super) last_write: u32,
    last_incarnation: u64,
}

pub(super) struct StoredNode {
    /// None until it registers.
    pub(super) record: Option<NodeRecord>,
    pub(super) contact_ms: Option<u64>,
    /// The lives whose fence stands, and since when.
    pub(super) fenced_lives: BTreeMap<Incarnation, u64>,
}

pub(super) struct StoredVolume {
    pub(super) id: VolumeId,
    pub(super) mobility: Mobility,
    pub(super) generation: u64,
    pub(super) epoch: Epoch,
    pub(super) attachment: Option<Attachment>,
    pub(super) releasing: bool,
    pub(super) image: usize,
    /// What workloads were told is safe.
    pub(super) acked: Vec<u32>,
}

/// A node's connection to an image.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) number: u64,
    pub(super) volume: usize,
    pub(super) n: usize,
    pub(super) uid: u64,
    pub(super) epoch: Epoch,
    pub(super) image: usize,
    /// A workload writes to it, since then.
    pub(super) live_since: Option<u64>,
    /// Cut off by a fence: every further write fails.
    pub(super) is_limited: bool,
}

impl Storage {
    pub(super) fn new(setup: &Setup) -> Self {
        let volumes: Vec<StoredVolume> = setup.volumes.iter().enumerate().map(StoredVolume::new).collect();
        Self {
            nodes: (0..setup.nodes)
                .map(|_| StoredNode { record: None, contact_ms: None, fenced_lives: BTreeMap::new() })
                .collect(),
            images: vec![Vec::new(); volumes.len()],
            volumes,
            devices: Vec::new(),
            last_device: 0,
            last_write: 0,
            last_incarnation: 0,
        }
    }

    pub(super) fn new_incarnation(&mut self) -> Incarnation {
        self.last_incarnation += 1;
        let text = format!("{:032x}", self.last_incarnation);
        let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
            text.as_str().into_deserializer();
        Incarnation::deserialize(deserializer).expect("32 hex digits are an incarnation")
    }

    /// As the pool: another incarnation is a new life, and unless the fence outlives that it starts live.
    pub(super) fn register(&mut self, n: usize, id: &NodeId, incarnation: Incarnation, outlives: bool, now: u64) {
        let node = &mut self.nodes[n];
        let state = match &node.record {
            Some(known) if known.identity.incarnation == incarnation => return,
            Some(known) if outlives && known.is_fenced() => {
                node.fenced_lives.insert(incarnation, now);
                known.state.clone()
            }
            _ => {
                node.fenced_lives.clear();
                NodeState::Live
            }
        };
        let identity = NodeIdentity { id: id.clone(), incarnation, boot_id: String::new() };
        node.record = Some(NodeRecord { identity, state, topology: Segments::default(), registered_at_ms: 0 });
    }

    pub(super) fn is_fenced(&self, n: usize) -> bool {
        self.nodes[n].record.as_ref().is_some_and(NodeRecord::is_fenced)
    }

    pub(super) fn incarnation(&self, n: usize) -> Option<Incarnation> {
        self.nodes[n].record.as_ref().map(|record| record.identity.incarnation)
    }

    pub(super) fn witness(&self, n: usize, now: u64) -> Witness {
        match self.nodes[n].contact_ms {
            Some(contact) if now - contact < SILENT_AFTER_MS => Witness::Active,
            _ => Witness::Silent,
        }
    }

    pub(super) fn view(&self, n: usize) -> Option<StorageView> {
        let record = self.nodes[n].record.as_ref()?;
        let held = self.volumes.iter().filter(|volume| volume.is_held_by(&record.identity.id));
        let view = |volume: &StoredVolume| VolumeView {
            id: volume.id.clone(),
            is_proven: volume.attachment.as_ref().is_some_and(|held| held.proof.is_some()),
            stays: match volume.mobility {
                Mobility::Moves => None,
                Mobility::OptedOut => Some(Stays::OptedOut),
                Mobility::Local(_) => Some(Stays::NoFence("the pool is this node's own".to_owned())),
            },
        };
        Some(StorageView {
            incarnation: record.identity.incarnation,
            is_fenced: record.is_fenced(),
            volumes: held.map(view).collect(),
        })
    }

    pub(super) fn device(&self, number: u64) -> Option<&Device> {
        self.devices.iter().find(|device| device.number == number)
    }

    pub(super) fn remove_device(&mut self, number: u64) {
        self.devices.retain(|device| device.number != number);
    }

    /// Whether the grant is the node's to use now; it asks before and after it connects.
    pub(super) fn may_use(&self, volume: usize, n: usize, incarnation: Incarnation, epoch: Epoch) -> bool {
        let StoredVolume { attachment, releasing, .. } = &self.volumes[volume];
        let is_own =
            |held: &Attachment| held.holder.incarnation == incarnation && held.epoch == epoch && held.proof.is_none();
        attachment.as_ref().is_some_and(is_own)
            && !releasing
            && !self.is_fenced(n)
            && self.incarnation(n) == Some(incarnation)
    }
}

impl World {
    pub(super) fn attach_plan(&mut self, uid: u64) {
        let Some((volume, n)) = self.orchestrator.bound(uid) else { return };
        self.orchestrator.starting(uid, self.now + 4_000);
        let stored = &self.storage.volumes[volume];
        let Some(node) = &self.storage.nodes[n].record else { return };
        let plan = match self.control {
            Some(Control::GrantWithoutProof) => Ok(careless(stored, node)),
            _ => plan_attach(stored.attachment.as_ref(), stored.epoch, node, false, self.now),
        };
        let read_at = stored.generation;
        match plan {
            Ok(plan) => {
                let after = self.delay();
                self.push(after, Event::AttachSwap { uid, read_at, plan: Box::new(plan) });
            }
            Err(_) => {
                self.stats.refused_attaches += 1;
                let after = self.rng.range(300, 700);
                self.push(after, Event::AttachPlan { uid });
            }
        }
    }

    pub(super) fn attach_swap(&mut self, uid: u64, read_at: u64, plan: AttachPlan) {
        let Some((volume, n)) = self.orchestrator.bound(uid) else { return };
        let stored = &mut self.storage.volumes[volume];
        if stored.generation != read_at {
            self.push(100, Event::AttachPlan { uid });
            return;
        }
        let epoch = match plan {
            AttachPlan::AlreadyHeld(epoch) => epoch,
            AttachPlan::Grant(grant) => {
                stored.epoch = grant.epoch;
                stored.attachment = Some(grant);
                stored.epoch
            }
        };
        stored.releasing = false;
        stored.generation += 1;
        let is_fenced = self.storage.is_fenced(n) && self.control != Some(Control::GrantWithoutProof);
        self.note(|| format!("granted volume {volume} to node {n}, epoch {epoch}, for {uid}, fenced {is_fenced}"));
        if is_fenced {
            // The grant stays for the next fence to find; it is not given out.
            self.push(500, Event::AttachPlan { uid });
            return;
        }
        let after = self.delay();
        let boot = self.nodes[n].boot;
        self.push(after, Event::Connect { n, boot, uid, epoch });
    }

    pub(super) fn detach(&mut self, volume: usize, n: usize) {
        let id = &self.nodes[n].id;
        let stored = &mut self.storage.volumes[volume];
        match plan_detach(stored.attachment.as_ref(), Some(id)) {
            DetachPlan::Nothing => {}
            DetachPlan::ReleaseFenced => {
                (stored.attachment, stored.releasing) = (None, false);
                stored.generation += 1;
            }
            DetachPlan::ReleaseIfQuiet => {
                stored.releasing = true;
                stored.generation += 1;
                let marked_at = stored.generation;
                let after = self.delay();
                self.push(after, Event::DetachEnd { volume, marked_at });
            }
        }
    }

    pub(super) fn detach_end(&mut self, volume: usize, marked_at: u64) {
        let stored = &mut self.storage.volumes[volume];
        if stored.generation != marked_at || !stored.releasing {
            return;
        }
        let image = stored.image;
        let is_quiet = !self.storage.devices.iter().any(|device| device.image == image);
        stored.releasing = false;
        stored.generation += 1;
        if is_quiet {
            stored.attachment = None;
        }
    }
}

impl StoredVolume {
    fn new((number, mobility): (usize, &Mobility)) -> Self {
        Self {
            id: VolumeId::parse(&format!("sim.v{number:032x}")).expect("a volume id"),
            mobility: *mobility,
            generation: 0,
            epoch: Epoch(0),
            attachment: None,
            releasing: false,
            image: number,
            acked: Vec::new(),
        }
    }

    pub(super) fn is_held_by(&self, node: &NodeId) -> bool {
        self.attachment.as_ref().is_some_and(|held| held.holder.node == *node)
    }
}

/// What a driver without the contract does: whoever asks gets the volume.
fn careless(stored: &StoredVolume, node: &NodeRecord) -> AttachPlan {
    let holder = Holder { node: node.identity.id.clone(), incarnation: node.identity.incarnation };
    AttachPlan::Grant(Attachment {
        holder,
        epoch: stored.epoch.next(),
        read_only: false,
        granted_at_ms: 0,
        proof: None,
    })
}
