//! gRPC glue that the services share: what a call is, how its work runs, what an error becomes on the wire, what is
//! logged and counted, which sockets it comes in by, and what an orchestrator may be told that the driver can do.
#![forbid(unsafe_code)]

mod authority;
mod call;
pub mod health;
mod listen;
mod metrics;
pub mod parse;
mod profile;
mod running;
mod runtime;
mod socket;
mod status;
mod stream;
mod trace;

pub use authority::Connection;
pub use call::{Call, Rpc};
pub use listen::bind_tcp;
pub use metrics::Metrics;
pub use profile::Profile;
pub use runtime::Runtime;
pub use socket::{Incoming, SocketFile, bind, parse_endpoint};
pub use status::status;
pub use stream::{Messages, Outlet};
pub use trace::Trace;
