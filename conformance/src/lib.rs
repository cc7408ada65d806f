//! Suites that every host and every backend must pass, on fakes and on the real thing alike.
//!
//! Their assertions panic, as tests do: nothing here runs in the driver.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod backend;
pub mod host;
pub mod scratch;
