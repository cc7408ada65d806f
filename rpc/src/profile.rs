//! The orchestrator that this driver serves, and what it may be told that the driver can do.
//!
//! A capability is advertised when the storage has it and the profile allows it. The reasons are the orchestrators'
//! own limits; Kubernetes is told everything.

use csi_proto::csi::controller_service_capability::rpc::Type as ControllerCapability;
use csi_proto::csi::node_service_capability::rpc::Type as NodeCapability;
use csi_proto::csi::plugin_capability::service::Type as PluginCapability;
use std::fmt;
use std::str::FromStr;
use volume::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Profile {
    #[default]
    Kubernetes,
    Nomad,
    /// Docker Swarm's cluster volumes.
    Swarm,
    /// The Docker volume plugin protocol: no orchestrator speaks CSI, the adapter does.
    Docker,
}

impl Profile {
    pub const ALL: [Self; 4] = [Self::Kubernetes, Self::Nomad, Self::Swarm, Self::Docker];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Nomad => "nomad",
            Self::Swarm => "swarm",
            Self::Docker => "docker",
        }
    }

    pub fn allows_plugin(self, capability: PluginCapability) -> bool {
        match capability {
            PluginCapability::Unknown => false,
            PluginCapability::ControllerService => true,
            PluginCapability::VolumeAccessibilityConstraints => self.has_topology(),
            // Nomad vendors CSI 1.12, which has no name for the last of these, and has no use for the others.
            PluginCapability::GroupControllerService
            | PluginCapability::SnapshotMetadataService
            | PluginCapability::SnapshotAccessibilityConstraints => self == Self::Kubernetes,
        }
    }

    pub fn allows_controller(self, capability: ControllerCapability) -> bool {
        match capability {
            ControllerCapability::Unknown => false,
            // Grants are what the attachment contract hangs on: never left out where they exist.
            ControllerCapability::CreateDeleteVolume | ControllerCapability::PublishUnpublishVolume => true,
            // Swarm vendors CSI 1.2.0, never calls any of these and asks for nothing it does not know.
            ControllerCapability::ListVolumes
            | ControllerCapability::GetCapacity
            | ControllerCapability::CreateDeleteSnapshot
            | ControllerCapability::ListSnapshots
            | ControllerCapability::CloneVolume
            | ControllerCapability::PublishReadonly
            | ControllerCapability::ExpandVolume
            | ControllerCapability::ListVolumesPublishedNodes
            | ControllerCapability::GetVolume
            | ControllerCapability::SingleNodeMultiWriter => self.speaks_current_csi(),
            // Nomad vendors CSI 1.12 and has no use for these.
            ControllerCapability::ModifyVolume
            | ControllerCapability::GetSnapshot
            | ControllerCapability::GetVolumeHealth
            | ControllerCapability::ListVolumeHealth => self == Self::Kubernetes,
        }
    }

    pub fn allows_node(self, capability: NodeCapability) -> bool {
        match capability {
            NodeCapability::Unknown => false,
            // Swarm does not call NodeUnstage in normal work (swarmkit#3178) and may send a first NodePublish without
            // a staging path: there publish and unpublish do everything.
            NodeCapability::StageUnstageVolume
            | NodeCapability::GetVolumeStats
            | NodeCapability::ExpandVolume
            | NodeCapability::SingleNodeMultiWriter => self.speaks_current_csi(),
            // Nomad never sends volume_mount_group.
            NodeCapability::VolumeMountGroup | NodeCapability::GetVolumeHealth | NodeCapability::GetStorageHealth => {
                self == Self::Kubernetes
            }
        }
    }

    /// Whether CreateVolume and NodeGetInfo answer with accessible_topology. Swarm drops the node's (swarmkit#3270),
    /// and Nomad never places a volume whose topology no node has: both or neither.
    pub fn has_topology(self) -> bool {
        match self {
            Self::Kubernetes | Self::Nomad => true,
            Self::Swarm | Self::Docker => false,
        }
    }

    /// Whether snapshots are said to be somewhere, and are asked for somewhere.
    pub fn has_snapshot_topology(self) -> bool {
        self.allows_plugin(PluginCapability::SnapshotAccessibilityConstraints)
    }

    /// Whether the plugin says that it expands volumes: Swarm has no resize, the command line does it.
    pub fn allows_expansion(self) -> bool {
        self.speaks_current_csi()
    }

    /// Swarm's ControllerPublishVolume carries an empty mount capability whatever the volume's is.
    pub fn forces_mount_on_publish(self) -> bool {
        self == Self::Swarm
    }

    fn speaks_current_csi(self) -> bool {
        match self {
            Self::Kubernetes | Self::Nomad => true,
            Self::Swarm | Self::Docker => false,
        }
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|profile| profile.as_str() == text).ok_or_else(|| {
            Error::invalid(format!("orchestrator {text:?} is not one of kubernetes, nomad, swarm, docker"))
        })
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kubernetes, Nomad, Swarm, Docker.
    type Allowed = [bool; 4];
    const ALL: Allowed = [true; 4];
    const CURRENT: Allowed = [true, true, false, false];
    const KUBERNETES: Allowed = [true, false, false, false];
    const NONE: Allowed = [false; 4];

    fn check<T: TryFrom<i32> + fmt::Debug + Copy>(expected: &[Allowed], allows: impl Fn(Profile, T) -> bool) {
        for (number, allowed) in (0..).zip(expected) {
            let Ok(capability) = T::try_from(number) else { continue };
            let found = Profile::ALL.map(|profile| allows(profile, capability));
            assert_eq!(found, *allowed, "{capability:?}");
        }
        assert!((expected.len()..100).all(|n| T::try_from(i32::try_from(n).unwrap()).is_err()), "not all are listed");
    }

    #[test]
    fn plugin() {
        check(&[NONE, ALL, CURRENT, KUBERNETES, KUBERNETES, KUBERNETES], Profile::allows_plugin);
    }

    #[test]
    fn controller() {
        // 11 is reserved.
        let mut expected = [CURRENT; 18];
        expected[0] = NONE;
        (expected[1], expected[2]) = (ALL, ALL);
        expected[14..].fill(KUBERNETES);
        check(&expected, Profile::allows_controller);
    }

    #[test]
    fn node() {
        // 4 is reserved.
        let expected = [NONE, CURRENT, CURRENT, CURRENT, NONE, CURRENT, KUBERNETES, KUBERNETES, KUBERNETES];
        check(&expected, Profile::allows_node);
    }

    #[test]
    fn names() {
        for profile in Profile::ALL {
            assert_eq!(profile.as_str().parse::<Profile>().unwrap(), profile);
        }
        assert!("mesos".parse::<Profile>().is_err());
    }
}
