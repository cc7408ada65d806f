//! Faults begin and end.

use super::setup::What;
use super::world::{Event, World};

impl World {
    pub(super) fn begin(&mut self, what: What) {
        self.note(|| format!("FAULT begins: {what:?}"));
        let now = self.now;
        if let Some(n) = what.is_of_node() {
            self.nodes[n].causes += 1;
        }
        match what {
            What::NodeDown(n) => {
                self.nodes[n].down += 1;
                self.crash(n);
            }
            What::NodePaused(n) => self.nodes[n].paused += 1,
            What::ControlCut(n) => self.nodes[n].control_cut += 1,
            What::NodeStorageCut(n) => self.nodes[n].storage_cut += 1,
            What::AgentDead(n) => self.nodes[n].agent_dead += 1,
            What::KubeletDead(n) => self.nodes[n].kubelet_dead += 1,
            What::LinkCut(n, s) => self.nodes[n].link_cut[s] += 1,
            What::Maintenance(n) => {
                self.orchestrator.maintenance[n] += 1;
                if self.orchestrator.maintenance[n] == 1 {
                    self.orchestrator.maintenance_since[n] = now;
                }
            }
            What::SupervisorDown(s) => {
                self.shells[s].down += 1;
                self.shells[s].crash(now);
            }
            What::SupervisorPaused(s) => self.shells[s].paused += 1,
            What::SupervisorSuspended(s) => {
                self.shells[s].paused += 1;
                self.shells[s].suspended += 1;
                self.shells[s].suspended_since.get_or_insert(now);
            }
            What::SupervisorClockJump(s) => {
                let by_ms = self.rng.range(1_500, 600_000);
                self.shells[s].clock_offset_ms += by_ms;
            }
            What::SupervisorCutOff(s) => self.shells[s].cut_off += 1,
            What::SupervisorStorageCut(s) => self.shells[s].storage_cut += 1,
            What::SupervisorOrchestratorCut(s) => self.shells[s].orchestrator_cut += 1,
            What::LeaseLost => self.orchestrator.lease = None,
        }
    }

    pub(super) fn end(&mut self, what: What) {
        self.note(|| format!("FAULT ends: {what:?}"));
        if let Some(n) = what.is_of_node() {
            self.nodes[n].causes -= 1;
            self.nodes[n].cause_ended_ms = Some(self.now);
        }
        match what {
            What::NodeDown(n) => {
                self.nodes[n].down -= 1;
                if self.nodes[n].down == 0 {
                    self.start(n);
                }
            }
            What::NodePaused(n) => {
                self.nodes[n].paused -= 1;
                if self.nodes[n].paused == 0 {
                    let deferred = std::mem::take(&mut self.nodes[n].deferred);
                    self.resume(deferred);
                }
            }
            What::ControlCut(n) => self.nodes[n].control_cut -= 1,
            What::NodeStorageCut(n) => self.nodes[n].storage_cut -= 1,
            What::AgentDead(n) => self.nodes[n].agent_dead -= 1,
            What::KubeletDead(n) => self.nodes[n].kubelet_dead -= 1,
            What::LinkCut(n, s) => self.nodes[n].link_cut[s] -= 1,
            What::Maintenance(n) => self.orchestrator.maintenance[n] -= 1,
            What::SupervisorDown(s) => {
                self.shells[s].down -= 1;
                if self.shells[s].down == 0 {
                    let boot = self.shells[s].boot;
                    self.push(300, Event::SupervisorTick { s, boot });
                }
            }
            What::SupervisorPaused(s) => self.go_on(s),
            What::SupervisorSuspended(s) => {
                let now = self.now;
                self.shells[s].suspended -= 1;
                if self.shells[s].suspended == 0 {
                    self.shells[s].end_suspension(now);
                }
                self.go_on(s);
            }
            What::SupervisorCutOff(s) => self.shells[s].cut_off -= 1,
            What::SupervisorStorageCut(s) => self.shells[s].storage_cut -= 1,
            What::SupervisorOrchestratorCut(s) => self.shells[s].orchestrator_cut -= 1,
            What::SupervisorClockJump(_) | What::LeaseLost => {}
        }
    }

    fn go_on(&mut self, s: usize) {
        self.shells[s].paused -= 1;
        if self.shells[s].paused == 0 {
            let deferred = std::mem::take(&mut self.shells[s].deferred);
            self.resume(deferred);
        }
    }
}

impl What {
    /// Of which node it may look like the death.
    fn is_of_node(self) -> Option<usize> {
        match self {
            Self::NodeDown(n)
            | Self::NodePaused(n)
            | Self::ControlCut(n)
            | Self::NodeStorageCut(n)
            | Self::AgentDead(n)
            | Self::KubeletDead(n)
            | Self::LinkCut(n, _) => Some(n),
            _ => None,
        }
    }
}
