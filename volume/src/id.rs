//! Identifiers. Each is parsed once at the edge and is safe as a single path component.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

/// CSI 1.13, "Size Limits": a string field holds at most 128 bytes unless it says otherwise.
const MAX_STRING_BYTES: usize = 128;
/// NodeGetInfo: `node_id` may be longer (256 bytes), but Swarm and Kubernetes objects are happier with less.
const MAX_NODE_ID_BYTES: usize = 192;
/// CSI 1.13, Topology: values of segments. Kubernetes makes labels of them.
const MAX_TOPOLOGY_VALUE_BYTES: usize = 63;
const MAX_BACKEND_NAME_BYTES: usize = 32;
const HASH_HEX: usize = 32;

/// The configured name of one backend instance: `[a-z][a-z0-9-]{0,31}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackendName(String);

/// A volume's id: `<backend>.v<32 hex>`, the hex being half of the SHA-256 of the CSI name.
///
/// The same name gives the same id, so one lock keyspace covers creation too and a retry finds its work.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId(String);

/// A snapshot's id: `<backend>.s<32 hex>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(String);

/// A group snapshot's id: `<backend>.g<32 hex>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupSnapshotId(String);

/// The name an orchestrator gives a volume, a snapshot or a group snapshot. Never a path, never an id.
///
/// CSI 1.13, CreateVolumeRequest.name: any Unicode but U+0000-0008, 000B, 000C, 000E-001F, 007F-009F; 1 to 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// A node's id as the orchestrator knows it: `[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?`, at most 192 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

/// One life of a node: a new one after a reboot or after a verified clean-up, the same across restarts of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(uuid::Uuid);

impl BackendName {
    pub fn parse(text: &str) -> Result<Self> {
        let ok = text.len() <= MAX_BACKEND_NAME_BYTES
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::invalid(format!(
                "backend name {text:?} is not usable: 1 to {MAX_BACKEND_NAME_BYTES} of a-z, 0-9 and '-', starting with a letter"
            )))
        }
    }
}

impl BackendName {
    /// For a pool that `node` alone has: a name of its own, so that the ids of its volumes are no other node's.
    pub fn of_node(node: &NodeId) -> Self {
        Self(format!("local-{}", &hash(node.as_str())[..12]))
    }
}

impl VolumeId {
    pub fn of_name(backend: &BackendName, name: &VolumeName) -> Self {
        Self(format!("{backend}.v{}", hash(name.as_str())))
    }

    /// Parses an id from a request. One that this driver could not have made names no volume: `NotFound`,
    /// as CSI asks for volumes of others; an empty one is `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Self> {
        parse_id("volume", 'v', text).map(Self)
    }

    pub fn backend(&self) -> &str {
        before_dot(&self.0)
    }
}

impl SnapshotId {
    pub fn of_name(backend: &BackendName, name: &VolumeName) -> Self {
        Self(format!("{backend}.s{}", hash(name.as_str())))
    }

    /// The snapshot of `volume` in a group. No name gives the same id but by a collision of hashes: a name has no NUL.
    pub fn of_member(group: &GroupSnapshotId, volume: &VolumeId) -> Self {
        Self(format!("{}.s{}", group.backend(), hash(&format!("{group}\0{volume}"))))
    }

    /// As [`VolumeId::parse`].
    pub fn parse(text: &str) -> Result<Self> {
        parse_id("snapshot", 's', text).map(Self)
    }

    pub fn backend(&self) -> &str {
        before_dot(&self.0)
    }
}

impl GroupSnapshotId {
    pub fn of_name(backend: &BackendName, name: &VolumeName) -> Self {
        Self(format!("{backend}.g{}", hash(name.as_str())))
    }

    /// As [`VolumeId::parse`].
    pub fn parse(text: &str) -> Result<Self> {
        parse_id("group snapshot", 'g', text).map(Self)
    }

    pub fn backend(&self) -> &str {
        before_dot(&self.0)
    }
}

impl VolumeName {
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::invalid("the name is empty"));
        }
        if text.len() > MAX_STRING_BYTES {
            return Err(Error::invalid(format!("the name has {} bytes; CSI allows {MAX_STRING_BYTES}", text.len())));
        }
        if let Some(bad) = text.chars().find(|&c| is_banned(c)) {
            return Err(Error::invalid(format!(
                "the name holds the control character U+{:04X}, which CSI does not allow",
                u32::from(bad)
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl NodeId {
    pub fn parse(text: &str) -> Result<Self> {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let ok = text.len() <= MAX_NODE_ID_BYTES
            && edge(text.chars().next())
            && edge(text.chars().next_back())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::invalid(format!(
                "node id {text:?} is not usable: 1 to {MAX_NODE_ID_BYTES} letters, digits, '.', '_' and '-', with a letter or digit at both ends"
            )))
        }
    }
}

impl NodeId {
    /// The id as a value of topology, or a hash of it where it is too long for that.
    pub fn topology_value(&self) -> String {
        if self.0.len() <= MAX_TOPOLOGY_VALUE_BYTES { self.0.clone() } else { hash(&self.0) }
    }
}

impl Incarnation {
    pub fn new_random() -> Self {
        Self(uuid::Uuid::new_v4())
    }

    /// As it is displayed.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |_| Error::invalid(format!("{text:?} is no incarnation of a node: that is a UUID"));
        uuid::Uuid::try_parse(text).map(Self).map_err(wrong)
    }
}

fn parse_id(what: &str, tag: char, text: &str) -> Result<String> {
    if text.is_empty() {
        return Err(Error::invalid(format!("the {what} id is empty")));
    }
    let hex = |s: &str| s.len() == HASH_HEX && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let known = text.len() <= MAX_STRING_BYTES
        && text.split_once('.').is_some_and(|(backend, rest)| {
            BackendName::parse(backend).is_ok() && rest.strip_prefix(tag).is_some_and(hex)
        });
    if known {
        Ok(text.to_owned())
    } else {
        let shown: String = text.chars().take(MAX_STRING_BYTES).collect();
        Err(Error::not_found(format!(
            "no {what} {shown:?}: this driver's {what} ids look like 'pool.{tag}' and {HASH_HEX} hex digits"
        )))
    }
}

fn before_dot(id: &str) -> &str {
    id.split_once('.').map_or(id, |(backend, _)| backend)
}

fn hash(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    digest.iter().take(HASH_HEX / 2).map(|b| format!("{b:02x}")).collect()
}

fn is_banned(c: char) -> bool {
    matches!(u32::from(c), 0x00..=0x08 | 0x0b | 0x0c | 0x0e..=0x1f | 0x7f..=0x9f)
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `as_str`, `Display` and the checked conversions that serde uses, alike for every textual id.
macro_rules! textual {
    ($($type:ident),*) => {$(
        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::parse(&text)
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> Self {
                id.0
            }
        }
    )*};
}
textual!(BackendName, VolumeId, SnapshotId, GroupSnapshotId, VolumeName, NodeId);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use proptest::prelude::*;

    #[test]
    fn ids_are_stable_and_short() {
        let pool = BackendName::parse("pool").unwrap();
        let id = VolumeId::of_name(&pool, &VolumeName::parse("db[0]/../x\n").unwrap());
        assert_eq!(id.as_str(), format!("pool.v{}", hash("db[0]/../x\n")));
        assert!(id.as_str().len() <= 128);
        assert_eq!(VolumeId::parse(id.as_str()).unwrap(), id);
    }

    #[test]
    fn foreign_and_empty_ids() {
        assert_eq!(VolumeId::parse("").unwrap_err().kind(), ErrorKind::InvalidArgument);
        for bad in [
            "vol-0123",
            "../../etc",
            "pool.v12",
            "pool.s00000000000000000000000000000000",
            "Pool.v00000000000000000000000000000000",
        ] {
            assert_eq!(VolumeId::parse(bad).unwrap_err().kind(), ErrorKind::NotFound, "{bad}");
        }
    }

    #[test]
    fn names_follow_the_specification() {
        assert!(VolumeName::parse(&"n".repeat(128)).is_ok());
        assert!(VolumeName::parse(&"n".repeat(129)).is_err());
        assert!(VolumeName::parse("tab\tnew\nline").is_ok());
        assert!(VolumeName::parse("nul\0").is_err());
        assert!(VolumeName::parse("").is_err());
    }

    #[test]
    fn names_after_nodes() {
        let of = |node: &str| BackendName::of_node(&NodeId::parse(node).unwrap());
        assert_ne!(of("n1"), of("n2"));
        // Never to change: the ids of volumes begin with it.
        assert_eq!(of("n1").as_str(), "local-676b8bb84ce7");
        assert!(BackendName::parse(of(&"n".repeat(192)).as_str()).is_ok());
    }

    proptest! {
        #[test]
        fn a_parsed_id_is_one_path_component(text in ".*") {
            if let Ok(id) = VolumeId::parse(&text) {
                prop_assert!(!id.as_str().contains('/') && !id.as_str().starts_with('.'));
            }
            if let Ok(id) = NodeId::parse(&text) {
                prop_assert!(!id.as_str().contains('/') && !id.as_str().starts_with('.'));
            }
        }
    }
}
