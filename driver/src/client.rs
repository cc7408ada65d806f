//! Speaks CSI to a driver on its socket, as an orchestrator does: for `demo` and `bench`.

use csi_proto::csi::controller_client::ControllerClient;
use csi_proto::csi::identity_client::IdentityClient;
use csi_proto::csi::node_client::NodeClient;
use csi_proto::csi::volume_capability::access_mode::Mode;
use csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi_proto::csi::{CapacityRange, ProbeRequest, VolumeCapability};
use hyper_util::rt::TokioIo;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use volume::{Error, ErrorKind, Result};

#[derive(Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects when the first call needs it.
    pub fn new(socket: &Path) -> Self {
        Self::with_timeout(socket, Duration::from_secs(60))
    }

    /// `timeout` is of each call; the driver is told of it.
    pub fn with_timeout(socket: &Path, timeout: Duration) -> Self {
        let socket = socket.to_owned();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(timeout);
        Self { channel: endpoint.connect_with_connector_lazy(connect) }
    }

    pub fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    pub fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    /// Whether it answers Probe with "ready".
    pub async fn is_ready(&self) -> bool {
        let probed = self.identity().probe(ProbeRequest {}).await;
        probed.is_ok_and(|answer| answer.into_inner().ready.unwrap_or(true))
    }
}

/// Read-write-once, with ext4 or as a raw device.
pub fn capability(block: bool) -> VolumeCapability {
    capability_of(block, "ext4")
}

/// Read-write-once, with this file system or as a raw device.
pub fn capability_of(block: bool, fs_type: &str) -> VolumeCapability {
    let access_type = if block {
        AccessType::Block(BlockVolume {})
    } else {
        AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() })
    };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(access_type),
    }
}

pub fn at_least(bytes: u64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes: i64::try_from(bytes).unwrap_or(i64::MAX), limit_bytes: 0 })
}

/// A refused call as an error of ours.
pub fn refused(what: &str, status: &Status) -> Error {
    let kind = match status.code() {
        Code::FailedPrecondition => ErrorKind::FailedPrecondition,
        Code::PermissionDenied => ErrorKind::PermissionDenied,
        Code::NotFound => ErrorKind::NotFound,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DeadlineExceeded | Code::Cancelled => ErrorKind::Timeout,
        Code::ResourceExhausted => ErrorKind::Exhausted,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("{what} answers {:?}: {}", status.code(), status.message()))
}

pub type Answer<T> = Result<tonic::Response<T>, Status>;
