//! ControllerPublishVolume and ControllerUnpublishVolume.

use super::*;

#[tokio::test]
async fn one_holder() {
    let s = subject();
    let id = s.created("v").await.volume_id;
    let first = s.publish(&id, "n1", false).await.unwrap();
    assert_eq!(first.publish_context["hawser.epoch"], "1");
    assert_eq!(s.publish(&id, "n1", false).await.unwrap(), first);
    let message = refused(s.publish(&id, "n2", false).await, Code::FailedPrecondition);
    assert!(message.contains("n1") && message.contains("n2"), "{message}");
    refused(s.publish(&id, "n1", true).await, Code::AlreadyExists);

    // Late, repeated and forgotten detaches never take it from its holder.
    for other in ["n2", "never-was", "not an id", ""] {
        s.unpublish(&id, other).await.unwrap();
        assert_eq!(s.publish(&id, "n1", false).await.unwrap(), first, "after unpublish from {other:?}");
    }
    for _ in 0..2 {
        s.unpublish(&id, "n1").await.unwrap();
    }
    assert_eq!(s.publish(&id, "n2", false).await.unwrap().publish_context["hawser.epoch"], "2");
}

#[tokio::test]
async fn read_only_modes() {
    let s = subject();
    let id = s.created("v").await.volume_id;
    let reader = ControllerPublishVolumeRequest { volume_capability: Some(mount(2)), ..publish_request(&id, "n1") };
    s.service.controller_publish_volume(Request::new(reader)).await.unwrap();
    s.publish(&id, "n1", true).await.unwrap();
    refused(s.publish(&id, "n1", false).await, Code::AlreadyExists);
}

#[tokio::test]
async fn wrong_requests() {
    let s = subject();
    let id = s.created("v").await.volume_id;
    // Missing fields are told as such, whatever the others hold.
    for (volume, node) in [("", "n1"), ("foreign", ""), ("", "")] {
        refused(s.publish(volume, node, false).await, Code::InvalidArgument);
    }
    let without = ControllerPublishVolumeRequest { volume_capability: None, ..publish_request("foreign", "n1") };
    refused(inner(s.service.controller_publish_volume(Request::new(without)).await), Code::InvalidArgument);
    for volume in FOREIGN.into_iter().chain([NO_VOLUME, "attic.v00000000000000000000000000000000"]) {
        refused(s.publish(volume, "n1", false).await, Code::NotFound);
    }
    for node in ["n9", "not an id", "../n1"] {
        refused(s.publish(&id, node, false).await, Code::NotFound);
    }
    for capability in [block(1), mount(5), mount_of("xfs")] {
        let request =
            ControllerPublishVolumeRequest { volume_capability: Some(capability), ..publish_request(&id, "n1") };
        refused(inner(s.service.controller_publish_volume(Request::new(request)).await), Code::InvalidArgument);
    }
    refused(s.unpublish("", "n1").await, Code::InvalidArgument);
    for volume in FOREIGN.into_iter().chain([NO_VOLUME]) {
        s.unpublish(volume, "n1").await.unwrap();
    }
    refused(s.unpublish("attic.v00000000000000000000000000000000", "n1").await, Code::FailedPrecondition);
}

/// Swarm sends an empty mount capability for block volumes too; others who do are wrong.
#[tokio::test]
async fn forced_mount() {
    for (profile, allowed) in [(Profile::Swarm, true), (Profile::Kubernetes, false)] {
        let s = subject_for(profile);
        let request = CreateVolumeRequest { volume_capabilities: vec![block(1)], ..volume_request("v") };
        let id = s.create(request).await.unwrap().volume_id;
        assert_eq!(s.publish(&id, "n1", false).await.is_ok(), allowed, "{profile}");
    }
}

#[tokio::test]
async fn without_grants() {
    let s = subject();
    let request = CreateVolumeRequest { parameters: text_map("backend", "bare"), ..volume_request("v") };
    let id = s.create(request).await.unwrap().volume_id;
    assert!(s.publish(&id, "anything", false).await.unwrap().publish_context.is_empty());
    s.unpublish(&id, "anything").await.unwrap();
}
