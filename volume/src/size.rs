//! Sizes. Everything is in bytes; what a backend makes is rounded up to its granularity.

use crate::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// 8 EiB less one granule: the largest size that fits the kernel's signed file offsets.
pub const MAX_SIZE_BYTES: u64 = (1 << 63) - (1 << 20);

/// CSI's CapacityRange, checked. Zero means "not given" on the wire (Swarm sends `{0, 0}`) and is `None` here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SizeRange {
    pub required_bytes: Option<u64>,
    pub limit_bytes: Option<u64>,
}

impl SizeRange {
    /// `OutOfRange` for negative numbers, a limit below what is required, or more than [`MAX_SIZE_BYTES`].
    pub fn parse(required_bytes: i64, limit_bytes: i64) -> Result<Self> {
        let field = |name: &str, value: i64| match u64::try_from(value) {
            Err(_) => Err(Error::new(ErrorKind::OutOfRange, format!("{name} is {value}: a size cannot be negative"))),
            Ok(0) => Ok(None),
            Ok(bytes) if bytes > MAX_SIZE_BYTES => Err(Error::new(
                ErrorKind::OutOfRange,
                format!("{name} is {bytes}: the largest size is {MAX_SIZE_BYTES}"),
            )),
            Ok(bytes) => Ok(Some(bytes)),
        };
        let range = Self {
            required_bytes: field("required_bytes", required_bytes)?,
            limit_bytes: field("limit_bytes", limit_bytes)?,
        };
        match (range.required_bytes, range.limit_bytes) {
            (Some(required), Some(limit)) if limit < required => Err(Error::new(
                ErrorKind::OutOfRange,
                format!("limit_bytes {limit} is below required_bytes {required}"),
            )),
            _ => Ok(range),
        }
    }

    /// The size to make: what is required (or `default_bytes`, lowered to the limit), at least `minimum_bytes`,
    /// rounded up to `granule_bytes`; `OutOfRange` when that passes the limit.
    pub fn choose(&self, default_bytes: u64, minimum_bytes: u64, granule_bytes: u64) -> Result<u64> {
        let wanted = match (self.required_bytes, self.limit_bytes) {
            (Some(required), _) => required,
            (None, Some(limit)) => limit.min(default_bytes) / granule_bytes * granule_bytes,
            (None, None) => default_bytes,
        };
        let size = wanted.max(minimum_bytes).checked_next_multiple_of(granule_bytes).filter(|&s| s <= MAX_SIZE_BYTES);
        let size = size.ok_or_else(|| {
            Error::new(ErrorKind::OutOfRange, format!("{wanted} bytes is more than the largest size, {MAX_SIZE_BYTES}"))
        })?;
        match self.limit_bytes {
            Some(limit) if size > limit => Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "the smallest volume that fits the request has {size} bytes (minimum {minimum_bytes}, steps of {granule_bytes}), above limit_bytes {limit}"
                ),
            )),
            _ => Ok(size),
        }
    }

    /// Whether an existing volume of `size_bytes` answers the request.
    pub fn admits(&self, size_bytes: u64) -> bool {
        self.required_bytes.is_none_or(|required| size_bytes >= required)
            && self.limit_bytes.is_none_or(|limit| size_bytes <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edges() {
        assert!(SizeRange::parse(-1, 0).is_err());
        assert!(SizeRange::parse(2, 1).is_err());
        assert!(SizeRange::parse(i64::MAX, 0).is_err());
        assert_eq!(SizeRange::parse(0, 0).unwrap(), SizeRange::default());
        assert_eq!(SizeRange::parse(1, 0).unwrap().choose(1 << 30, 1 << 20, 1 << 20).unwrap(), 1 << 20);
        assert!(SizeRange::parse(0, 1000).unwrap().choose(1 << 30, 1 << 20, 1 << 20).is_err());
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_admitted(required in 0i64.., limit in 0i64.., default in 1u64..1 << 50) {
            if let Ok(range) = SizeRange::parse(required, limit)
                && let Ok(size) = range.choose(default, 4 << 20, 1 << 20) {
                prop_assert!(range.admits(size));
                prop_assert_eq!(size % (1 << 20), 0);
            }
        }
    }
}
