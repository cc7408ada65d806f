//! What is done to nodes: first at once, then while the workload moves, and in the end undone.

use super::clock::now_ns;
use super::installed;
use crate::failure::{Result, ensure};
use crate::kubernetes::Lab;
use crate::kubernetes::driver::{CONTROLLER, NODE_DRIVER};
use crate::kubernetes::node::Node;
use std::time::Duration;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// Everything on it ends at once.
    NodeKilled,
    /// Every process stops where it is, and goes on once the workload runs elsewhere.
    NodeFrozen,
    /// No control plane and no other node is reached; pods go on, and so does their storage.
    ControlCut,
    /// Kubelet is gone; pods and the driver go on.
    KubeletDead,
    /// The node is killed, and a moment later the supervisor that leads.
    SupervisorKilled,
    /// Two nodes are killed.
    TwoNodes,
    /// The node is killed, comes back while the workload moves, and is killed again.
    RebootTwice,
    /// The node is killed, and its object deleted: nothing is left of it that a taint could be on.
    NodeDeleted,
    /// As [`Fault::ControlCut`], and the driver stands still: pods go on, and nobody on the node notices what is done to it.
    DriverStopped,
}

/// What was done when.
#[derive(Debug, Default)]
pub(super) struct Acts(pub(super) Vec<(String, u64)>);

/// For what Kubernetes and the driver do in between.
const UNTIL_KILLED_MS: u64 = 3000;
const UNTIL_BACK_MS: (u64, u64) = (500, 2500);
const UNTIL_KILLED_AGAIN_MS: u64 = 2000;
const FREEZE_TRIES: usize = 5;
/// Its heartbeats are regular again by then.
const BEFORE_FROZEN_AGAIN: Duration = Duration::from_secs(2);

impl Fault {
    /// What the bench runs unless it is told otherwise. Of the others each is a scenario.
    pub(super) const ALL: [Self; 7] = [
        Self::NodeKilled,
        Self::NodeFrozen,
        Self::ControlCut,
        Self::KubeletDead,
        Self::SupervisorKilled,
        Self::TwoNodes,
        Self::RebootTwice,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NodeKilled => "node-killed",
            Self::NodeFrozen => "node-frozen",
            Self::ControlCut => "control-cut",
            Self::KubeletDead => "kubelet-dead",
            Self::SupervisorKilled => "supervisor-killed",
            Self::TwoNodes => "two-nodes",
            Self::RebootTwice => "reboot-twice",
            Self::NodeDeleted => "node-deleted",
            Self::DriverStopped => "driver-stopped",
        }
    }

    pub(super) fn victims(self) -> usize {
        if self == Self::TwoNodes { 2 } else { 1 }
    }

    /// When it began.
    pub(super) fn strike(self, victims: &[&Node]) -> Result<u64> {
        let mut began = now_ns()?;
        for node in victims {
            match self {
                Self::NodeFrozen => began = freeze(node)?,
                Self::ControlCut => node.cut()?,
                Self::DriverStopped => {
                    ensure(node.signal("STOP", NODE_DRIVER)? > 0, || format!("{} runs no driver", node.name))?;
                    node.cut()?;
                }
                Self::KubeletDead => node.kill_kubelet()?,
                Self::NodeKilled | Self::SupervisorKilled | Self::TwoNodes | Self::RebootTwice | Self::NodeDeleted => {
                    node.kill()?
                }
            }
        }
        Ok(began)
    }

    /// The rest of it, while the workload moves.
    pub(super) fn go_on(self, lab: &Lab, victims: &[&Node]) -> Result<Acts> {
        let mut acts = Acts::default();
        match self {
            Self::SupervisorKilled => {
                rest(random(UNTIL_KILLED_MS));
                let killed = kill_supervisor(lab)?;
                acts.note(&format!("supervisor of {killed} killed"))?;
            }
            Self::RebootTwice => {
                for node in victims {
                    rest(UNTIL_BACK_MS.0 + random(UNTIL_BACK_MS.1));
                    node.boot()?;
                    acts.note("back")?;
                    rest(random(UNTIL_KILLED_AGAIN_MS));
                    node.kill()?;
                    acts.note("killed again")?;
                }
            }
            Self::NodeDeleted => {
                for node in victims {
                    lab.cluster.delete(&format!("/api/v1/nodes/{}", node.name))?;
                    acts.note("deleted")?;
                }
            }
            Self::NodeKilled
            | Self::NodeFrozen
            | Self::ControlCut
            | Self::DriverStopped
            | Self::KubeletDead
            | Self::TwoNodes => {}
        }
        Ok(acts)
    }

    pub(super) fn mend(self, victims: &[&Node]) -> Result<()> {
        for node in victims {
            match self {
                Self::NodeFrozen => node.thaw()?,
                Self::ControlCut => node.heal()?,
                Self::DriverStopped => {
                    node.signal("CONT", NODE_DRIVER)?;
                    node.heal()?;
                }
                Self::KubeletDead => node.start_kubelet()?,
                Self::NodeKilled | Self::SupervisorKilled | Self::TwoNodes | Self::RebootTwice | Self::NodeDeleted => {
                    if !node.is_running() {
                        node.boot()?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Acts {
    fn note(&mut self, what: &str) -> Result<()> {
        self.0.push((what.to_owned(), now_ns()?));
        Ok(())
    }
}

/// When it began, of the try that succeeded.
fn freeze(node: &Node) -> Result<u64> {
    for _ in 0..FREEZE_TRIES {
        let began = now_ns()?;
        if node.freeze()? {
            return Ok(began);
        }
        std::thread::sleep(BEFORE_FROZEN_AGAIN);
    }
    Err(format!("{} cannot be frozen", node.name).into())
}

/// Kills the process of the controller that leads, or of any; the node that it was on.
fn kill_supervisor(lab: &Lab) -> Result<String> {
    let leading = installed::leader(lab)?;
    // One that has ended by itself needs none.
    lab.node(&leading)?.signal("KILL", CONTROLLER)?;
    Ok(leading)
}

fn random(below: u64) -> u64 {
    let (number, _) = Uuid::new_v4().as_u64_pair();
    number % below
}

fn rest(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
