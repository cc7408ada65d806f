//! A client that goes away does not stop the work or free its lock.

use super::*;
use csi_proto::csi::controller_client::ControllerClient;
use csi_proto::csi::controller_server::ControllerServer;
use tonic::transport::{Channel, Endpoint, Server};

#[tokio::test]
async fn the_work_goes_on_and_the_retry_finds_it() {
    let Subject { service, shelf } = subject();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("csi.sock");
    let (incoming, _file) = rpc::bind(&path).await.unwrap();
    let serving =
        tokio::spawn(Server::builder().add_service(ControllerServer::new(service)).serve_with_incoming(incoming));
    let channel = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap();
    let mut client = ControllerClient::new(channel);

    shelf.close_gate();
    let leaving = tokio::spawn({
        let mut client = client.clone();
        async move { client.create_volume(volume_request("v")).await }
    });
    shelf.wait_until_stopped(1).await;
    leaving.abort();
    // So does a client whose own deadline passes.
    let mut hasty = Request::new(volume_request("w"));
    hasty.set_timeout(Duration::from_secs(1));
    assert!(client.create_volume(hasty).await.is_err());
    shelf.wait_until_stopped(2).await;
    for name in ["v", "w"] {
        refused(client.create_volume(volume_request(name)).await, Code::Aborted);
    }
    shelf.open_gate();
    let other = client.create_volume(volume_request("other")).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(other.capacity_bytes, 64 << 20);
    wait_until_listed(&mut client, 3).await;
    for name in ["v", "w"] {
        assert_eq!(retry(&mut client, name).await.capacity_bytes, other.capacity_bytes);
    }
    serving.abort();
}

/// Nobody asks for them any more, so only the works that were left alone can make them.
async fn wait_until_listed(client: &mut ControllerClient<Channel>, count: usize) {
    for _ in 0..200 {
        let list = client.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
        if list.entries.len() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{count} volumes were never made");
}

/// The lock goes a moment after the volume is there.
async fn retry(client: &mut ControllerClient<Channel>, name: &str) -> Volume {
    for _ in 0..200 {
        match client.create_volume(volume_request(name)).await {
            Err(busy) if busy.code() == Code::Aborted => tokio::time::sleep(Duration::from_millis(20)).await,
            made => return made.unwrap().into_inner().volume.unwrap(),
        }
    }
    panic!("{name} stays locked");
}
