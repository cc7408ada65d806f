//! What is advertised, and what is not served.

use super::*;
use csi_proto::csi::controller_service_capability::Type;
use csi_proto::csi::snapshot_metadata_server::SnapshotMetadata;

async fn names(service: &ControllerService) -> Vec<&'static str> {
    let request = Request::new(ControllerGetCapabilitiesRequest {});
    let answer = inner(service.controller_get_capabilities(request).await).unwrap();
    let name = |capability: ControllerServiceCapability| match capability.r#type.unwrap() {
        Type::Rpc(rpc) => rpc.r#type().as_str_name(),
    };
    answer.capabilities.into_iter().map(name).collect()
}

#[tokio::test]
async fn derived_from_backends_and_profile() {
    let all = names(&subject().service).await;
    let expected = [
        "CREATE_DELETE_VOLUME",
        "PUBLISH_UNPUBLISH_VOLUME",
        "LIST_VOLUMES",
        "GET_CAPACITY",
        "CREATE_DELETE_SNAPSHOT",
        "LIST_SNAPSHOTS",
        "CLONE_VOLUME",
        "PUBLISH_READONLY",
        "EXPAND_VOLUME",
        "LIST_VOLUMES_PUBLISHED_NODES",
        "GET_VOLUME",
        "SINGLE_NODE_MULTI_WRITER",
        "MODIFY_VOLUME",
        "GET_SNAPSHOT",
        "GET_VOLUME_HEALTH",
        "LIST_VOLUME_HEALTH",
    ];
    assert_eq!(all, expected);
    assert_eq!(names(&subject_for(Profile::Nomad).service).await, expected[..12]);
    assert_eq!(names(&subject_for(Profile::Swarm).service).await, expected[..2]);

    // Nodes take grants themselves: all that is offered beside the two of that call.
    let without: Vec<_> = expected.into_iter().filter(|name| !name.starts_with("PUBLISH_")).collect();
    assert_eq!(without.len(), expected.len() - 2);
    assert_eq!(names(&subject().service.attached_by(volume::Attacher::Node)).await, without);

    let runtime = Runtime::new(Metrics::new(), Runtime::DEFAULT_DEADLINE);
    let bare = ControllerService::new(vec![Shelf::bare("bare")], Profile::Kubernetes, runtime.clone()).unwrap();
    let expected = ["CREATE_DELETE_VOLUME", "LIST_VOLUMES", "GET_CAPACITY", "GET_VOLUME", "SINGLE_NODE_MULTI_WRITER"];
    assert_eq!(names(&bare).await, expected);

    assert!(ControllerService::new(vec![], Profile::Kubernetes, runtime.clone()).is_err());
    let twins: Vec<Arc<dyn Backend>> = vec![Shelf::bare("bare"), Shelf::new("bare")];
    assert!(ControllerService::new(twins, Profile::Kubernetes, runtime).is_err());
}

#[tokio::test]
async fn not_served() {
    let unimplemented = |code: Code| assert_eq!(code, Code::Unimplemented);
    let runtime = Runtime::new(Metrics::new(), Runtime::DEFAULT_DEADLINE);
    let bare = ControllerService::new(vec![Shelf::bare("bare")], Profile::Kubernetes, runtime).unwrap().metadata();
    unimplemented(bare.get_metadata_delta(Request::new(Default::default())).await.err().unwrap().code());
    unimplemented(bare.get_metadata_allocated(Request::new(Default::default())).await.err().unwrap().code());
}
