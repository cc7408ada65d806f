//! A node: the machine, its agent, its kubelet and the workloads that write.

use super::rng::Rng;
use super::setup::Setup;
use super::storage::Device;
use super::world::{Event, World};
use crate::{AgentState, Heartbeat};
use volume::{Epoch, Incarnation, NodeId};

pub(super) struct Machine {
    pub(super) id: NodeId,
    pub(super) boot: u32,
    pub(super) incarnation: Option<Incarnation>,
    pub(super) life: AgentState,
    sequence: u64,
    /// Ticks of this machine's clock in percent of true time.
    clock_percent: u64,
    /// Faults at work, each counted, since they overlap.
    pub(super) down: u32,
    pub(super) paused: u32,
    pub(super) control_cut: u32,
    pub(super) storage_cut: u32,
    pub(super) agent_dead: u32,
    pub(super) kubelet_dead: u32,
    pub(super) link_cut: Vec<u32>,
    /// Anything that may be taken for its death, and when that ended last.
    pub(super) causes: u32,
    pub(super) cause_ended_ms: Option<u64>,
    pub(super) deferred: Vec<Event>,
}

const HEARTBEAT_MS: u64 = 400;

impl Machine {
    pub(super) fn new(n: usize, setup: &Setup, rng: &mut Rng) -> Self {
        Self {
            id: NodeId::parse(&format!("node-{n}")).expect("a node id"),
            boot: 0,
            incarnation: None,
            life: AgentState::Running,
            sequence: 0,
            clock_percent: rng.range(96, 104),
            down: 0,
            paused: 0,
            control_cut: 0,
            storage_cut: 0,
            agent_dead: 0,
            kubelet_dead: 0,
            link_cut: vec![0; setup.supervisors],
            causes: 0,
            cause_ended_ms: None,
            deferred: Vec::new(),
        }
    }

    fn reaches_storage(&self) -> bool {
        self.storage_cut == 0
    }
}

impl World {
    fn is_of_boot(&self, n: usize, boot: u32) -> bool {
        self.nodes[n].down == 0 && self.nodes[n].boot == boot
    }

    pub(super) fn node_tick(&mut self, n: usize, boot: u32) {
        if !self.is_of_boot(n, boot) {
            return;
        }
        let after = HEARTBEAT_MS * self.nodes[n].clock_percent / 100;
        self.push(after, Event::NodeTick { n, boot });
        if self.nodes[n].agent_dead == 0 {
            self.agent(n);
        }
        let node = &self.nodes[n];
        if node.kubelet_dead == 0 && node.control_cut == 0 {
            self.orchestrator.statuses[n] = Some(self.now);
            self.kubelet(n);
        }
    }

    fn agent(&mut self, n: usize) {
        if self.nodes[n].reaches_storage() {
            self.storage.nodes[n].contact_ms = Some(self.now);
            self.attend_to_own_record(n);
        }
        let node = &mut self.nodes[n];
        node.sequence += 1;
        let Some(incarnation) = node.incarnation else { return };
        let heartbeat = Heartbeat {
            node: node.id.clone(),
            incarnation,
            sequence: node.sequence,
            state: node.life,
            sees_storage: node.reaches_storage(),
        };
        if node.control_cut > 0 {
            return;
        }
        for s in 0..self.shells.len() {
            if self.nodes[n].link_cut[s] == 0 && self.shells[s].cut_off == 0 {
                let boot = self.shells[s].boot;
                self.send(Event::Heard { s, boot, heartbeat: heartbeat.clone() });
            }
        }
    }

    /// Registers what life this is, or finds it fenced and cleans up.
    fn attend_to_own_record(&mut self, n: usize) {
        let outlives = self.setup.fence_outlives_registration;
        let incarnation = match self.nodes[n].incarnation {
            Some(incarnation) => incarnation,
            None => {
                // Booted: nothing of an earlier life is left.
                let incarnation = self.storage.new_incarnation();
                self.nodes[n].incarnation = Some(incarnation);
                self.nodes[n].life = AgentState::Running;
                incarnation
            }
        };
        let is_new = self.storage.incarnation(n) != Some(incarnation);
        if is_new {
            let id = self.nodes[n].id.clone();
            self.storage.register(n, &id, incarnation, outlives, self.now);
            self.note(|| format!("node {n} registered a new life"));
            if self.storage.is_fenced(n) {
                self.nodes[n].life = AgentState::Clean;
            }
        }
        let (is_fenced, boot) = (self.storage.is_fenced(n), self.nodes[n].boot);
        match self.nodes[n].life {
            AgentState::Running if is_fenced => {
                self.nodes[n].life = AgentState::CleaningUp;
                let after = self.rng.range(20, 800);
                self.push(after, Event::CleanUp { n, boot });
            }
            AgentState::Clean if !is_fenced => self.nodes[n].life = AgentState::Running,
            _ => {}
        }
    }

    /// Takes one device away after the other; with the last one gone a new life begins.
    pub(super) fn clean_up(&mut self, n: usize, boot: u32) {
        if !self.is_of_boot(n, boot) || self.nodes[n].life != AgentState::CleaningUp {
            return;
        }
        let after = self.rng.range(20, 400);
        if self.nodes[n].agent_dead > 0 || !self.nodes[n].reaches_storage() {
            self.push(after, Event::CleanUp { n, boot });
        } else if let Some(number) = self.storage.devices.iter().find(|device| device.n == n).map(|d| d.number) {
            self.storage.remove_device(number);
            self.push(after, Event::CleanUp { n, boot });
        } else {
            let incarnation = self.storage.new_incarnation();
            self.nodes[n].incarnation = Some(incarnation);
            self.nodes[n].life = AgentState::Running;
            self.attend_to_own_record(n);
        }
    }

    /// Starts what is bound here, stops what is not any more.
    fn kubelet(&mut self, n: usize) {
        for number in self.storage.devices.iter().filter(|d| d.n == n).map(|d| (d.number, d.uid)).collect::<Vec<_>>() {
            if self.orchestrator.bound(number.1).is_none_or(|(_, node)| node != n) {
                let after = self.rng.range(20, 600);
                self.push(after, Event::Stop { n, device: number.0 });
            }
        }
        if self.nodes[n].life != AgentState::Running || self.nodes[n].agent_dead > 0 {
            return;
        }
        for uid in self.orchestrator.to_start(n, self.now) {
            if !self.storage.devices.iter().any(|device| device.n == n && device.uid == uid) {
                self.orchestrator.starting(uid, self.now + 4_000);
                let after = self.delay();
                self.push(after, Event::AttachPlan { uid });
            }
        }
    }

    pub(super) fn connect(&mut self, n: usize, boot: u32, uid: u64, epoch: Epoch) {
        let node = &self.nodes[n];
        let (Some(incarnation), Some(volume)) = (node.incarnation, self.orchestrator.volume_of(uid)) else { return };
        let is_there = self.storage.devices.iter().any(|device| device.volume == volume && device.n == n);
        let may = self.may_use(volume, n, incarnation, epoch);
        if !self.is_of_boot(n, boot) || !may || is_there || !self.nodes[n].reaches_storage() {
            return;
        }
        self.storage.last_device += 1;
        let number = self.storage.last_device;
        let image = self.storage.volumes[volume].image;
        let device = Device { number, volume, n, uid, epoch, image, live_since: None, is_limited: false };
        self.storage.devices.push(device);
        let after = self.rng.range(1, 300);
        self.push(after, Event::Verify { n, boot, device: number });
    }

    /// Looks again after it connected, and lets go if a fence or a detach came between.
    pub(super) fn verify(&mut self, n: usize, boot: u32, number: u64) {
        let Some(device) = self.storage.device(number).cloned() else { return };
        let Some(incarnation) = self.nodes[n].incarnation else { return };
        let may = self.may_use(device.volume, n, incarnation, device.epoch);
        let is_running = self.nodes[n].life == AgentState::Running && self.nodes[n].agent_dead == 0;
        if !self.is_of_boot(n, boot) || !may || !is_running || !self.nodes[n].reaches_storage() {
            self.storage.remove_device(number);
            return;
        }
        let now = self.now;
        for device in self.storage.devices.iter_mut().filter(|device| device.number == number) {
            device.live_since = Some(now);
        }
        self.note(|| format!("{} writes to volume {} on node {n}, epoch {}", device.uid, device.volume, device.epoch));
        self.stats.starts += 1;
        self.write(n, number);
    }

    fn may_use(&self, volume: usize, n: usize, incarnation: Incarnation, epoch: Epoch) -> bool {
        self.storage.may_use(volume, n, incarnation, epoch)
            || self.control == Some(super::world::Control::GrantWithoutProof)
    }

    pub(super) fn write(&mut self, n: usize, number: u64) {
        let Some(device) = self.storage.device(number).filter(|device| device.live_since.is_some()) else { return };
        let image = device.image;
        if device.is_limited {
            // EIO: the workload ends there; its kubelet or the agent clears up.
            return;
        }
        self.storage.last_write += 1;
        let id = self.storage.last_write;
        self.storage.images[image].push(id);
        let after = self.rng.range(2, 80);
        self.push(after, Event::Ack { n, device: number, id });
    }

    pub(super) fn ack(&mut self, n: usize, number: u64, id: u32) {
        let Some(device) = self.storage.device(number) else { return };
        let volume = device.volume;
        self.check_ack(n, volume, id);
        self.storage.volumes[volume].acked.push(id);
        self.stats.acks += 1;
        let after = self.rng.range(150, 500);
        self.push(after, Event::Write { n, device: number });
    }

    pub(super) fn stop(&mut self, n: usize, number: u64) {
        let Some(device) = self.storage.device(number) else { return };
        if self.orchestrator.bound(device.uid).is_none_or(|(_, node)| node != n) {
            self.storage.remove_device(number);
        }
    }

    /// The machine loses power or crashes: its devices are gone, its images keep what was written.
    pub(super) fn crash(&mut self, n: usize) {
        self.nodes[n].boot += 1;
        self.nodes[n].deferred.clear();
        self.storage.devices.retain(|device| device.n != n);
    }

    pub(super) fn start(&mut self, n: usize) {
        self.nodes[n].incarnation = None;
        // The boot clock starts anew; incarnations keep the sequences apart.
        self.nodes[n].sequence = 0;
        let (boot, after) = (self.nodes[n].boot, self.rng.range(50, 1_500));
        self.push(after, Event::NodeTick { n, boot });
    }
}
