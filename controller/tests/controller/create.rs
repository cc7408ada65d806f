//! CreateVolume, DeleteVolume and ControllerExpandVolume.

use super::*;
use csi_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use shelf::MIB;

fn range(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes })
}

fn from_volume(id: &str) -> Option<VolumeContentSource> {
    Some(VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.to_owned() })) })
}

fn from_snapshot(id: &str) -> Option<VolumeContentSource> {
    Some(VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })) })
}

#[tokio::test]
async fn idempotent_by_name() {
    let s = subject();
    let size = 10 * MIB as i64;
    let sized = |range| CreateVolumeRequest { capacity_range: range, ..volume_request("v") };
    let first = s.create(sized(range(size, size))).await.unwrap();
    assert_eq!(first.capacity_bytes, size);
    assert_eq!(s.create(sized(range(size, size))).await.unwrap(), first);
    assert_eq!(s.create(volume_request("v")).await.unwrap(), first);
    let message = refused(s.create(sized(range(2 * size, 2 * size))).await, Code::AlreadyExists);
    assert!(message.contains("\"v\"") && message.contains(&first.volume_id), "{message}");
    let block = CreateVolumeRequest { volume_capabilities: vec![block(1)], ..volume_request("v") };
    refused(s.create(block).await, Code::AlreadyExists);
    // Volumes of one name are one volume, on whichever backend.
    let elsewhere = CreateVolumeRequest { parameters: text_map("backend", "bare"), ..volume_request("v") };
    refused(s.create(elsewhere).await, Code::AlreadyExists);
    s.delete(&first.volume_id).await.unwrap();
    let elsewhere = CreateVolumeRequest { parameters: text_map("backend", "bare"), ..volume_request("v") };
    assert!(s.create(elsewhere).await.unwrap().volume_id.starts_with("bare.v"));
}

#[tokio::test]
async fn names() {
    let s = subject();
    let long = "n".repeat(128);
    for name in ["a/b", "..", "../../etc/passwd", "new\nline", "db[0]", "Ünï-名前", "-rf", long.as_str()] {
        assert!(s.created(name).await.volume_id.starts_with("shelf.v"), "{name}");
    }
    for name in ["", "nul\0", "bell\u{7}", "\u{85}", &"n".repeat(129), &"名".repeat(43)] {
        refused(s.create(volume_request(name)).await, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn wrong_requests() {
    let s = subject();
    let base = || volume_request("v");
    let flags = MountVolume { mount_flags: vec!["noatime,suid".to_owned()], ..Default::default() };
    let injected = VolumeCapability { access_type: Some(AccessType::Mount(flags)), ..mount(1) };
    let unknown_source = VolumeContentSource { r#type: None };
    for request in [
        CreateVolumeRequest { volume_capabilities: vec![], ..base() },
        CreateVolumeRequest { volume_capabilities: vec![VolumeCapability::default()], ..base() },
        CreateVolumeRequest { volume_capabilities: vec![VolumeCapability { access_mode: None, ..mount(1) }], ..base() },
        CreateVolumeRequest { volume_capabilities: vec![mount(1), block(1)], ..base() },
        CreateVolumeRequest { volume_capabilities: vec![block(5)], ..base() },
        CreateVolumeRequest { volume_capabilities: vec![mount_of("ntfs")], ..base() },
        CreateVolumeRequest { volume_capabilities: vec![mount_of("xfs"), mount_of("ext4")], ..base() },
        CreateVolumeRequest { volume_capabilities: vec![injected], ..base() },
        CreateVolumeRequest { parameters: text_map("fstype", "ext4"), ..base() },
        CreateVolumeRequest { parameters: text_map("fsType", "zfs"), ..base() },
        CreateVolumeRequest { parameters: text_map("backend", "nowhere"), ..base() },
        CreateVolumeRequest { mutable_parameters: text_map("iops", "7"), ..base() },
        CreateVolumeRequest { volume_content_source: Some(unknown_source), ..base() },
    ] {
        let shown = format!("{request:?}");
        assert!(!refused(s.create(request).await, Code::InvalidArgument).is_empty(), "{shown}");
    }
    let gib = 1 << 30;
    for (required, limit) in
        [(-1, 0), (0, -1), (2 * gib, gib), (i64::MAX, 0), (0, 1000), (MIB as i64 + 1, MIB as i64 + 2)]
    {
        let request = CreateVolumeRequest { capacity_range: range(required, limit), ..base() };
        refused(s.create(request).await, Code::OutOfRange);
    }
    let list = inner(s.service.list_volumes(Request::new(ListVolumesRequest::default())).await).unwrap();
    assert!(list.entries.is_empty(), "a refused request has no effect");
}

#[tokio::test]
async fn what_orchestrators_send() {
    let s = subject_for(Profile::Swarm);
    // Swarm: {0, 0}, an empty topology, mode UNKNOWN; a newer protocol's mode.
    for (name, mode) in [("unknown", 0), ("newer", 4711)] {
        let request = CreateVolumeRequest {
            capacity_range: range(0, 0),
            volume_capabilities: vec![mount(mode)],
            accessibility_requirements: Some(TopologyRequirement {
                requisite: vec![Topology::default()],
                preferred: vec![],
            }),
            ..volume_request(name)
        };
        let volume = s.create(request).await.unwrap();
        assert!(volume.accessible_topology.is_empty(), "Swarm is told no topology");
    }
}

#[tokio::test]
async fn topology() {
    let s = subject();
    let place = |node: &str| Topology { segments: text_map("csi.hawser.dev/node", node) };
    let within = |node: &str| CreateVolumeRequest {
        accessibility_requirements: Some(TopologyRequirement { requisite: vec![place(node)], preferred: vec![] }),
        ..volume_request(node)
    };
    assert_eq!(s.create(within("n1")).await.unwrap().accessible_topology, [place("n1")]);
    refused(s.create(within("n9")).await, Code::ResourceExhausted);
}

#[tokio::test]
async fn parameters_reach_the_node() {
    let s = subject();
    let parameters = BTreeMap::from(
        [("uid", "70"), ("mode", "0750"), ("csi.storage.k8s.io/pvc/name", "x")]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    let volume = s.create(CreateVolumeRequest { parameters, ..volume_request("v") }).await.unwrap();
    let expected = BTreeMap::from([("mode", "0750"), ("uid", "70")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    assert_eq!(volume.volume_context, expected);
}

#[tokio::test]
async fn sources() {
    let s = subject();
    let xfs = CreateVolumeRequest { volume_capabilities: vec![mount_of("xfs")], ..volume_request("xfs") };
    let xfs = s.create(xfs).await.unwrap();
    let snapshot = s.snapshot("snap", &xfs.volume_id).await.unwrap();
    let copy = |name: &str, source| CreateVolumeRequest { volume_content_source: source, ..volume_request(name) };

    // A copy has its source's file system when none is asked for, also when its source is gone at the retry.
    for (name, source) in [("clone", from_volume(&xfs.volume_id)), ("restored", from_snapshot(&snapshot.snapshot_id))] {
        let made = s.create(copy(name, source.clone())).await.unwrap();
        assert_eq!(made.content_source, source);
        let confirmed = validate(&s, &made.volume_id, vec![mount_of("xfs")]).await.unwrap();
        assert!(confirmed.confirmed.is_some(), "{}", confirmed.message);
        assert_eq!(s.create(copy(name, source)).await.unwrap(), made);
    }
    let gone = s.create(copy("of a clone", from_volume(&xfs.volume_id))).await.unwrap();
    s.delete(&xfs.volume_id).await.unwrap();
    assert_eq!(s.create(copy("of a clone", from_volume(&xfs.volume_id))).await.unwrap(), gone);

    let from = from_snapshot(&snapshot.snapshot_id);
    let with = |name: &str, capability| CreateVolumeRequest {
        volume_capabilities: vec![capability],
        ..copy(name, from.clone())
    };
    refused(s.create(with("ext4", mount_of("ext4"))).await, Code::InvalidArgument);
    refused(s.create(with("block", block(1))).await, Code::InvalidArgument);
    let small = CreateVolumeRequest { capacity_range: range(MIB as i64, 0), ..copy("small", from.clone()) };
    refused(s.create(small).await, Code::OutOfRange);
    let large = CreateVolumeRequest { capacity_range: range(1 << 30, 0), ..copy("large", from.clone()) };
    assert_eq!(s.create(large).await.unwrap().capacity_bytes, 1 << 30);
    let elsewhere = CreateVolumeRequest { parameters: text_map("backend", "bare"), ..copy("elsewhere", from) };
    refused(s.create(elsewhere).await, Code::InvalidArgument);

    for missing in [from_volume(NO_VOLUME), from_snapshot(NO_SNAPSHOT), from_volume("vol-1"), from_snapshot("../x")] {
        refused(s.create(copy("missing", missing)).await, Code::NotFound);
    }
    for empty in [from_volume(""), from_snapshot("")] {
        refused(s.create(copy("empty", empty)).await, Code::InvalidArgument);
    }
    // A backend that cannot copy says so.
    let bare = CreateVolumeRequest { parameters: text_map("backend", "bare"), ..volume_request("plain") };
    let bare = s.create(bare).await.unwrap();
    refused(s.create(copy("of bare", from_volume(&bare.volume_id))).await, Code::InvalidArgument);
}

#[tokio::test]
async fn delete() {
    let s = subject();
    refused(s.delete("").await, Code::InvalidArgument);
    for id in FOREIGN.into_iter().chain([NO_VOLUME]) {
        s.delete(id).await.unwrap();
    }
    // An id of ours whose backend was taken out of the configuration may have data.
    let message = refused(s.delete("attic.v00000000000000000000000000000000").await, Code::FailedPrecondition);
    assert!(message.contains("attic"), "{message}");
    let volume = s.created("v").await;
    s.publish(&volume.volume_id, "n1", false).await.unwrap();
    refused(s.delete(&volume.volume_id).await, Code::FailedPrecondition);
    s.unpublish(&volume.volume_id, "n1").await.unwrap();
    for _ in 0..2 {
        s.delete(&volume.volume_id).await.unwrap();
    }
}

#[tokio::test]
async fn expand() {
    let s = subject();
    let volume = s.created("v").await;
    let size = volume.capacity_bytes;
    let grow = async |id: &str, capacity_range| {
        let request = ControllerExpandVolumeRequest { volume_id: id.to_owned(), capacity_range, ..Default::default() };
        inner(s.service.controller_expand_volume(Request::new(request)).await)
    };
    let grown = grow(&volume.volume_id, range(2 * size, 0)).await.unwrap();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (2 * size, true));
    assert_eq!(grow(&volume.volume_id, range(size, 0)).await.unwrap().capacity_bytes, 2 * size, "large enough already");
    refused(grow(&volume.volume_id, range(0, size)).await, Code::OutOfRange);
    refused(grow(&volume.volume_id, range(-1, 0)).await, Code::OutOfRange);
    refused(grow("", range(size, 0)).await, Code::InvalidArgument);
    refused(grow(&volume.volume_id, None).await, Code::InvalidArgument);
    refused(grow(&volume.volume_id, range(0, 0)).await, Code::InvalidArgument);
    for id in FOREIGN.into_iter().chain([NO_VOLUME, "attic.v00000000000000000000000000000000"]) {
        refused(grow(id, range(size, 0)).await, Code::NotFound);
    }
    let as_block = ControllerExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        capacity_range: range(4 * size, 0),
        volume_capability: Some(block(1)),
        ..Default::default()
    };
    refused(inner(s.service.controller_expand_volume(Request::new(as_block)).await), Code::InvalidArgument);
}

async fn validate(
    s: &Subject,
    volume_id: &str,
    volume_capabilities: Vec<VolumeCapability>,
) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
    let volume_id = volume_id.to_owned();
    let request = ValidateVolumeCapabilitiesRequest { volume_id, volume_capabilities, ..Default::default() };
    inner(s.service.validate_volume_capabilities(Request::new(request)).await)
}

#[tokio::test]
async fn validate_capabilities() {
    let s = subject();
    let request = CreateVolumeRequest { parameters: text_map("uid", "70"), ..volume_request("v") };
    let id = s.create(request).await.unwrap().volume_id;
    let confirmed = validate(&s, &id, vec![mount(1), mount_of("ext4")]).await.unwrap().confirmed.unwrap();
    assert_eq!(confirmed.volume_capabilities, [mount(1), mount_of("ext4")], "echoed as they were");
    for other in [mount_of("xfs"), mount_of("ntfs"), block(1), mount(5)] {
        let answer = validate(&s, &id, vec![mount(1), other]).await.unwrap();
        assert!(answer.confirmed.is_none() && !answer.message.is_empty());
    }
    refused(validate(&s, "", vec![mount(1)]).await, Code::InvalidArgument);
    refused(validate(&s, &id, vec![]).await, Code::InvalidArgument);
    refused(validate(&s, "foreign", vec![]).await, Code::InvalidArgument);
    refused(validate(&s, &id, vec![VolumeCapability::default()]).await, Code::InvalidArgument);
    for missing in FOREIGN.into_iter().chain([NO_VOLUME]) {
        refused(validate(&s, missing, vec![mount(1)]).await, Code::NotFound);
    }

    let full = |volume_context, parameters| ValidateVolumeCapabilitiesRequest {
        volume_id: id.clone(),
        volume_capabilities: vec![mount(1)],
        volume_context,
        parameters,
        ..Default::default()
    };
    let none = BTreeMap::new;
    for (request, fits) in [
        (full(text_map("uid", "70"), text_map("uid", "70")), true),
        (full(text_map("storage.kubernetes.io/csiProvisionerIdentity", "x"), none()), true),
        (full(text_map("uid", "71"), none()), false),
        (full(text_map("gid", "70"), none()), false),
        (full(none(), text_map("uid", "71")), false),
        (full(none(), text_map("unknown", "x")), false),
        (
            ValidateVolumeCapabilitiesRequest { mutable_parameters: text_map("iops", "7"), ..full(none(), none()) },
            false,
        ),
    ] {
        let expected = (request.volume_context.clone(), request.parameters.clone());
        let answer = inner(s.service.validate_volume_capabilities(Request::new(request)).await).unwrap();
        assert_eq!(answer.confirmed.is_some(), fits, "{expected:?}: {}", answer.message);
        if let Some(confirmed) = answer.confirmed {
            assert_eq!((confirmed.volume_context, confirmed.parameters), expected);
        }
    }
}
