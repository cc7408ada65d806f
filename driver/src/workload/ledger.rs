//! The ledger: one line of JSON for each record that a writer knows to be durable.

use super::block::RecordId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Blocks of the epochs on a raw device: each epoch has a region of its own, this many in turn.
pub const REGIONS: u64 = 8;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    pub nonce: Uuid,
    pub epoch: u64,
    pub writer: u32,
    pub seq: u64,
    pub slot: u64,
    pub checksum: String,
    /// CLOCK_MONOTONIC right before the write was asked for, and right after it was durable.
    pub begin_ns: u64,
    pub end_ns: u64,
}

impl Ack {
    pub fn record(&self) -> RecordId {
        RecordId { nonce: self.nonce, epoch: self.epoch, writer: self.writer, seq: self.seq, slot: self.slot }
    }
}

/// A writer asks for an epoch: the nonce of its run, and who it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    pub start: Uuid,
    pub name: String,
}

/// A line of `<ledger>.starts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub epoch: u64,
    pub name: String,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
}

/// CLOCK_MONOTONIC, which all processes of a machine share, in nanoseconds.
pub fn now_ns() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

/// The slot of a writer's record: writers never share one, and in each the sequence only grows.
pub fn slot(writers: u32, slots: u64, writer: u32, seq: u64, region: u64) -> u64 {
    let writers = u64::from(writers);
    let rounds = (slots / writers).max(1);
    region * rounds * writers + (seq % rounds) * writers + u64::from(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_never_share_a_slot() {
        let mut owner = std::collections::HashMap::new();
        for region in [0, 1] {
            for writer in 0..3 {
                for seq in 0..50 {
                    let key = (region, writer);
                    assert_eq!(*owner.entry(slot(3, 10, writer, seq, region)).or_insert(key), key);
                }
            }
        }
        assert!(owner.keys().max() < Some(&20));
    }
}
