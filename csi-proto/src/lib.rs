//! The Container Storage Interface 1.13 and kubelet's plugin registration, generated from `proto/` by `build.rs`.
//!
//! `Debug` of a message with secrets (CSI's `csi_secret` option) shows their keys and hides their values, so logging a
//! request is always safe.
#![forbid(unsafe_code)]

mod redact;
#[cfg(test)]
mod tests;

/// Package `csi.v1`: messages, and a client and a server module for each of the five services.
#[allow(clippy::all, clippy::pedantic, unreachable_pub, missing_docs, reason = "generated code")]
pub mod csi {
    include!(concat!(env!("OUT_DIR"), "/csi.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/redacted.rs"));
}

/// Package `pluginregistration`: what kubelet calls on a socket in its `plugins_registry`.
#[allow(clippy::all, clippy::pedantic, unreachable_pub, missing_docs, reason = "generated code")]
pub mod registration {
    include!(concat!(env!("OUT_DIR"), "/pluginregistration.rs"));
}

/// The encoded `FileDescriptorSet` of both packages with their imports and custom options.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
