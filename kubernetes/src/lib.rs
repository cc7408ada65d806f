//! What hawser does with Kubernetes itself: finding the agents of nodes, their certificates, and the adapter of the
//! supervisor. The CSI services know nothing of it.
#![forbid(unsafe_code)]

mod authority;
mod client;
mod discovery;
mod mirror;
mod names;
pub mod orchestrator;
mod policy;
mod request;
mod signing;
mod trouble;
mod watching;

pub use authority::keep_authority;
pub use client::{connect, connect_as_user};
pub use names::Names;
pub use request::NodeCertificate;
pub use signing::sign_requests;
pub use watching::follow_pods;

#[cfg(test)]
mod tests;
