//! The storage's fence, step by step; its process may be killed or stopped between any two.

use super::setup::Mobility;
use super::shell::FenceRun;
use super::world::{Control, Event, World};
use crate::{Answer, FenceResult};
use volume::{Attachment, FenceMethod, FenceProof, Incarnation, NodeState};

#[derive(Debug, Clone)]
pub(super) enum FenceAt {
    /// The node's own record comes first: every grant reads it.
    Mark,
    Limit,
    /// Fork the image that was limited, then swap it in with the proof.
    Fork {
        generation: u64,
    },
    Swap {
        generation: u64,
        image: usize,
    },
}

impl World {
    pub(super) fn fence_step(&mut self, mut run: Box<FenceRun>) {
        let shell = &self.shells[run.s];
        if shell.down > 0 || shell.boot != run.boot {
            return;
        }
        if shell.storage_cut > 0 || self.trouble(self.setup.storage_error_percent) {
            self.reply(run.s, run.boot, run.token, Answer::Failed("the storage cannot be reached".to_owned()));
            return;
        }
        let goes_on = match run.at.clone() {
            FenceAt::Mark => self.mark(&mut run),
            FenceAt::Limit => self.limit(&mut run),
            FenceAt::Fork { generation } => self.fork(&mut run, generation),
            FenceAt::Swap { generation, image } => self.swap(&mut run, generation, image),
        };
        if goes_on {
            let hangs = self.trouble(self.setup.fence_hangs_percent);
            let after = if hangs { self.rng.range(5_000, 40_000) } else { self.delay() };
            self.push(after, Event::Fence(run));
        }
    }

    fn mark(&mut self, run: &mut FenceRun) -> bool {
        let node = &mut self.storage.nodes[run.n];
        let Some(record) = node.record.as_mut().filter(|record| record.identity.incarnation == run.incarnation) else {
            self.reply(run.s, run.boot, run.token, Answer::Failed("the node has begun another life".to_owned()));
            return false;
        };
        if !record.is_fenced() {
            record.state = NodeState::Fenced { actor: "supervisor".to_owned(), at_ms: self.now, powered_off: false };
            node.fenced_lives.insert(run.incarnation, self.now);
            self.stats.fences += 1;
            let (s, n) = (run.s, run.n);
            self.note(|| format!("supervisor {s} fences node {n}"));
            // Nothing can keep a process from being stopped right after it made sure. It cannot do harm then, only too much.
            if self.now - run.confirmed_ms <= super::check::RACE_MS {
                self.check_cause(run.s, run.n);
            }
        }
        let id = &self.nodes[run.n].id;
        let volumes = self.storage.volumes.iter().enumerate();
        run.left = volumes.filter(|(_, volume)| volume.is_held_by(id)).map(|(number, _)| number).collect();
        run.at = FenceAt::Limit;
        true
    }

    /// Goes on with the next volume, or answers.
    fn next(&mut self, run: &mut FenceRun, proof: Result<(), String>) -> bool {
        if let Some(volume) = run.left.pop() {
            let volume = self.storage.volumes[volume].id.clone();
            run.results.push(FenceResult { volume, proof });
        }
        (run.at, run.rounds) = (FenceAt::Limit, 0);
        true
    }

    fn limit(&mut self, run: &mut FenceRun) -> bool {
        let Some(&volume) = run.left.last() else {
            let results = std::mem::take(&mut run.results);
            self.reply(run.s, run.boot, run.token, Answer::Fenced(results));
            return false;
        };
        if self.trouble(self.setup.fence_lies_percent) {
            return self.next(run, Ok(()));
        }
        if matches!(self.setup.volumes[volume], Mobility::Local(_)) {
            return self.next(run, Err("the pool is the node's own".to_owned()));
        }
        let is_fenced = self.storage.is_fenced(run.n);
        let id = self.nodes[run.n].id.clone();
        let stored = &self.storage.volumes[volume];
        let Some(held) = stored.attachment.as_ref().filter(|held| held.holder.node == id && held.proof.is_none())
        else {
            return self.next(run, Ok(()));
        };
        if !is_fenced {
            return self.next(run, Err("the node came back while it was fenced".to_owned()));
        }
        let (image, epoch, generation) = (stored.image, held.epoch, stored.generation);
        if self.control != Some(Control::FenceWithoutEffect) {
            for device in self.storage.devices.iter_mut().filter(|d| d.image == image && d.epoch <= epoch) {
                device.is_limited = true;
            }
        }
        run.at = FenceAt::Fork { generation };
        true
    }

    fn fork(&mut self, run: &mut FenceRun, generation: u64) -> bool {
        let Some(&volume) = run.left.last() else { return false };
        let image = self.storage.volumes[volume].image;
        // Looks until it finds none that is not limited.
        let is_open = self.storage.devices.iter().any(|device| device.image == image && !device.is_limited);
        let has_changed = self.storage.volumes[volume].generation != generation;
        let is_control = self.control == Some(Control::FenceWithoutEffect);
        if has_changed || is_open && !is_control {
            return self.again(run);
        }
        let mut number = image;
        if !is_control {
            number = self.storage.images.len();
            let copy = self.storage.images[image].clone();
            self.storage.images.push(copy);
        }
        run.at = FenceAt::Swap { generation, image: number };
        true
    }

    fn swap(&mut self, run: &mut FenceRun, generation: u64, image: usize) -> bool {
        let Some(&volume) = run.left.last() else { return false };
        let stored = &mut self.storage.volumes[volume];
        if stored.generation != generation {
            return self.again(run);
        }
        let proof = FenceProof {
            method: FenceMethod::LimitAndFork,
            actor: String::new(),
            at_ms: self.now,
            fenced_image: None,
            evidence: Vec::new(),
        };
        stored.attachment = stored.attachment.take().map(|held| Attachment { proof: Some(proof), ..held });
        (stored.image, stored.releasing) = (image, false);
        stored.generation += 1;
        self.stats.proofs += 1;
        self.note(|| format!("volume {volume} has its proof"));
        self.check_image(volume);
        self.next(run, Ok(()))
    }

    fn again(&mut self, run: &mut FenceRun) -> bool {
        run.rounds += 1;
        if run.rounds > 8 {
            return self.next(run, Err("the record keeps changing".to_owned()));
        }
        run.at = FenceAt::Limit;
        true
    }

    /// Lifts the fence of that life, and refuses while anything of the node is connected from before.
    pub(super) fn unfence(&mut self, n: usize, incarnation: Incarnation) -> Answer {
        let node = &mut self.storage.nodes[n];
        let Some(record) = node.record.as_mut().filter(|record| record.identity.incarnation == incarnation) else {
            return Answer::Failed("the node has begun another life".to_owned());
        };
        if self.storage.devices.iter().any(|device| device.n == n && device.is_limited) {
            return Answer::Failed("the node still has devices of its fenced life".to_owned());
        }
        if record.is_fenced() {
            let id = &self.nodes[n].id;
            let unproven = |held: &Attachment| held.holder.node == *id && held.proof.is_none();
            let is_local = |number: usize| matches!(self.setup.volumes[number], Mobility::Local(_));
            let mut volumes = self.storage.volumes.iter().enumerate();
            let left = volumes.any(|(number, v)| !is_local(number) && v.attachment.as_ref().is_some_and(unproven));
            if left || self.storage.devices.iter().any(|device| device.n == n) {
                return Answer::Failed("the node still has something of its fenced life".to_owned());
            }
            record.state = NodeState::Live;
            node.fenced_lives.clear();
            self.note(|| format!("node {n} is unfenced"));
        }
        Answer::Done
    }
}
