//! What a workload wants of a volume, parsed from CSI's VolumeCapability, and the kind of volume that follows.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// CSI's access modes. `Unknown` is what Swarm sends for `--sharing none` with `--scope multi`; it is treated as
/// [`AccessMode::SingleNodeWriter`], the strictest reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessMode {
    SingleNodeWriter,
    SingleNodeReaderOnly,
    SingleNodeSingleWriter,
    SingleNodeMultiWriter,
    MultiNodeReaderOnly,
    MultiNodeSingleWriter,
    MultiNodeMultiWriter,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessType {
    Block,
    Mount {
        /// `None`: the volume's own file system.
        fs_type: Option<FsType>,
        /// Checked against the file system's allowlist by the node, as separate keys.
        mount_flags: Vec<String>,
        /// CSI's `volume_mount_group`: a numeric group id.
        mount_group: Option<u32>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeCapability {
    pub access_mode: AccessMode,
    pub access_type: AccessType,
}

/// File systems made on a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    #[default]
    Ext4,
    Xfs,
    Btrfs,
}

/// What a volume is made of, for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type", content = "fs")]
pub enum VolumeKind {
    /// An image with a file system: one node at a time.
    FileSystem(FsType),
    /// An image given to the workload as a block device: one node at a time.
    Block,
    /// A directory of the pool, bind-mounted: as many nodes as mount the pool.
    Directory,
}

impl AccessMode {
    pub fn is_multi_node(self) -> bool {
        matches!(self, Self::MultiNodeReaderOnly | Self::MultiNodeSingleWriter | Self::MultiNodeMultiWriter)
    }

    pub fn is_read_only(self) -> bool {
        matches!(self, Self::SingleNodeReaderOnly | Self::MultiNodeReaderOnly)
    }
}

impl FsType {
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// Parses CSI's `fs_type` or the `fsType` parameter; an empty string is "not given".
    pub fn parse(text: &str) -> Result<Option<Self>> {
        match text {
            "" => Ok(None),
            "ext4" => Ok(Some(Self::Ext4)),
            "xfs" => Ok(Some(Self::Xfs)),
            "btrfs" => Ok(Some(Self::Btrfs)),
            other => Err(Error::invalid(format!("file system {other:?} is not one of ext4, xfs, btrfs"))),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

impl VolumeKind {
    /// The one kind that serves all the capabilities of a request, or `InvalidArgument` with the reason.
    pub fn for_capabilities(capabilities: &[VolumeCapability], parameter: Option<FsType>) -> Result<Self> {
        if capabilities.is_empty() {
            return Err(Error::invalid("no volume capability is given"));
        }
        let blocks = capabilities.iter().filter(|c| c.access_type == AccessType::Block).count();
        let multi_node = capabilities.iter().any(|c| c.access_mode.is_multi_node());
        if blocks > 0 && blocks < capabilities.len() {
            return Err(Error::invalid("block and mount access are asked for together; a volume is one or the other"));
        }
        if blocks > 0 {
            if multi_node {
                return Err(Error::invalid(
                    "raw block volumes are for one node; multi-node access modes need mount access",
                ));
            }
            if let Some(fs) = parameter {
                return Err(Error::invalid(format!(
                    "fsType {} is given for a raw block volume, which has no file system",
                    fs.as_str()
                )));
            }
            return Ok(Self::Block);
        }
        let mut fs_type = parameter;
        for capability in capabilities {
            if let AccessType::Mount { fs_type: Some(wanted), .. } = &capability.access_type {
                match fs_type {
                    Some(chosen) if chosen != *wanted => {
                        return Err(Error::invalid(format!(
                            "file systems {} and {} are both asked for",
                            chosen.as_str(),
                            wanted.as_str()
                        )));
                    }
                    _ => fs_type = Some(*wanted),
                }
            }
        }
        if multi_node { Ok(Self::Directory) } else { Ok(Self::FileSystem(fs_type.unwrap_or_default())) }
    }

    /// Why a volume of this kind cannot serve `capability`, or `Ok`.
    pub fn check(self, capability: &VolumeCapability) -> Result<()> {
        let block = capability.access_type == AccessType::Block;
        let multi_node = capability.access_mode.is_multi_node();
        let reason = match self {
            Self::Block if !block => "it is a raw block volume and mount access is asked for",
            Self::FileSystem(_) | Self::Directory if block => "it holds a file system and block access is asked for",
            Self::Block | Self::FileSystem(_) if multi_node => {
                "it is for one node at a time and a multi-node access mode is asked for"
            }
            Self::FileSystem(own) => match &capability.access_type {
                AccessType::Mount { fs_type: Some(wanted), .. } if *wanted != own => {
                    return Err(Error::invalid(format!(
                        "the volume holds {} and {} is asked for",
                        own.as_str(),
                        wanted.as_str()
                    )));
                }
                _ => return Ok(()),
            },
            Self::Block | Self::Directory => return Ok(()),
        };
        Err(Error::invalid(format!("the volume cannot serve this capability: {reason}")))
    }

    /// Whether one holder at a time is enforced.
    pub fn is_single_node(self) -> bool {
        !matches!(self, Self::Directory)
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for VolumeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileSystem(fs) => write!(f, "{fs} file system"),
            Self::Block => f.write_str("raw block"),
            Self::Directory => f.write_str("directory"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(access_mode: AccessMode, fs_type: Option<FsType>) -> VolumeCapability {
        VolumeCapability {
            access_mode,
            access_type: AccessType::Mount { fs_type, mount_flags: vec![], mount_group: None },
        }
    }

    #[test]
    fn kinds() {
        let rwo = AccessMode::SingleNodeWriter;
        let block = VolumeCapability { access_mode: rwo, access_type: AccessType::Block };
        let kind = |caps: &[VolumeCapability]| VolumeKind::for_capabilities(caps, None);
        assert_eq!(kind(&[mount(rwo, None)]).unwrap(), VolumeKind::FileSystem(FsType::Ext4));
        assert_eq!(kind(&[mount(AccessMode::MultiNodeMultiWriter, None)]).unwrap(), VolumeKind::Directory);
        assert_eq!(kind(std::slice::from_ref(&block)).unwrap(), VolumeKind::Block);
        assert!(kind(&[block.clone(), mount(rwo, None)]).is_err());
        assert!(kind(&[]).is_err());
        assert!(kind(&[mount(rwo, Some(FsType::Xfs)), mount(rwo, Some(FsType::Btrfs))]).is_err());
        assert!(VolumeKind::FileSystem(FsType::Ext4).check(&block).is_err());
        assert!(VolumeKind::FileSystem(FsType::Ext4).check(&mount(rwo, Some(FsType::Xfs))).is_err());
        assert!(VolumeKind::Directory.check(&mount(AccessMode::MultiNodeReaderOnly, None)).is_ok());
    }
}
