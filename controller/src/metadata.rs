//! The SnapshotMetadata service: allocated and changed blocks of snapshots, as streams.

use crate::core::Core;
use crate::reply;
use csi_proto::csi::snapshot_metadata_server::SnapshotMetadata;
use csi_proto::csi::*;
use rpc::{Call, Outlet, Rpc, Runtime, Trace, parse};
use std::fmt::Debug;
use std::sync::Arc;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};
use volume::{Backend, BlockRanges, ChangedBlocks, Error, ErrorKind, Result, SnapshotId};

type Answer<T> = std::result::Result<Response<T>, Status>;

/// Ranges in one message, at most: about 100 KiB, and gRPC's clients refuse messages above 4 MiB.
const MAX_RANGES: usize = 4096;

pub struct SnapshotMetadataService {
    core: Arc<Core>,
    runtime: Runtime,
}

impl SnapshotMetadataService {
    pub(crate) fn new(core: Arc<Core>, runtime: Runtime) -> Self {
        Self { core, runtime }
    }

    /// Prepares and runs one call; `message` makes its messages of the snapshot's size and some ranges.
    async fn call<Q: Debug, M: Send + Unpin + 'static>(
        &self,
        call: Call,
        request: Request<Q>,
        prepare: impl FnOnce(&Core, Q) -> Result<Asked>,
        message: impl Fn(i64, Vec<BlockMetadata>) -> M + Send + 'static,
    ) -> Answer<BoxStream<M>> {
        let request = request.into_inner();
        self.runtime.received(call.rpc, &request);
        let refuse = |error| self.runtime.refuse(&call, &error);
        if !self.core.serves(call.rpc, |backend| backend.changed_blocks().is_some()).map_err(refuse)? {
            return Err(self.runtime.unimplemented(call.rpc));
        }
        let asked = prepare(&self.core, request).map_err(refuse)?;
        let messages = self.runtime.stream(call, move |trace, outlet| run(asked, trace, outlet, message)).await?;
        Ok(Response::new(Box::pin(messages)))
    }
}

#[tonic::async_trait]
impl SnapshotMetadata for SnapshotMetadataService {
    type GetMetadataAllocatedStream = BoxStream<GetMetadataAllocatedResponse>;
    type GetMetadataDeltaStream = BoxStream<GetMetadataDeltaResponse>;

    async fn get_metadata_allocated(
        &self,
        request: Request<GetMetadataAllocatedRequest>,
    ) -> Answer<Self::GetMetadataAllocatedStream> {
        let call = Call::new(Rpc::GetMetadataAllocated).volume(&request.get_ref().snapshot_id);
        let message = |volume_capacity_bytes, block_metadata| GetMetadataAllocatedResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes,
            block_metadata,
        };
        self.call(call, request, prepare_allocated, message).await
    }

    async fn get_metadata_delta(
        &self,
        request: Request<GetMetadataDeltaRequest>,
    ) -> Answer<Self::GetMetadataDeltaStream> {
        let call = Call::new(Rpc::GetMetadataDelta).volume(&request.get_ref().target_snapshot_id);
        let message = |volume_capacity_bytes, block_metadata| GetMetadataDeltaResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes,
            block_metadata,
        };
        self.call(call, request, prepare_delta, message).await
    }
}

struct Asked {
    backend: Arc<dyn Backend>,
    /// `None`: what is allocated.
    base: Option<SnapshotId>,
    snapshot: SnapshotId,
    from_bytes: u64,
    max_ranges: usize,
}

fn prepare_allocated(core: &Core, request: GetMetadataAllocatedRequest) -> Result<Asked> {
    parse::required(&[("snapshot_id", &request.snapshot_id)])?;
    let (from_bytes, max_ranges) = (offset(request.starting_offset)?, limit(request.max_results)?);
    let snapshot = SnapshotId::parse(&request.snapshot_id)?;
    let backend = core.of_id(snapshot.backend(), snapshot.as_str())?;
    Ok(Asked { backend, base: None, snapshot, from_bytes, max_ranges })
}

fn prepare_delta(core: &Core, request: GetMetadataDeltaRequest) -> Result<Asked> {
    let (base, target) = (&request.base_snapshot_id, &request.target_snapshot_id);
    parse::required(&[("base_snapshot_id", base), ("target_snapshot_id", target)])?;
    let (from_bytes, max_ranges) = (offset(request.starting_offset)?, limit(request.max_results)?);
    let (base, snapshot) = (SnapshotId::parse(base)?, SnapshotId::parse(target)?);
    let backend = core.of_id(snapshot.backend(), snapshot.as_str())?;
    core.of_id(base.backend(), base.as_str())?;
    if base.backend() != snapshot.backend() {
        let message = format!("{base} and {snapshot} are on different backends, so not of one volume");
        return Err(Error::invalid(message));
    }
    Ok(Asked { backend, base: Some(base), snapshot, from_bytes, max_ranges })
}

/// CSI, the error tables of both calls: a negative offset is OUT_OF_RANGE.
fn offset(starting_offset: i64) -> Result<u64> {
    u64::try_from(starting_offset).map_err(|_| {
        Error::new(ErrorKind::OutOfRange, format!("starting_offset is {starting_offset}; it cannot be negative"))
    })
}

fn limit(max_results: i32) -> Result<usize> {
    match usize::try_from(max_results) {
        Err(_) => Err(Error::invalid(format!("max_results is {max_results}; it cannot be negative"))),
        Ok(0) => Ok(MAX_RANGES),
        Ok(wanted) => Ok(wanted.min(MAX_RANGES)),
    }
}

fn run<M>(
    asked: Asked,
    trace: &mut Trace,
    outlet: &Outlet<M>,
    message: impl Fn(i64, Vec<BlockMetadata>) -> M,
) -> Result<()> {
    trace.step("open");
    let BlockRanges { size_bytes, mut ranges } = open(&asked)?;
    trace.step("read");
    let capacity = reply::bytes(size_bytes);
    let mut is_first = true;
    loop {
        let next = ranges.by_ref().take(asked.max_ranges);
        let next: Vec<BlockMetadata> = next
            .map(|range| {
                let range = range?;
                let (byte_offset, size_bytes) = (reply::bytes(range.offset_bytes), reply::bytes(range.length_bytes));
                Ok(BlockMetadata { byte_offset, size_bytes })
            })
            .collect::<Result<_>>()?;
        // Where there is nothing, the client still learns the size.
        if next.is_empty() && !is_first {
            return Ok(());
        }
        let is_last = next.len() < asked.max_ranges;
        outlet.send(message(capacity, next))?;
        if is_last {
            return Ok(());
        }
        is_first = false;
    }
}

fn open(asked: &Asked) -> Result<BlockRanges> {
    let Asked { backend, base, snapshot, from_bytes, .. } = asked;
    let blocks: &dyn ChangedBlocks = backend.changed_blocks().ok_or_else(|| {
        // GetMetadataDelta: "Changed block tracking is not enabled"; the caller then takes a full backup.
        let message = format!("backend {} does not know which blocks its snapshots hold", backend.name());
        Error::new(ErrorKind::FailedPrecondition, message)
    })?;
    match base {
        None => blocks
            .allocated(snapshot, *from_bytes)
            .map_err(|error| error.context(format!("list what snapshot {snapshot} holds"))),
        Some(base) => blocks
            .changed(base, snapshot, *from_bytes)
            .map_err(|error| error.context(format!("compare snapshot {snapshot} with {base}"))),
    }
}
