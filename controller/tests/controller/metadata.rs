//! GetMetadataAllocated and GetMetadataDelta as a client sees them, over a socket.

use super::*;
use csi_proto::csi::snapshot_metadata_client::SnapshotMetadataClient;
use csi_proto::csi::snapshot_metadata_server::SnapshotMetadataServer;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Server};
use volume::ByteRange;

const BLOCK: u64 = 4096;
const SIZE: i64 = 64 << 20;

struct Served {
    subject: Subject,
    client: SnapshotMetadataClient<Channel>,
    snapshots: [String; 2],
    _place: tempfile::TempDir,
    _socket: rpc::SocketFile,
}

/// With two snapshots of one volume, which hold `ranges` blocks with gaps between.
async fn serve(ranges: u64) -> Served {
    let subject = subject();
    let volume = subject.created("v").await.volume_id;
    let snapshots = [subject.snapshot("s1", &volume).await.unwrap(), subject.snapshot("s2", &volume).await.unwrap()];
    let block = |n| ByteRange { offset_bytes: n * 2 * BLOCK, length_bytes: BLOCK };
    subject.shelf.blocks.lock().unwrap().ranges = (0..ranges).map(block).collect();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("csi.sock");
    let (incoming, socket) = rpc::bind(&path).await.unwrap();
    let server = Server::builder().add_service(SnapshotMetadataServer::new(subject.service.metadata()));
    tokio::spawn(server.serve_with_incoming(incoming));
    let channel = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap();
    let client = SnapshotMetadataClient::new(channel);
    Served { subject, client, snapshots: snapshots.map(|s| s.snapshot_id), _place: place, _socket: socket }
}

impl Served {
    async fn allocated(&self, from: i64, max: i32) -> Result<Streaming<GetMetadataAllocatedResponse>, Status> {
        let (snapshot_id, starting_offset, max_results) = (self.snapshots[0].clone(), from, max);
        let request =
            GetMetadataAllocatedRequest { snapshot_id, starting_offset, max_results, secrets: BTreeMap::new() };
        inner(self.client.clone().get_metadata_allocated(request).await)
    }

    async fn delta(&self, base: &str, target: &str, from: i64, max: i32) -> Result<Vec<BlockMetadata>, Status> {
        let request = GetMetadataDeltaRequest {
            base_snapshot_id: base.to_owned(),
            target_snapshot_id: target.to_owned(),
            starting_offset: from,
            max_results: max,
            ..Default::default()
        };
        let mut stream = inner(self.client.clone().get_metadata_delta(request).await)?;
        let mut all = Vec::new();
        while let Some(message) = stream.message().await? {
            assert_eq!((message.block_metadata_type(), message.volume_capacity_bytes), (VARIABLE, SIZE));
            let count = message.block_metadata.len();
            assert!(max == 0 && count <= 4096 || count <= max as usize, "{count} of {max}");
            all.extend(message.block_metadata);
        }
        Ok(all)
    }

    fn expected(&self) -> Vec<BlockMetadata> {
        let blocks = self.subject.shelf.blocks.lock().unwrap();
        let block =
            |r: &ByteRange| BlockMetadata { byte_offset: r.offset_bytes as i64, size_bytes: r.length_bytes as i64 };
        blocks.ranges.iter().map(block).collect()
    }
}

const VARIABLE: BlockMetadataType = BlockMetadataType::VariableLength;

#[tokio::test]
async fn whole_lists_in_messages_of_any_size() {
    let s = serve(5000).await;
    let expected = s.expected();
    for max in [0, 1, 7, 4096, 5000, i32::MAX] {
        assert_eq!(s.delta(&s.snapshots[0], &s.snapshots[1], 0, max).await.unwrap(), expected, "{max}");
    }
    // Exactly full messages end without an empty one.
    let mut stream = s.allocated(0, 1000).await.unwrap();
    let mut counts = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!((message.block_metadata_type(), message.volume_capacity_bytes), (VARIABLE, SIZE));
        counts.push(message.block_metadata.len());
    }
    assert_eq!(counts, [1000; 5]);
}

#[tokio::test]
async fn a_cut_stream_goes_on_where_it_ended() {
    let s = serve(100).await;
    let expected = s.expected();
    for cut in [0, 1, 50, 99, 100] {
        let from = if cut == 0 { 0 } else { expected[cut - 1].byte_offset + expected[cut - 1].size_bytes };
        let rest = s.delta(&s.snapshots[0], &s.snapshots[1], from, 9).await.unwrap();
        assert_eq!(rest, expected[cut..], "{cut}");
    }
}

#[tokio::test]
async fn nothing_is_one_message_with_the_size() {
    let s = serve(0).await;
    let mut stream = s.allocated(SIZE, 0).await.unwrap();
    let message = stream.message().await.unwrap().unwrap();
    assert_eq!((message.volume_capacity_bytes, message.block_metadata_type()), (SIZE, VARIABLE));
    assert!(message.block_metadata.is_empty());
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test]
async fn wrong_requests() {
    let s = serve(3).await;
    let [base, target] = &s.snapshots;
    let code = async |base: &str, target: &str, from, max| s.delta(base, target, from, max).await.unwrap_err().code();
    assert_eq!(code("", target, 0, 0).await, Code::InvalidArgument);
    assert_eq!(code(base, "", 0, 0).await, Code::InvalidArgument);
    assert_eq!(code(base, target, 0, -1).await, Code::InvalidArgument);
    for wrong in [-1, i64::MIN, SIZE + 1, i64::MAX] {
        assert_eq!(code(base, target, wrong, 0).await, Code::OutOfRange, "{wrong}");
        refused(s.allocated(wrong, 0).await, Code::OutOfRange);
    }
    for gone in FOREIGN.into_iter().chain([NO_SNAPSHOT, NO_VOLUME, "attic.s00000000000000000000000000000000"]) {
        assert_eq!(code(gone, target, 0, 0).await, Code::NotFound, "{gone}");
        assert_eq!(code(base, gone, 0, 0).await, Code::NotFound, "{gone}");
    }
    let other = s.subject.created("other").await.volume_id;
    let other = s.subject.snapshot("of other", &other).await.unwrap().snapshot_id;
    assert_eq!(code(&other, target, 0, 0).await, Code::InvalidArgument);
    let bare = "bare.s00000000000000000000000000000000";
    assert_eq!(code(bare, target, 0, 0).await, Code::InvalidArgument);
    assert_eq!(code(bare, bare, 0, 0).await, Code::FailedPrecondition);
}

/// The client must be able to tell it from the end of the list.
#[tokio::test]
async fn what_fails_on_the_way_is_no_end() {
    let s = serve(100).await;
    s.subject.shelf.blocks.lock().unwrap().broken_after = Some(30);
    let mut stream = s.allocated(0, 10).await.unwrap();
    for _ in 0..3 {
        assert_eq!(stream.message().await.unwrap().unwrap().block_metadata.len(), 10);
    }
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    s.subject.shelf.blocks.lock().unwrap().broken_after = Some(0);
    refused(s.allocated(0, 10).await, Code::Unavailable);
}

#[tokio::test]
async fn reading_waits_for_the_client_and_ends_with_it() {
    let s = serve(2_000_000).await;
    let mut stream = s.allocated(0, 0).await.unwrap();
    stream.message().await.unwrap().unwrap();
    let read = || s.subject.shelf.blocks.lock().unwrap().read;
    let steady = async || {
        let mut last = 0;
        while last != read() {
            last = read();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        last
    };
    let waiting = steady().await;
    assert!(waiting < 1_000_000, "{waiting} ranges were read for a client that takes none");
    drop(stream);
    assert!(steady().await < 1_000_000);
    // Whoever comes back is served.
    assert!(s.allocated(SIZE, 0).await.is_ok());
}
