//! The gRPC face: codes of incomplete requests, locks, what is advertised.

use super::*;
use crate::service::Service;
use csi_proto::csi;
use csi_proto::csi::node_server::Node as _;
use tonic::{Code, Request};

fn face(lab: &Lab) -> Service {
    Service { node: lab.service.node.clone(), profile: lab.profile, runtime: lab.service.runtime.clone() }
}

fn mount() -> Option<csi::VolumeCapability> {
    use csi::volume_capability::{AccessMode, AccessType, MountVolume};
    Some(csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: 1 }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    })
}

#[tokio::test]
async fn incomplete_requests_are_invalid_whatever_the_id() {
    let lab = Lab::new();
    let face = face(&lab);
    for (id, path, with_capability, code) in [
        ("", STAGING, true, Code::InvalidArgument),
        ("vol-1", "", true, Code::InvalidArgument),
        ("vol-1", STAGING, false, Code::InvalidArgument),
        ("vol-1", "relative", true, Code::InvalidArgument),
        ("vol-1", STAGING, true, Code::NotFound),
        ("../../etc", STAGING, true, Code::NotFound),
    ] {
        let volume_capability = if with_capability { mount() } else { None };
        let stage = csi::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: path.to_owned(),
            volume_capability: volume_capability.clone(),
            ..Default::default()
        };
        let publish = csi::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            target_path: path.to_owned(),
            staging_target_path: "/staging/x".to_owned(),
            volume_capability,
            ..Default::default()
        };
        assert_eq!(face.node_stage_volume(Request::new(stage)).await.unwrap_err().code(), code, "{id:?} {path:?}");
        assert_eq!(face.node_publish_volume(Request::new(publish)).await.unwrap_err().code(), code, "{id:?} {path:?}");
        let stats = csi::NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: path.to_owned(),
            ..Default::default()
        };
        let stats = face.node_get_volume_stats(Request::new(stats)).await;
        // What is looked for at a path that no volume can have is not there.
        let absent = !id.is_empty() && !path.is_empty();
        let code = if absent { Code::NotFound } else { Code::InvalidArgument };
        assert_eq!(stats.unwrap_err().code(), code, "{id:?} {path:?}");
    }
}

#[tokio::test]
async fn volumes_of_others_are_gone_already() {
    let lab = Lab::new();
    let face = face(&lab);
    for id in ["vol-1", "../../etc", "pool.v00000000000000000000000000000000"] {
        let unpublish = csi::NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: TARGET.to_owned() };
        face.node_unpublish_volume(Request::new(unpublish)).await.unwrap();
        let unstage =
            csi::NodeUnstageVolumeRequest { volume_id: id.to_owned(), staging_target_path: STAGING.to_owned() };
        face.node_unstage_volume(Request::new(unstage)).await.unwrap();
    }
}

#[tokio::test]
async fn one_call_a_volume() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    let _held = lab.node().locks.try_lock([volume.id.as_str()]).unwrap();
    let unstage =
        csi::NodeUnstageVolumeRequest { volume_id: volume.id.to_string(), staging_target_path: STAGING.to_owned() };
    assert_eq!(face(&lab).node_unstage_volume(Request::new(unstage)).await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn info_and_capabilities() {
    for (profile, capabilities) in [(Profile::Kubernetes, 6), (Profile::Nomad, 4), (Profile::Swarm, 0)] {
        let lab = Lab::of(profile);
        let face = face(&lab);
        let info = face.node_get_info(Request::new(Default::default())).await.unwrap().into_inner();
        assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("n1", 0));
        let found =
            face.node_get_capabilities(Request::new(Default::default())).await.unwrap().into_inner().capabilities;
        assert_eq!(found.len(), capabilities);
    }
}

#[tokio::test]
async fn health() {
    let lab = Lab::new();
    let face = face(&lab);
    let volume = lab.attached("v", EXT4);
    let ask = async |id: &str, path: &str| {
        let (volume_id, volume_publish_path) = (id.to_owned(), path.to_owned());
        let request = csi::NodeGetVolumeHealthRequest { volume_id, volume_publish_path, ..Default::default() };
        face.node_get_volume_health(Request::new(request))
            .await
            .map(|answer| answer.into_inner().volume_health.unwrap())
    };
    let code = async |id: &str, path: &str| ask(id, path).await.unwrap_err().code();
    assert_eq!(code("", TARGET).await, Code::InvalidArgument);
    assert_eq!(code(volume.id.as_str(), "relative").await, Code::InvalidArgument);
    for id in
        ["vol-1", "../../etc", "pool.v00000000000000000000000000000000", "other.v00000000000000000000000000000000"]
    {
        assert_eq!(code(id, "").await, Code::NotFound, "{id}");
    }
    // Not held up by an operation on the volume, and also for one that is not staged.
    let _held = lab.node().locks.try_lock([volume.id.as_str()]).unwrap();
    let healthy = csi::VolumeHealth { volume_id: volume.id.to_string(), health_statuses: vec![] };
    assert_eq!(ask(volume.id.as_str(), TARGET).await.unwrap(), healthy);
    let storage = async || {
        let answer = face.node_get_storage_health(Request::new(Default::default())).await.unwrap().into_inner();
        answer.backend_health.into_iter().map(|one| (one.status, one.reason)).collect::<Vec<_>>()
    };
    assert_eq!(storage().await, []);
    lab.host.set_may_grow_mounted_ext4(false);
    assert_eq!(
        storage().await,
        [(csi::StorageHealthErrorType::StorageDegraded.into(), "NoSysResourceCapability".to_owned())]
    );
}

#[tokio::test]
async fn statistics() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    let request = csi::NodeGetVolumeStatsRequest {
        volume_id: volume.id.to_string(),
        volume_path: STAGING.to_owned(),
        ..Default::default()
    };
    // Not held up by an operation on the volume.
    let _held = lab.node().locks.try_lock([volume.id.as_str()]).unwrap();
    let usage = face(&lab).node_get_volume_stats(Request::new(request)).await.unwrap().into_inner().usage;
    assert_eq!(usage.len(), 2);
    assert_eq!(usage[0].total, i64::try_from(SIZE).unwrap());
}
