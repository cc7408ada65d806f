//! What can be changed of a volume while it is in use: CSI's mutable parameters.

use crate::{Error, FsType, Result, VolumeGuard, VolumeId, VolumeKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `None`: as the kernel has it (read-ahead), or unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MutableParameters {
    /// `readAheadKiB`: how far the kernel reads ahead on the device.
    pub read_ahead_kib: Option<u32>,
    /// `readBytesPerSecond`, `writeBytesPerSecond`, `readOpsPerSecond`, `writeOpsPerSecond`: of all workloads of the
    /// node on this volume together where the kernel can, else of each cgroup.
    pub limits: IoLimits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IoLimits {
    pub read_bytes_per_second: Option<u64>,
    pub write_bytes_per_second: Option<u64>,
    pub read_ops_per_second: Option<u64>,
    pub write_ops_per_second: Option<u64>,
}

/// Records what the volume's node is to apply to its device, now and at every later staging.
pub trait Modify: Send + Sync {
    /// Changes what `change` names and keeps the rest. Idempotent. `NotFound` when there is no such volume,
    /// `InvalidArgument` for what a volume of its kind cannot have ([`MutableParameters::check_kind`]).
    fn modify(&self, guard: &VolumeGuard, id: &VolumeId, change: &MutableChange) -> Result<()>;
}

impl MutableParameters {
    /// What of it stands apart from the default, as a request would name it.
    pub fn to_pairs(&self) -> Vec<(&'static str, String)> {
        let limits = &self.limits;
        let all = [
            ("readAheadKiB", self.read_ahead_kib.map(u64::from)),
            ("readBytesPerSecond", limits.read_bytes_per_second),
            ("readOpsPerSecond", limits.read_ops_per_second),
            ("writeBytesPerSecond", limits.write_bytes_per_second),
            ("writeOpsPerSecond", limits.write_ops_per_second),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value?.to_string()))).collect()
    }

    /// `InvalidArgument` for what no volume of this kind can have, or has without any effect.
    pub fn check_kind(&self, kind: VolumeKind) -> Result<()> {
        match kind {
            VolumeKind::Directory if *self != Self::default() => Err(Error::invalid(
                "a directory volume has no device of its own: neither its read-ahead nor its I/O can be set",
            )),
            // fs/btrfs/disk-io.c: a bdi of its own, of at least 4 MiB, whatever its devices have.
            VolumeKind::FileSystem(FsType::Btrfs) if self.read_ahead_kib.is_some() => Err(Error::invalid(
                "readAheadKiB has no effect on btrfs, which reads ahead as it sees fit whatever its device is set to",
            )),
            VolumeKind::FileSystem(_) | VolumeKind::Block | VolumeKind::Directory => Ok(()),
        }
    }
}

impl IoLimits {
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// What a request asks to change: a key that is absent stays, and the value `default` takes one back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "BTreeMap<String, String>", try_from = "BTreeMap<String, String>")]
pub struct MutableChange {
    pub read_ahead_kib: Option<Option<u32>>,
    pub read_bytes_per_second: Option<Option<u64>>,
    pub write_bytes_per_second: Option<Option<u64>>,
    pub read_ops_per_second: Option<Option<u64>>,
    pub write_ops_per_second: Option<Option<u64>>,
}

impl MutableChange {
    pub const KEYS: [&'static str; 5] =
        ["readAheadKiB", "readBytesPerSecond", "readOpsPerSecond", "writeBytesPerSecond", "writeOpsPerSecond"];

    /// `InvalidArgument` for an unknown key, which lists the known ones, and for a value that is no number.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut change = Self::default();
        let mut sorted: Vec<_> = pairs.into_iter().collect();
        sorted.sort_unstable();
        for (key, value) in sorted {
            match key {
                "readAheadKiB" => change.read_ahead_kib = Some(number(key, value, 0, MAX_READ_AHEAD_KIB)?),
                "readBytesPerSecond" => {
                    change.read_bytes_per_second = Some(number(key, value, MIN_BYTES_PER_SECOND, u64::MAX)?)
                }
                "writeBytesPerSecond" => {
                    change.write_bytes_per_second = Some(number(key, value, MIN_BYTES_PER_SECOND, u64::MAX)?)
                }
                "readOpsPerSecond" => {
                    change.read_ops_per_second = Some(number(key, value, MIN_OPS_PER_SECOND, u64::from(u32::MAX))?)
                }
                "writeOpsPerSecond" => {
                    change.write_ops_per_second = Some(number(key, value, MIN_OPS_PER_SECOND, u64::from(u32::MAX))?)
                }
                unknown => {
                    return Err(Error::invalid(format!(
                        "unknown mutable parameter {unknown:?}; the known ones are {}",
                        Self::KEYS.join(", ")
                    )));
                }
            }
        }
        Ok(change)
    }

    pub fn apply_to(&self, current: MutableParameters) -> MutableParameters {
        let limits = current.limits;
        MutableParameters {
            read_ahead_kib: self.read_ahead_kib.unwrap_or(current.read_ahead_kib),
            limits: IoLimits {
                read_bytes_per_second: self.read_bytes_per_second.unwrap_or(limits.read_bytes_per_second),
                write_bytes_per_second: self.write_bytes_per_second.unwrap_or(limits.write_bytes_per_second),
                read_ops_per_second: self.read_ops_per_second.unwrap_or(limits.read_ops_per_second),
                write_ops_per_second: self.write_ops_per_second.unwrap_or(limits.write_ops_per_second),
            },
        }
    }
}

/// As the request that [`MutableChange::parse`] reads as this.
impl From<MutableChange> for BTreeMap<String, String> {
    fn from(change: MutableChange) -> Self {
        fn pair<T: ToString>(key: &str, value: Option<Option<T>>) -> Option<(String, String)> {
            Some((key.to_owned(), value?.map_or_else(|| DEFAULT.to_owned(), |number| number.to_string())))
        }
        let pairs = [
            pair("readAheadKiB", change.read_ahead_kib),
            pair("readBytesPerSecond", change.read_bytes_per_second),
            pair("readOpsPerSecond", change.read_ops_per_second),
            pair("writeBytesPerSecond", change.write_bytes_per_second),
            pair("writeOpsPerSecond", change.write_ops_per_second),
        ];
        pairs.into_iter().flatten().collect()
    }
}

impl TryFrom<BTreeMap<String, String>> for MutableChange {
    type Error = Error;

    fn try_from(pairs: BTreeMap<String, String>) -> Result<Self> {
        Self::parse(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }
}

const DEFAULT: &str = "default";
/// 1 GiB: far more than any device gains from, and no number that overflows in the kernel.
const MAX_READ_AHEAD_KIB: u64 = 1 << 20;
/// Below these a volume is of no use any more: unmounting, freezing and fencing wait for what is left to write.
const MIN_BYTES_PER_SECOND: u64 = 64 << 10;
const MIN_OPS_PER_SECOND: u64 = 10;

/// `None` for the word `default`.
fn number<T: TryFrom<u64>>(key: &str, value: &str, least: u64, most: u64) -> Result<Option<T>> {
    if value == DEFAULT {
        return Ok(None);
    }
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let parsed = digits.then(|| value.parse::<u64>().ok()).flatten().filter(|n| (least..=most).contains(n));
    parsed.and_then(|n| T::try_from(n).ok()).map(Some).ok_or_else(|| {
        Error::invalid(format!(
            "mutable parameter {key} is {value:?}; it takes a number from {least} to {most}, or {DEFAULT:?}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_keep_what_they_do_not_name() {
        let first = MutableChange::parse([("readAheadKiB", "0"), ("writeOpsPerSecond", "100")]).unwrap();
        let applied = first.apply_to(MutableParameters::default());
        assert_eq!((applied.read_ahead_kib, applied.limits.write_ops_per_second), (Some(0), Some(100)));
        let second = MutableChange::parse([("readAheadKiB", "default")]).unwrap().apply_to(applied);
        assert_eq!((second.read_ahead_kib, second.limits), (None, applied.limits));
        assert_eq!(MutableChange::parse([]).unwrap().apply_to(applied), applied);
    }

    #[test]
    fn pairs_say_what_was_asked_for() {
        let asked = [("readAheadKiB", "256"), ("writeBytesPerSecond", "65536")];
        let given = MutableChange::parse(asked).unwrap().apply_to(MutableParameters::default());
        let pairs = given.to_pairs();
        assert_eq!(pairs.iter().map(|(key, value)| (*key, value.as_str())).collect::<Vec<_>>(), asked);
        assert!(MutableParameters::default().to_pairs().is_empty());
    }

    #[test]
    fn changes_are_written_as_requests() {
        let change = MutableChange {
            read_ahead_kib: Some(None),
            read_bytes_per_second: Some(Some(u64::MAX)),
            write_bytes_per_second: None,
            read_ops_per_second: Some(Some(10)),
            write_ops_per_second: Some(None),
        };
        let written = serde_json::to_string(&change).unwrap();
        assert!(written.contains(r#""readAheadKiB":"default""#), "{written}");
        assert_eq!(serde_json::from_str::<MutableChange>(&written).unwrap(), change);
        let all = MutableChange::parse(MutableChange::KEYS.map(|key| (key, "65536"))).unwrap();
        assert_eq!(BTreeMap::from(all).len(), MutableChange::KEYS.len());
        let unknown = serde_json::from_str::<MutableChange>(r#"{"iops":"5"}"#).unwrap_err();
        assert!(unknown.to_string().contains("iops"), "{unknown}");
    }

    #[test]
    fn what_a_kind_cannot_have() {
        let of = |key| MutableChange::parse([(key, "65536")]).unwrap().apply_to(MutableParameters::default());
        let (read_ahead, limit) = (of("readAheadKiB"), of("readBytesPerSecond"));
        for (kind, takes_read_ahead, takes_limits) in [
            (VolumeKind::FileSystem(FsType::Ext4), true, true),
            (VolumeKind::FileSystem(FsType::Btrfs), false, true),
            (VolumeKind::Block, true, true),
            (VolumeKind::Directory, false, false),
        ] {
            assert_eq!(read_ahead.check_kind(kind).is_ok(), takes_read_ahead, "{kind}");
            assert_eq!(limit.check_kind(kind).is_ok(), takes_limits, "{kind}");
            MutableParameters::default().check_kind(kind).unwrap();
        }
    }

    #[test]
    fn refusals_help() {
        let unknown = MutableChange::parse([("iops", "5")]).unwrap_err();
        assert!(unknown.to_string().contains("writeOpsPerSecond"), "{unknown}");
        for (key, value) in [
            ("readAheadKiB", "-1"),
            ("readAheadKiB", "1048577"),
            ("readAheadKiB", ""),
            ("readOpsPerSecond", "9"),
            ("readBytesPerSecond", "65535"),
            ("writeOpsPerSecond", "4294967296"),
            ("readBytesPerSecond", "1M"),
            ("writeBytesPerSecond", "18446744073709551616"),
        ] {
            let refused = MutableChange::parse([(key, value)]).unwrap_err();
            assert!(refused.to_string().contains(key), "{refused}");
        }
    }
}
