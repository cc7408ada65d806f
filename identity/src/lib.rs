//! CSI's Identity service, and kubelet's plugin registration, which this driver serves itself.
#![forbid(unsafe_code)]

mod readiness;
mod registration;
mod service;

pub use readiness::{Check, Readiness};
pub use registration::RegistrationService;
pub use service::{IdentityService, Plugin};

/// CSI 1.13, GetPluginInfo: the driver's name in domain name notation.
pub const NAME: &str = "csi.hawser.dev";
/// Never empty: Nomad restarts a plugin without a vendor_version for ever.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
