//! NodeGetCapabilities and NodeGetInfo: what this node can do, derived from its connectors and the profile.

use crate::node::Node;
use csi_proto::csi::node_service_capability::rpc::Type as Capability;
use rpc::Profile;
use volume::{NodeId, Result, Segments};

/// What the verbs of this crate implement. VOLUME_MOUNT_GROUP is not among them, though the field is honoured: kubelet
/// would then leave fsGroup to the driver, which changes the root directory alone, and files written under another
/// group stayed closed. Without it kubelet changes ownership itself, as fsGroupChangePolicy says.
const IMPLEMENTED: [Capability; 6] = [
    Capability::StageUnstageVolume,
    Capability::GetVolumeStats,
    Capability::ExpandVolume,
    Capability::SingleNodeMultiWriter,
    Capability::GetVolumeHealth,
    Capability::GetStorageHealth,
];

/// NodeGetInfoResponse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) node: NodeId,
    /// `None`: no limit.
    pub(crate) max_volumes: Option<u64>,
    /// `None` where the profile has no topology, or nothing constrains this node.
    pub(crate) topology: Option<Segments>,
}

pub(crate) fn capabilities(profile: Profile) -> Vec<Capability> {
    IMPLEMENTED.into_iter().filter(|capability| profile.allows_node(*capability)).collect()
}

impl Node {
    pub(crate) fn info(&self, profile: Profile) -> Result<Info> {
        // CSI has one limit for all volumes of a driver; the smallest is true for every backend.
        let max_volumes = self.connectors.values().filter_map(|connector| connector.max_volumes()).min();
        let mut topology = Segments::default();
        if profile.has_topology() {
            for connector in self.connectors.values() {
                topology.0.extend(connector.topology()?.0);
            }
        }
        let topology = (!topology.0.is_empty()).then_some(topology);
        Ok(Info { node: self.id.clone(), max_volumes, topology })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_orchestrator_is_told() {
        for (profile, expected) in [
            (Profile::Kubernetes, &IMPLEMENTED[..]),
            (Profile::Nomad, &IMPLEMENTED[..4]),
            (Profile::Swarm, &[]),
            (Profile::Docker, &[]),
        ] {
            assert_eq!(capabilities(profile), expected, "{profile}");
        }
    }
}
