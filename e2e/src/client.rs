//! A CSI client over a unix socket. A [`Call`] is a request as a value, so that the sweeps can repeat, cancel and race it.

use csi_proto::csi;
use csi_proto::csi::controller_client::ControllerClient;
use csi_proto::csi::identity_client::IdentityClient;
use csi_proto::csi::node_client::NodeClient;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Longer than any call may take; a test that waits this long has found something that hangs.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// A connection, made anew when the server comes back.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
}

/// A call under way.
pub(crate) struct Pending(tokio::task::JoinHandle<Result<Answer, Status>>);

/// A request of one of the calls that change something.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    CreateVolume(csi::CreateVolumeRequest),
    DeleteVolume(csi::DeleteVolumeRequest),
    ControllerPublish(csi::ControllerPublishVolumeRequest),
    ControllerUnpublish(csi::ControllerUnpublishVolumeRequest),
    ControllerExpand(csi::ControllerExpandVolumeRequest),
    ControllerModify(csi::ControllerModifyVolumeRequest),
    CreateSnapshot(csi::CreateSnapshotRequest),
    DeleteSnapshot(csi::DeleteSnapshotRequest),
    NodeStage(csi::NodeStageVolumeRequest),
    NodeUnstage(csi::NodeUnstageVolumeRequest),
    NodePublish(csi::NodePublishVolumeRequest),
    NodeUnpublish(csi::NodeUnpublishVolumeRequest),
    NodeExpand(csi::NodeExpandVolumeRequest),
}

/// What of the answers tests look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) capacity_bytes: i64,
    pub(crate) context: BTreeMap<String, String>,
}

impl Pending {
    pub(crate) fn answer(self) -> Result<Answer, Status> {
        runtime().block_on(self.0).unwrap_or_else(|error| Err(Status::unknown(error.to_string())))
    }
}

impl Client {
    /// Connects when first used.
    pub(crate) fn new(socket: &Path) -> Self {
        let socket: PathBuf = socket.to_owned();
        let _inside = runtime().enter();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Self { channel }
    }

    /// Runs the call to its end.
    pub(crate) fn call(&self, call: &Call) -> Result<Answer, Status> {
        block(self.send(call.clone()))
    }

    /// Drops the call after `patience`: `None` when it had not been answered.
    pub(crate) fn call_and_cancel(&self, call: &Call, patience: Duration) -> Option<Result<Answer, Status>> {
        runtime().block_on(async { tokio::time::timeout(patience, self.send(call.clone())).await.ok() })
    }

    /// Sends the call and leaves it; the answer is waited for later.
    pub(crate) fn call_later(&self, call: &Call) -> Pending {
        let (client, call) = (self.clone(), call.clone());
        Pending(runtime().spawn(async move { timed(client.send(call)).await }))
    }

    /// All at once; the answers in the order of the calls.
    pub(crate) fn call_all(&self, calls: &[Call]) -> Vec<Result<Answer, Status>> {
        runtime().block_on(async {
            let running: Vec<_> = calls
                .iter()
                .map(|call| {
                    let (client, call) = (self.clone(), call.clone());
                    tokio::spawn(async move { timed(client.send(call)).await })
                })
                .collect();
            let mut answers = Vec::with_capacity(running.len());
            for task in running {
                answers.push(task.await.unwrap_or_else(|error| Err(Status::unknown(error.to_string()))));
            }
            answers
        })
    }

    /// Repeats the call while it answers ABORTED (other work on the volume is under way) or the server is not back.
    pub(crate) fn call_until_done(&self, call: &Call) -> Result<Answer, Status> {
        let mut answer = self.call(call);
        for _ in 0..200 {
            match &answer {
                Err(status) if matches!(status.code(), Code::Aborted | Code::Unavailable) => {
                    std::thread::sleep(Duration::from_millis(50));
                    answer = self.call(call);
                }
                _ => break,
            }
        }
        answer
    }

    pub(crate) fn probe(&self) -> Result<bool, Status> {
        let mut client = IdentityClient::new(self.channel.clone());
        let answer = block(async move { client.probe(csi::ProbeRequest {}).await })?;
        Ok(answer.into_inner().ready.unwrap_or(true))
    }

    /// Whether the server says in time that it is ready.
    pub(crate) fn probe_within(&self, patience: Duration) -> bool {
        let mut client = IdentityClient::new(self.channel.clone());
        let probe = async move { client.probe(csi::ProbeRequest {}).await };
        let answer = runtime().block_on(async { tokio::time::timeout(patience, probe).await });
        matches!(answer, Ok(Ok(answer)) if answer.get_ref().ready.unwrap_or(true))
    }

    /// Volume id, capacity and publishing nodes of all volumes.
    pub(crate) fn volumes(&self) -> Result<Vec<(String, i64, Vec<String>)>, Status> {
        let mut client = ControllerClient::new(self.channel.clone());
        let answer = block(async move { client.list_volumes(csi::ListVolumesRequest::default()).await })?;
        let entries = answer.into_inner().entries.into_iter();
        Ok(entries
            .filter_map(|entry| {
                let volume = entry.volume?;
                let nodes = entry.status.map(|status| status.published_node_ids).unwrap_or_default();
                Some((volume.volume_id, volume.capacity_bytes, nodes))
            })
            .collect())
    }

    /// Snapshot id, source and size of all snapshots.
    pub(crate) fn snapshots(&self) -> Result<Vec<(String, String, i64)>, Status> {
        let mut client = ControllerClient::new(self.channel.clone());
        let answer = block(async move { client.list_snapshots(csi::ListSnapshotsRequest::default()).await })?;
        let entries = answer.into_inner().entries.into_iter().filter_map(|entry| entry.snapshot);
        Ok(entries.map(|s| (s.snapshot_id, s.source_volume_id, s.size_bytes)).collect())
    }

    async fn send(&self, call: Call) -> Result<Answer, Status> {
        let mut controller = ControllerClient::new(self.channel.clone());
        let mut node = NodeClient::new(self.channel.clone());
        let mut answer = Answer::default();
        match call {
            Call::CreateVolume(request) => {
                let volume = controller.create_volume(request).await?.into_inner().volume.unwrap_or_default();
                (answer.capacity_bytes, answer.context) = (volume.capacity_bytes, volume.volume_context);
            }
            Call::DeleteVolume(request) => drop(controller.delete_volume(request).await?),
            Call::ControllerPublish(request) => {
                answer.context = controller.controller_publish_volume(request).await?.into_inner().publish_context;
            }
            Call::ControllerUnpublish(request) => drop(controller.controller_unpublish_volume(request).await?),
            Call::ControllerExpand(request) => {
                answer.capacity_bytes = controller.controller_expand_volume(request).await?.into_inner().capacity_bytes;
            }
            Call::ControllerModify(request) => drop(controller.controller_modify_volume(request).await?),
            Call::CreateSnapshot(request) => {
                let snapshot = controller.create_snapshot(request).await?.into_inner().snapshot.unwrap_or_default();
                answer.capacity_bytes = snapshot.size_bytes;
            }
            Call::DeleteSnapshot(request) => drop(controller.delete_snapshot(request).await?),
            Call::NodeStage(request) => drop(node.node_stage_volume(request).await?),
            Call::NodeUnstage(request) => drop(node.node_unstage_volume(request).await?),
            Call::NodePublish(request) => drop(node.node_publish_volume(request).await?),
            Call::NodeUnpublish(request) => drop(node.node_unpublish_volume(request).await?),
            Call::NodeExpand(request) => {
                answer.capacity_bytes = node.node_expand_volume(request).await?.into_inner().capacity_bytes;
            }
        }
        Ok(answer)
    }
}

fn block<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    runtime().block_on(timed(call))
}

async fn timed<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let timed_out = || Status::deadline_exceeded(format!("no answer within {} s", CALL_DEADLINE.as_secs()));
    tokio::time::timeout(CALL_DEADLINE, call).await.unwrap_or_else(|_| Err(timed_out()))
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        #[expect(clippy::expect_used, reason = "no test can run without it")]
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a tokio runtime")
    })
}
