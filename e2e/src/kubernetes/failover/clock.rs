//! The clocks that acks and records carry; one kernel has both.

use crate::failure::Result;
use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC, as in acks.
pub(super) fn now_ns() -> Result<u64> {
    read(ClockId::CLOCK_MONOTONIC)
}

/// What a time of CLOCK_REALTIME, as in records, is on CLOCK_MONOTONIC, in nanoseconds.
pub(super) fn monotonic_ns(realtime_ns: u64) -> Result<u64> {
    let (wall, now) = (read(ClockId::CLOCK_REALTIME)?, now_ns()?);
    // Since the start of the machine, which was after 1970.
    Ok(realtime_ns.saturating_sub(wall.saturating_sub(now)))
}

fn read(clock: ClockId) -> Result<u64> {
    let now = clock_gettime(clock).map_err(|errno| errno.to_string())?;
    let number = |part: i64| u64::try_from(part).map_err(|error| error.to_string());
    Ok(number(now.tv_sec())? * 1_000_000_000 + number(now.tv_nsec())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_show_the_same_moment() {
        let wall = read(ClockId::CLOCK_REALTIME).unwrap();
        let before = now_ns().unwrap();
        let moment = monotonic_ns(wall).unwrap();
        assert!(moment.abs_diff(before) < 100_000_000, "{moment} {before}");
    }
}
