//! What hawser does with Kubernetes itself: finding the agents of nodes, their certificates, and the adapter of the
//! supervisor. The CSI services know nothing of it.
#![forbid(unsafe_code)]

pub mod orchestrator;
