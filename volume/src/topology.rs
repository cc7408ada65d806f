//! Where a volume can be reached: CSI topology segments.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One place, e.g. `{"csi.hawser.dev/node": "n1"}` for a local pool or `{"csi.hawser.dev/<backend>.pool": "<uuid>"}` for
/// a shared one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Segments(pub BTreeMap<String, String>);

/// CSI's TopologyRequirement; both empty (Swarm, Nomad) means no requirement.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TopologyRequirement {
    pub requisite: Vec<Segments>,
    pub preferred: Vec<Segments>,
}

impl Segments {
    /// Whether everything `self` demands holds in `place`.
    pub fn is_within(&self, place: &Self) -> bool {
        self.0.iter().all(|(key, value)| place.0.get(key) == Some(value))
    }
}

impl TopologyRequirement {
    /// Whether a volume reachable from `accessible` (empty: from everywhere) satisfies the requirement.
    pub fn is_met_by(&self, accessible: &[Segments]) -> bool {
        let wanted = if self.requisite.is_empty() { &self.preferred } else { &self.requisite };
        wanted.is_empty()
            || accessible.is_empty()
            || accessible.iter().any(|own| wanted.iter().any(|w| own.is_within(w)))
    }
}
