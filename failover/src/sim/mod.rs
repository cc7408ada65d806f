//! A deterministic simulation of supervisors, storage, orchestrator and nodes under faults. One seed is one history:
//! it draws a cluster, policies and faults, plays them, and checks after every event what must hold (`check`).
//!
//! `cargo xtask simulate --seeds N` plays many; `--seed S` plays one again and prints all that happens in it.

mod check;
mod faults;
mod fence;
mod machine;
mod orchestrator;
mod rng;
mod setup;
mod shell;
mod storage;
mod tests;
mod world;
