//! A CSI client over a unix socket. A [`Call`] is a request as a value, so that the sweeps can repeat, cancel and race it.

use csi_proto::csi;
use csi_proto::csi::controller_client::ControllerClient;
use csi_proto::csi::group_controller_client::GroupControllerClient;
use csi_proto::csi::identity_client::IdentityClient;
use csi_proto::csi::node_client::NodeClient;
use csi_proto::csi::snapshot_metadata_client::SnapshotMetadataClient;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Longer than any call may take; a test that waits this long has found something that hangs.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// A connection, made anew when the server comes back.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
}

/// One thing that is wrong with a volume or with storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
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
    CreateGroup(csi::CreateVolumeGroupSnapshotRequest),
    DeleteGroup(csi::DeleteVolumeGroupSnapshotRequest),
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

/// A stream of the SnapshotMetadata service: of the changes since `base`, or without one of what is allocated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks<'a> {
    pub(crate) base: Option<&'a str>,
    pub(crate) snapshot: &'a str,
    pub(crate) from: i64,
    pub(crate) max_results: i32,
    /// The client goes away after so many messages.
    pub(crate) messages: usize,
}

/// The volume's capacity, and offset and size of ranges.
pub(crate) type BlocksMessage = (i64, Vec<(i64, i64)>);

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

    /// For calls that only one suite makes.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
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

    /// The messages of a stream.
    pub(crate) fn blocks(&self, asked: Blocks<'_>) -> Result<Vec<BlocksMessage>, Status> {
        let mut client = SnapshotMetadataClient::new(self.channel.clone());
        let (starting_offset, max_results, secrets) = (asked.from, asked.max_results, BTreeMap::new());
        let target_snapshot_id = asked.snapshot.to_owned();
        let tuples = |list: Vec<csi::BlockMetadata>| list.iter().map(|b| (b.byte_offset, b.size_bytes)).collect();
        let mut messages = Vec::new();
        match asked.base.map(str::to_owned) {
            Some(base_snapshot_id) => block(async move {
                let request = csi::GetMetadataDeltaRequest {
                    base_snapshot_id,
                    target_snapshot_id,
                    starting_offset,
                    max_results,
                    secrets,
                };
                let mut stream = client.get_metadata_delta(request).await?.into_inner();
                while messages.len() < asked.messages
                    && let Some(message) = stream.message().await?
                {
                    messages.push((message.volume_capacity_bytes, tuples(message.block_metadata)));
                }
                Ok(messages)
            }),
            None => block(async move {
                let snapshot_id = target_snapshot_id;
                let request = csi::GetMetadataAllocatedRequest { snapshot_id, starting_offset, max_results, secrets };
                let mut stream = client.get_metadata_allocated(request).await?.into_inner();
                while messages.len() < asked.messages
                    && let Some(message) = stream.message().await?
                {
                    messages.push((message.volume_capacity_bytes, tuples(message.block_metadata)));
                }
                Ok(messages)
            }),
        }
    }

    /// Names of the services that the plugin says it has.
    pub(crate) fn services(&self) -> Result<Vec<String>, Status> {
        let mut client = IdentityClient::new(self.channel.clone());
        let request = csi::GetPluginCapabilitiesRequest {};
        let answer = block(async move { client.get_plugin_capabilities(request).await })?.into_inner();
        let name = |capability: csi::PluginCapability| match capability.r#type? {
            csi::plugin_capability::Type::Service(service) => Some(service.r#type().as_str_name().to_owned()),
            csi::plugin_capability::Type::VolumeExpansion(_) => None,
        };
        Ok(answer.capabilities.into_iter().filter_map(name).collect())
    }

    /// Snapshot id, source, size and group of all snapshots.
    pub(crate) fn snapshots(&self) -> Result<Vec<(String, String, i64, String)>, Status> {
        let mut client = ControllerClient::new(self.channel.clone());
        let answer = block(async move { client.list_snapshots(csi::ListSnapshotsRequest::default()).await })?;
        let entries = answer.into_inner().entries.into_iter().filter_map(|entry| entry.snapshot);
        Ok(entries.map(|s| (s.snapshot_id, s.source_volume_id, s.size_bytes, s.group_snapshot_id)).collect())
    }

    pub(crate) fn controller_health(&self, id: &str) -> Result<Vec<Health>, Status> {
        let mut client = ControllerClient::new(self.channel.clone());
        let request = csi::ControllerGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
        let answer = block(async move { client.controller_get_volume_health(request).await })?;
        Ok(of_volume(answer.into_inner().volume_health))
    }

    /// Volume id and what is wrong.
    pub(crate) fn unhealthy(&self) -> Result<Vec<(String, Vec<Health>)>, Status> {
        let mut client = ControllerClient::new(self.channel.clone());
        let answer = block(async move {
            client.controller_list_volume_health(csi::ControllerListVolumeHealthRequest::default()).await
        })?;
        let entries = answer.into_inner().entries.into_iter();
        Ok(entries.map(|entry| (entry.volume_id.clone(), of_volume(Some(entry)))).collect())
    }

    pub(crate) fn node_health(&self, id: &str, publish: &str, staging: &str) -> Result<Vec<Health>, Status> {
        let mut client = NodeClient::new(self.channel.clone());
        let request = csi::NodeGetVolumeHealthRequest {
            volume_id: id.to_owned(),
            volume_publish_path: publish.to_owned(),
            staging_target_path: staging.to_owned(),
        };
        let answer = block(async move { client.node_get_volume_health(request).await })?;
        Ok(of_volume(answer.into_inner().volume_health))
    }

    pub(crate) fn storage_health(&self) -> Result<Vec<Health>, Status> {
        let mut client = NodeClient::new(self.channel.clone());
        let answer =
            block(async move { client.node_get_storage_health(csi::NodeGetStorageHealthRequest::default()).await })?;
        let found = answer.into_inner().backend_health.into_iter();
        Ok(found
            .map(|one| {
                let status = one.status().as_str_name().to_owned();
                Health { status, reason: one.reason, message: one.message }
            })
            .collect())
    }

    async fn send(&self, call: Call) -> Result<Answer, Status> {
        let mut controller = ControllerClient::new(self.channel.clone());
        let mut groups = GroupControllerClient::new(self.channel.clone());
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
            Call::CreateGroup(request) => drop(groups.create_volume_group_snapshot(request).await?),
            Call::DeleteGroup(request) => drop(groups.delete_volume_group_snapshot(request).await?),
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

fn of_volume(health: Option<csi::VolumeHealth>) -> Vec<Health> {
    let entries = health.unwrap_or_default().health_statuses.into_iter();
    entries
        .map(|entry| {
            let status = entry.status().as_str_name().to_owned();
            Health { status, reason: entry.reason, message: entry.message }
        })
        .collect()
}

static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM do not end this process: the next call fails instead, and whoever makes it cleans up.
pub(crate) fn survive_interrupts() -> std::io::Result<()> {
    let _inside = runtime().enter();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    runtime().spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        IS_INTERRUPTED.store(true, Ordering::SeqCst);
    });
    Ok(())
}

pub(crate) fn is_interrupted() -> bool {
    IS_INTERRUPTED.load(Ordering::SeqCst)
}

pub(crate) fn block<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    if is_interrupted() {
        return Err(Status::cancelled("interrupted"));
    }
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
