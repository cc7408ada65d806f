//! The node's half of a backend: from a volume id to a device or directory on this machine.

use crate::{Epoch, HealthProblem, NodeIdentity, Result, Volume, VolumeGuard, VolumeHealth, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What ControllerPublish hands to the node through CSI's publish_context. A hint: the node checks it against the
/// backend's record and works without it when an orchestrator drops it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachContext {
    pub version: u32,
    pub epoch: Epoch,
}

#[derive(Debug)]
pub struct ConnectRequest<'a> {
    pub volume: &'a VolumeId,
    pub node: &'a NodeIdentity,
    pub read_only: bool,
    pub context: Option<&'a AttachContext>,
}

/// `major:minor` of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

/// Where the volume is on this node, verified to be the one meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connected {
    Device { path: PathBuf, number: DeviceNumber, read_only: bool, epoch: Epoch },
    Directory { path: PathBuf },
}

pub trait Connector: Send + Sync {
    /// Writes this node's record (before it serves anything) and reads back whether it is fenced. A fenced
    /// incarnation stays fenced; a new one of the same node starts live.
    fn register(&self, node: &NodeIdentity) -> Result<crate::NodeRecord>;

    /// Leaves the node's next sign of life in the storage, where others can see it ([`crate::Attach::signs_of_life`]). To
    /// be called every half second, on a thread of its own: a hung storage hangs it. Does nothing where no marks are kept.
    fn show_life(&self, node: &NodeIdentity) -> Result<()> {
        let _ = node;
        Ok(())
    }

    /// For how long this node may go on without having left a sign of life: from then on others may have its volumes, and
    /// nothing but itself stops what it still writes. `None`: whoever gives them away stops it.
    fn lease(&self) -> Option<Duration> {
        None
    }

    /// The grants of this backend, for a node that takes them itself ([`crate::Attacher::Node`]); it asks for its own alone.
    /// `None`: they can be had from the controller only.
    fn grants(&self) -> Option<&dyn crate::Attach> {
        None
    }

    /// The volume as the backend records it; `NotFound` when there is none.
    fn volume(&self, id: &VolumeId) -> Result<Volume>;

    /// Connects, or finds the connection that is there. `Held` when the record does not grant the volume to this
    /// node's incarnation or `context` has another epoch than the record. Checks the record again after connecting,
    /// so that a fence that ran meanwhile is seen.
    fn connect(&self, guard: &VolumeGuard, request: &ConnectRequest<'_>) -> Result<Connected>;

    /// Disconnects everything of this volume on this machine that belongs to this node; fine when nothing is there.
    fn disconnect(&self, guard: &VolumeGuard, id: &VolumeId, node: &NodeIdentity) -> Result<()>;

    /// What is connected now, from the kernel's tables alone.
    fn observe(&self, id: &VolumeId) -> Result<Option<Connected>> {
        Ok(self.connections(id)?.into_iter().next())
    }

    /// As [`Connector::observe`], the present connection first and after it those of earlier epochs that are still there.
    fn connections(&self, id: &VolumeId) -> Result<Vec<Connected>>;

    /// Whether it is certain that this volume is not connected on this machine, and so not mounted, as a look costs that
    /// does not grow with the number of volumes. `false` says nothing: then [`Connector::connections`] tells.
    fn is_surely_unconnected(&self, id: &VolumeId) -> Result<bool> {
        let _ = id;
        Ok(false)
    }

    /// All connections of this backend on this machine, for start-up reconciliation.
    fn observe_all(&self) -> Result<Vec<(VolumeId, Connected)>>;

    /// After the backend grew the volume: makes the connected device show the new size; the size in bytes.
    fn refresh_size(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<u64>;

    /// Notes durably that the volume is about to be mounted for the first time: from now on it is never formatted.
    fn mark_staged(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()>;

    /// What is wrong with this backend as seen from this node; empty when all is well. Cheap, and bounded in time only
    /// by the caller: a hung pool hangs it.
    fn storage_health(&self) -> Result<Vec<HealthProblem>> {
        Ok(Vec::new())
    }

    /// What the storage says of the volume, as [`crate::Health::volume_health`] does; `NotFound` when there is none.
    fn volume_health(&self, id: &VolumeId) -> Result<VolumeHealth> {
        self.volume(id).map(|volume| VolumeHealth { volume: volume.id, problems: Vec::new() })
    }

    /// A mark that is another one after the volume's record has changed; cheaper than reading the record. `None` when
    /// that cannot be told just now: then the record has to be read. `NotFound` when there is no such volume.
    fn record_mark(&self, id: &VolumeId) -> Result<Option<u64>> {
        self.volume(id).map(|_| None)
    }

    /// How many volumes this node can have; `None` when there is no limit.
    fn max_volumes(&self) -> Option<u64>;

    /// This node's topology segments.
    fn topology(&self) -> Result<crate::Segments>;
}

impl AttachContext {
    pub const VERSION: u32 = 1;
    const VERSION_KEY: &'static str = "hawser.version";
    const EPOCH_KEY: &'static str = "hawser.epoch";

    pub fn new(epoch: Epoch) -> Self {
        Self { version: Self::VERSION, epoch }
    }

    pub fn to_map(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (Self::VERSION_KEY.to_owned(), self.version.to_string()),
            (Self::EPOCH_KEY.to_owned(), self.epoch.to_string()),
        ])
    }

    /// `None` for a map without our keys (dropped by the orchestrator); `InvalidArgument` for one that is damaged or
    /// of a version this driver does not know.
    pub fn from_map<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Self>> {
        let (version, epoch) = match (get(Self::VERSION_KEY), get(Self::EPOCH_KEY)) {
            (None, None) => return Ok(None),
            (Some(version), Some(epoch)) => (version, epoch),
            (Some(_), None) | (None, Some(_)) => return Err(Self::damaged("one of its keys is missing")),
        };
        match (version.parse::<u32>(), epoch.parse::<u64>()) {
            (Ok(Self::VERSION), Ok(epoch)) => Ok(Some(Self::new(Epoch(epoch)))),
            (Ok(other), Ok(_)) => {
                Err(Self::damaged(&format!("its version is {other}, this driver knows {}", Self::VERSION)))
            }
            _ => Err(Self::damaged("it holds something that is not a number")),
        }
    }

    fn damaged(reason: &str) -> crate::Error {
        crate::Error::invalid(format!("publish_context is not usable: {reason}; publish the volume to this node again"))
    }
}
