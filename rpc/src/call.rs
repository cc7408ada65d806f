//! Which call this is, for logs, metrics and the choice of status codes.

use std::fmt;

/// One call as it is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub rpc: Rpc,
    /// The id of the volume or snapshot it is about, as the client wrote it, or its beginning.
    pub volume: Option<String>,
    pub node: Option<String>,
    /// What an [`Rpc::AgentInvoke`] does.
    pub operation: Option<&'static str>,
}

macro_rules! rpcs {
    ($($name:ident),* $(,)?) => {
        /// Every call of CSI 1.13, and those of the agents of pools.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Rpc {
            $($name),*
        }

        impl Rpc {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The protocol's own name of the call.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name)),*
                }
            }
        }
    };
}

rpcs! {
    GetPluginInfo,
    GetPluginCapabilities,
    Probe,
    CreateVolume,
    DeleteVolume,
    ControllerPublishVolume,
    ControllerUnpublishVolume,
    ValidateVolumeCapabilities,
    ListVolumes,
    ControllerListVolumeHealth,
    ControllerGetVolumeHealth,
    GetCapacity,
    ControllerGetCapabilities,
    CreateSnapshot,
    DeleteSnapshot,
    ListSnapshots,
    GetSnapshot,
    ControllerExpandVolume,
    ControllerGetVolume,
    ControllerModifyVolume,
    GroupControllerGetCapabilities,
    CreateVolumeGroupSnapshot,
    DeleteVolumeGroupSnapshot,
    GetVolumeGroupSnapshot,
    GetMetadataAllocated,
    GetMetadataDelta,
    NodeStageVolume,
    NodeUnstageVolume,
    NodePublishVolume,
    NodeUnpublishVolume,
    NodeGetVolumeStats,
    NodeGetVolumeHealth,
    NodeGetStorageHealth,
    NodeExpandVolume,
    NodeGetCapabilities,
    NodeGetInfo,
    AgentInvoke,
    AgentWatch,
}

impl Call {
    pub fn new(rpc: Rpc) -> Self {
        Self { rpc, volume: None, node: None, operation: None }
    }

    #[must_use]
    pub fn volume(mut self, id: &str) -> Self {
        self.volume = Some(shown(id));
        self
    }

    #[must_use]
    pub fn operation(mut self, name: &'static str) -> Self {
        self.operation = Some(name);
        self
    }

    #[must_use]
    pub fn node(mut self, id: &str) -> Self {
        self.node = Some(shown(id));
        self
    }
}

/// Ids and names that CSI allows are shorter; what a client sends may be as long as a message.
fn shown(id: &str) -> String {
    const LIMIT: usize = 256;
    id.chars().take(LIMIT).collect()
}

impl fmt::Display for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
