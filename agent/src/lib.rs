//! The agent of a pool: what lets a controller use storage that is on another machine.
//!
//! A node serves its backends with [`AgentServer`]; the controller has an [`Agents`], whose backends are
//! [`volume::Backend`]s like any other. Between them is mutual TLS 1.3 and nothing else: each side shows by its
//! certificate which [`Role`] it has, and only a controller may use a backend.
#![forbid(unsafe_code)]

mod agents;
mod beat;
mod certificates;
mod condition;
mod connection;
mod credentials;
mod describe;
mod envelope;
mod link;
mod operation;
mod operations;
mod ranges;
mod reach;
mod remote;
mod request;
mod role;
mod server;
mod service;
mod signer;
mod tls;
mod tls_error;
mod words;

pub use agents::{AgentAddress, Agents, NodeState};
pub use beat::{Beat, Life, LifeState, News};
pub use certificates::{Authority, Validity};
pub use credentials::{CredentialFiles, CredentialPem, Credentials, check_authorities, check_node_certificate};
pub use remote::RemoteBackend;
pub use request::CertificateRequest;
pub use role::Role;
pub use server::{AgentConfig, AgentServer};
pub use signer::{AuthorityPem, Signer};

/// Generated from `proto/`.
mod proto {
    #![allow(clippy::all, unreachable_pub, missing_debug_implementations, reason = "generated")]
    tonic::include_proto!("hawser.agent.v1");
}

/// Of both sides: lists come in pages of less than one MiB, but for those of nodes, of orphans and of what a fence did.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
