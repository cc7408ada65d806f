//! StorageClass / volume parameters: short keys, the same in every orchestrator; an unknown key is an error.

use crate::{Error, FsType, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The parameters of CreateVolume, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parameters {
    /// `backend`: the instance to use; the default backend if absent.
    pub backend: Option<String>,
    /// `fsType`: ext4, xfs or btrfs.
    pub fs_type: Option<FsType>,
    /// `mountFlags`: comma-separated; each is checked by the node against the file system's allowlist.
    pub mount_flags: Vec<String>,
    /// `thick`: allocate all blocks at creation.
    pub thick: bool,
    /// `uid`, `gid`: owner of the volume's root directory, applied when it is first staged.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// `mode`: permission bits of the volume's root directory, octal (`0750`).
    pub mode: Option<u32>,
    /// `failover`: whether a supervisor moves the volume away from a dead node.
    #[serde(default, skip_serializing_if = "Failover::is_on")]
    pub failover: Failover,
}

/// What a supervisor may do with the volume of a node that it found dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failover {
    #[default]
    On,
    /// The volume stays with its node until an administrator acts.
    Off,
}

impl Failover {
    fn is_on(&self) -> bool {
        *self == Self::On
    }
}

impl Parameters {
    pub const KEYS: [&'static str; 8] = ["backend", "failover", "fsType", "gid", "mode", "mountFlags", "thick", "uid"];
    /// Set by the official csi-provisioner with `--extra-create-metadata`; accepted and not used. Its other
    /// `csi.storage.k8s.io/` keys are removed before the driver sees them.
    const IGNORED: [&'static str; 3] =
        ["csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pv/name"];

    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut parsed = Self::default();
        let mut sorted: Vec<_> = pairs.into_iter().collect();
        sorted.sort_unstable();
        for (key, value) in sorted {
            match key {
                "backend" => parsed.backend = Some(value.to_owned()),
                "failover" => {
                    parsed.failover = match value {
                        "on" => Failover::On,
                        "off" => Failover::Off,
                        _ => return Err(wrong(key, value, "on or off")),
                    }
                }
                "fsType" => parsed.fs_type = FsType::parse(value)?,
                "mountFlags" => {
                    if value.contains(|c: char| c.is_whitespace() || c.is_control()) {
                        return Err(wrong(key, value, "mount flags with commas between them and nothing else"));
                    }
                    parsed.mount_flags = value.split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect()
                }
                "thick" => parsed.thick = boolean(key, value)?,
                "uid" => parsed.uid = Some(number(key, value, 10)?),
                "gid" => parsed.gid = Some(number(key, value, 10)?),
                "mode" => {
                    parsed.mode = Some(number(key, value, 8).and_then(|mode| {
                        if mode <= 0o7777 {
                            Ok(mode)
                        } else {
                            Err(wrong(key, value, "octal permission bits such as 0750"))
                        }
                    })?)
                }
                key if Self::IGNORED.contains(&key) => {}
                unknown => {
                    return Err(Error::invalid(format!(
                        "unknown parameter {unknown:?}; the known ones are {}",
                        Self::KEYS.join(", ")
                    )));
                }
            }
        }
        Ok(parsed)
    }

    /// What the node needs of them, for CSI's volume_context; the node works without it.
    pub fn to_volume_context(&self) -> BTreeMap<String, String> {
        let mut context = BTreeMap::new();
        if !self.mount_flags.is_empty() {
            context.insert("mountFlags".to_owned(), self.mount_flags.join(","));
        }
        for (key, value) in [("uid", self.uid), ("gid", self.gid)] {
            if let Some(value) = value {
                context.insert(key.to_owned(), value.to_string());
            }
        }
        if let Some(mode) = self.mode {
            context.insert("mode".to_owned(), format!("{mode:04o}"));
        }
        context
    }
}

fn boolean(key: &str, value: &str) -> Result<bool> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(wrong(key, value, "true or false")),
    }
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong(key, value, "a number"));
    }
    u32::from_str_radix(value, radix).map_err(|_| wrong(key, value, "a number"))
}

fn wrong(key: &str, value: &str, expected: &str) -> Error {
    Error::invalid(format!("parameter {key} is {value:?}; it takes {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let parsed = Parameters::parse([
            ("fsType", "xfs"),
            ("mode", "0750"),
            ("uid", "70"),
            ("mountFlags", "noatime,discard"),
            ("thick", "true"),
        ])
        .unwrap();
        let context = parsed.to_volume_context();
        let again = Parameters::parse(context.iter().map(|(k, v)| (k.as_str(), v.as_str()))).unwrap();
        assert_eq!((again.uid, again.mode, again.mount_flags), (Some(70), Some(0o750), parsed.mount_flags.clone()));
        for (key, value) in [
            ("fstype", "ext4"),
            ("fsType", "ntfs"),
            ("mode", "9"),
            ("mode", "77777"),
            ("uid", "-1"),
            ("uid", "+1"),
            ("thick", "yes"),
            ("failover", "Off"),
            ("mountFlags", "noatime, discard"),
            ("mountFlags", "noatime\nid  pool.v1"),
        ] {
            assert!(Parameters::parse([(key, value)]).is_err(), "{key}={value}");
        }
    }

    #[test]
    fn failover_is_on_unless_it_is_said() {
        let of = |value| Parameters::parse([("failover", value)]).unwrap();
        assert_eq!(of("on"), Parameters::default());
        let off = of("off");
        assert_eq!(off.failover, Failover::Off);
        let refusal = Parameters::parse([("failover", "maybe")]).unwrap_err().to_string();
        assert!(refusal.contains("on or off"), "{refusal}");
        // A record of before the parameter was there, and one that says it.
        let json = serde_json::to_value(Parameters::default()).unwrap();
        assert!(json.get("failover").is_none());
        assert_eq!(serde_json::from_value::<Parameters>(json).unwrap().failover, Failover::On);
        assert_eq!(serde_json::from_value::<Parameters>(serde_json::to_value(&off).unwrap()).unwrap(), off);
    }
}
