//! From CSI's messages to the types of `volume`. What is read here is all that the services use of a request;
//! unknown fields and enum values of newer protocols never make a request fail.

use csi_proto::csi;
use csi_proto::csi::volume_capability::access_mode::Mode;
use csi_proto::csi::volume_capability::{AccessType as WireAccessType, MountVolume};
use std::collections::BTreeMap;
use volume::{
    AccessMode, AccessType, AttachContext, Error, FsType, MutableChange, Parameters, Result, Segments, SizeRange,
    TopologyRequirement, VolumeCapability,
};

/// CSI 1.13, "Size Limits": of all keys and values of a map, and of all mount flags.
const MAX_MAP_BYTES: usize = 4096;

/// Fields that CSI requires, by name: to be checked before any is parsed, because an id that names nothing is
/// NOT_FOUND, and a missing field must be told as INVALID_ARGUMENT whatever the others hold.
pub fn required(fields: &[(&str, &str)]) -> Result<()> {
    match fields.iter().find(|(_, value)| value.is_empty()) {
        Some((name, _)) => Err(Error::invalid(format!("{name} is missing"))),
        None => Ok(()),
    }
}

/// One required capability.
pub fn capability(wire: Option<&csi::VolumeCapability>) -> Result<VolumeCapability> {
    let wire = wire.ok_or_else(|| Error::invalid("volume_capability is missing"))?;
    let mode = wire.access_mode.as_ref().ok_or_else(|| Error::invalid("volume_capability has no access_mode"))?;
    let access_type = match &wire.access_type {
        None => return Err(Error::invalid("volume_capability says neither block nor mount")),
        Some(WireAccessType::Block(_)) => AccessType::Block,
        Some(WireAccessType::Mount(mount)) => mount_access(mount)?,
    };
    Ok(VolumeCapability { access_mode: access_mode(mode.mode), access_type })
}

/// At least one capability.
pub fn capabilities(wire: &[csi::VolumeCapability]) -> Result<Vec<VolumeCapability>> {
    if wire.is_empty() {
        return Err(Error::invalid("volume_capabilities is empty"));
    }
    wire.iter().map(|one| capability(Some(one))).collect()
}

/// Swarm sends UNKNOWN, and a newer orchestrator a value unknown here: both read as the strictest mode.
fn access_mode(wire: i32) -> AccessMode {
    match Mode::try_from(wire) {
        Err(_) | Ok(Mode::Unknown | Mode::SingleNodeWriter) => AccessMode::SingleNodeWriter,
        Ok(Mode::SingleNodeReaderOnly) => AccessMode::SingleNodeReaderOnly,
        Ok(Mode::MultiNodeReaderOnly) => AccessMode::MultiNodeReaderOnly,
        Ok(Mode::MultiNodeSingleWriter) => AccessMode::MultiNodeSingleWriter,
        Ok(Mode::MultiNodeMultiWriter) => AccessMode::MultiNodeMultiWriter,
        Ok(Mode::SingleNodeSingleWriter) => AccessMode::SingleNodeSingleWriter,
        Ok(Mode::SingleNodeMultiWriter) => AccessMode::SingleNodeMultiWriter,
    }
}

fn mount_access(mount: &MountVolume) -> Result<AccessType> {
    let bytes: usize = mount.mount_flags.iter().map(String::len).sum();
    if bytes > MAX_MAP_BYTES {
        return Err(Error::invalid(format!("mount_flags has {bytes} bytes; CSI allows {MAX_MAP_BYTES}")));
    }
    for flag in &mount.mount_flags {
        // The allowlist of the file system is checked where it is mounted; a flag that could be two is none of it.
        if flag.is_empty() || flag.contains(|c: char| c == ',' || c.is_whitespace() || c.is_control()) {
            return Err(Error::invalid(format!(
                "mount flag {flag:?} is not one flag: give each as an entry of its own"
            )));
        }
    }
    let mount_group =
        match mount.volume_mount_group.as_str() {
            "" => None,
            group => Some(group.parse().map_err(|_| {
                Error::invalid(format!("volume_mount_group is {group:?}; it takes a numeric group id"))
            })?),
        };
    let (fs_type, mount_flags) = (FsType::parse(&mount.fs_type)?, mount.mount_flags.clone());
    Ok(AccessType::Mount { fs_type, mount_flags, mount_group })
}

/// Absent and all zero (Swarm) both mean "nothing given".
pub fn size(wire: Option<&csi::CapacityRange>) -> Result<SizeRange> {
    wire.map_or_else(|| Ok(SizeRange::default()), |range| SizeRange::parse(range.required_bytes, range.limit_bytes))
}

/// Of CreateVolume; an unknown key is an error.
pub fn parameters(wire: &BTreeMap<String, String>) -> Result<Parameters> {
    check_map("parameters", wire)?;
    Parameters::parse(pairs(wire))
}

/// Of GetCapacity. Kubernetes' csi-provisioner sends what the StorageClass says here, with the keys that are for itself
/// and that it takes out for CreateVolume (`csi.storage.k8s.io/fstype`; seen with 6.3.0), so those are passed over.
pub fn capacity_parameters(wire: &BTreeMap<String, String>) -> Result<Parameters> {
    check_map("parameters", wire)?;
    Parameters::parse(pairs(wire).filter(|(key, _)| !key.starts_with("csi.storage.k8s.io/")))
}

/// Of CreateVolume, ControllerModifyVolume and ValidateVolumeCapabilities; an unknown key is an error.
pub fn mutable_parameters(wire: &BTreeMap<String, String>) -> Result<MutableChange> {
    check_map("mutable_parameters", wire)?;
    MutableChange::parse(pairs(wire))
}

/// What CreateVolume put into volume_context. Orchestrators add keys of their own (Kubernetes: pod information), so
/// unknown ones are passed over.
pub fn volume_context(wire: &BTreeMap<String, String>) -> Result<Parameters> {
    check_map("volume_context", wire)?;
    Parameters::parse(pairs(wire).filter(|(key, _)| Parameters::KEYS.contains(key)))
}

pub fn publish_context(wire: &BTreeMap<String, String>) -> Result<Option<AttachContext>> {
    check_map("publish_context", wire)?;
    AttachContext::from_map(|key| wire.get(key).map(String::as_str))
}

pub fn segments(wire: &csi::Topology) -> Segments {
    Segments(wire.segments.clone())
}

/// Empty topologies (Nomad, Swarm) ask for nothing.
pub fn topology_requirement(wire: Option<&csi::TopologyRequirement>) -> TopologyRequirement {
    let places = |list: &[csi::Topology]| list.iter().filter(|t| !t.segments.is_empty()).map(segments).collect();
    wire.map_or_else(TopologyRequirement::default, |requirement| TopologyRequirement {
        requisite: places(&requirement.requisite),
        preferred: places(&requirement.preferred),
    })
}

fn check_map(name: &str, map: &BTreeMap<String, String>) -> Result<()> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_MAP_BYTES {
        return Err(Error::invalid(format!("{name} has {bytes} bytes; CSI allows {MAX_MAP_BYTES}")));
    }
    Ok(())
}

fn pairs(map: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    map.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use csi_proto::csi::volume_capability::{AccessMode as WireMode, BlockVolume};
    use volume::ErrorKind;

    fn wire(mode: i32, access_type: Option<WireAccessType>) -> csi::VolumeCapability {
        csi::VolumeCapability { access_mode: Some(WireMode { mode }), access_type }
    }

    fn mount(mount: MountVolume) -> Option<WireAccessType> {
        Some(WireAccessType::Mount(mount))
    }

    #[test]
    fn access_modes() {
        for (mode, expected) in [
            (0, AccessMode::SingleNodeWriter),
            (1, AccessMode::SingleNodeWriter),
            (2, AccessMode::SingleNodeReaderOnly),
            (3, AccessMode::MultiNodeReaderOnly),
            (4, AccessMode::MultiNodeSingleWriter),
            (5, AccessMode::MultiNodeMultiWriter),
            (6, AccessMode::SingleNodeSingleWriter),
            (7, AccessMode::SingleNodeMultiWriter),
            (99, AccessMode::SingleNodeWriter),
            (-1, AccessMode::SingleNodeWriter),
        ] {
            let parsed = capability(Some(&wire(mode, Some(WireAccessType::Block(BlockVolume {}))))).unwrap();
            assert_eq!((parsed.access_mode, parsed.access_type), (expected, AccessType::Block), "{mode}");
        }
    }

    #[test]
    fn mounts() {
        let full = MountVolume {
            fs_type: "xfs".to_owned(),
            mount_flags: vec!["noatime".to_owned()],
            volume_mount_group: "70".to_owned(),
        };
        let parsed = capability(Some(&wire(1, mount(full)))).unwrap();
        let flags = vec!["noatime".to_owned()];
        let expected = AccessType::Mount { fs_type: Some(FsType::Xfs), mount_flags: flags, mount_group: Some(70) };
        assert_eq!(parsed.access_type, expected);

        let flag = |flag: &str| MountVolume { mount_flags: vec![flag.to_owned()], ..MountVolume::default() };
        let group = |group: &str| MountVolume { volume_mount_group: group.to_owned(), ..MountVolume::default() };
        let fs = MountVolume { fs_type: "ntfs".to_owned(), ..MountVolume::default() };
        let wrong = [
            flag("noatime,suid"),
            flag(""),
            flag("a b"),
            flag("a\nb"),
            flag(&"x".repeat(5000)),
            group("wheel"),
            group("-1"),
            fs,
        ];
        for bad in wrong {
            let refused = capability(Some(&wire(1, mount(bad.clone())))).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn what_is_missing() {
        assert!(required(&[("volume_id", "x"), ("node_id", "")]).unwrap_err().to_string().contains("node_id"));
        assert!(required(&[("volume_id", "x")]).is_ok());
        assert!(capability(None).is_err());
        assert!(capability(Some(&wire(1, None))).is_err());
        assert!(
            capability(Some(&csi::VolumeCapability { access_mode: None, ..wire(1, mount(MountVolume::default())) }))
                .is_err()
        );
        assert!(capabilities(&[]).is_err());
        assert_eq!(size(None).unwrap(), SizeRange::default());
        assert_eq!(size(Some(&csi::CapacityRange::default())).unwrap(), SizeRange::default());
        let empty = csi::TopologyRequirement { requisite: vec![csi::Topology::default()], preferred: vec![] };
        assert_eq!(topology_requirement(Some(&empty)), TopologyRequirement::default());
    }

    #[test]
    fn contexts() {
        let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert!(parameters(&map("podname", "x")).is_err());
        assert_eq!(volume_context(&map("csi.storage.k8s.io/pod.name", "x")).unwrap(), Parameters::default());
        let of_class = map("csi.storage.k8s.io/fstype", "xfs");
        assert_eq!(capacity_parameters(&of_class).unwrap(), Parameters::default());
        assert!(parameters(&of_class).is_err() && capacity_parameters(&map("fstipe", "xfs")).is_err());
        assert!(volume_context(&map("uid", "root")).is_err());
        assert!(parameters(&map("mountFlags", &"x".repeat(5000))).is_err());
        assert!(
            mutable_parameters(&map("iops", "7")).is_err() && mutable_parameters(&map("readAheadKiB", "7")).is_ok()
        );
        assert_eq!(publish_context(&map("of", "others")).unwrap(), None);
        assert!(publish_context(&map("hawser.epoch", "7")).is_err());
    }
}
