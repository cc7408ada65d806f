//! The supervisor: finds dead nodes, has the storage fence them, then has the orchestrator move their workloads.
//!
//! [`Supervisor`] is a pure state machine: it is told what was seen and when, and answers with what to do. It has no
//! clock, no network and no storage of its own, so the whole of it runs under a simulation (`sim`). A [`Runner`] brings it what
//! happens and carries its [`Action`]s out: in the storage by `volume`'s traits, in the orchestrator through an adapter
//! ([`Orchestrator`]). See docs/architecture.md, "The supervisor".
#![forbid(unsafe_code)]

mod case;
mod config;
mod message;
mod node;
mod plan;
mod reason;
mod runner;
mod status;
mod supervisor;
mod timers;
mod watch;

#[cfg(test)]
mod flaw;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use config::{Config, ConfigError};
pub use message::{
    Action, AgentState, Answer, FenceResult, Heartbeat, HistoryEntry, Input, OrchestratorNode, OrchestratorView,
    Output, Stays, StorageView, Token, View, VolumeView, Witness, WorkloadId,
};
pub use reason::{Cause, EventReason, Refusal};
pub use runner::{Board, Clock, Listener, Mailbox, NodeView, Orchestrator, Runner, Storage, Told, Workload};
pub use status::{NodeStatus, Stage};
pub use supervisor::Supervisor;
