//! The GroupController service.

use super::*;
use controller::GroupControllerService;
use csi_proto::csi::group_controller_server::GroupController;
use csi_proto::csi::group_controller_service_capability::Type;

struct Groups {
    subject: Subject,
    service: GroupControllerService,
}

fn groups() -> Groups {
    let subject = subject();
    Groups { service: subject.service.group(), subject }
}

impl Groups {
    async fn create(&self, name: &str, sources: &[&str]) -> Result<VolumeGroupSnapshot, Status> {
        let (name, source_volume_ids) = (name.to_owned(), strings(sources));
        let request = CreateVolumeGroupSnapshotRequest { name, source_volume_ids, ..Default::default() };
        let answer = inner(self.service.create_volume_group_snapshot(Request::new(request)).await)?;
        Ok(answer.group_snapshot.unwrap())
    }

    async fn get(&self, id: &str, members: &[&str]) -> Result<VolumeGroupSnapshot, Status> {
        let (group_snapshot_id, snapshot_ids) = (id.to_owned(), strings(members));
        let request = GetVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, ..Default::default() };
        Ok(inner(self.service.get_volume_group_snapshot(Request::new(request)).await)?.group_snapshot.unwrap())
    }

    async fn delete(&self, id: &str, members: &[&str]) -> Result<DeleteVolumeGroupSnapshotResponse, Status> {
        let (group_snapshot_id, snapshot_ids) = (id.to_owned(), strings(members));
        let request = DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, ..Default::default() };
        inner(self.service.delete_volume_group_snapshot(Request::new(request)).await)
    }

    /// Two volumes, and a group of both.
    async fn pair(&self) -> (String, String, VolumeGroupSnapshot) {
        let (one, two) = (self.subject.created("one").await.volume_id, self.subject.created("two").await.volume_id);
        let group = self.create("group", &[&one, &two]).await.unwrap();
        (one, two, group)
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn members(group: &VolumeGroupSnapshot) -> Vec<&str> {
    group.snapshots.iter().map(|member| member.snapshot_id.as_str()).collect()
}

async fn capabilities(service: &GroupControllerService) -> Vec<&'static str> {
    let answer = inner(service.group_controller_get_capabilities(Request::new(Default::default())).await).unwrap();
    let name = |capability: GroupControllerServiceCapability| match capability.r#type.unwrap() {
        Type::Rpc(rpc) => rpc.r#type().as_str_name(),
    };
    answer.capabilities.into_iter().map(name).collect()
}

#[tokio::test]
async fn advertised_where_there_are_groups_and_somebody_who_asks() {
    for profile in Profile::ALL {
        let expected = ["CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT"];
        let expected = if profile == Profile::Kubernetes { &expected[..] } else { &[] };
        assert_eq!(capabilities(&subject_for(profile).service.group()).await, expected, "{profile}");
    }
    let runtime = Runtime::new(Metrics::new(), Runtime::DEFAULT_DEADLINE);
    let bare = ControllerService::new(vec![Shelf::bare("bare")], Profile::Kubernetes, runtime).unwrap().group();
    assert!(capabilities(&bare).await.is_empty());
    let codes = [
        bare.create_volume_group_snapshot(Request::new(Default::default())).await.unwrap_err().code(),
        bare.delete_volume_group_snapshot(Request::new(Default::default())).await.unwrap_err().code(),
        bare.get_volume_group_snapshot(Request::new(Default::default())).await.unwrap_err().code(),
    ];
    assert_eq!(codes, [Code::Unimplemented; 3]);
}

#[tokio::test]
async fn idempotent_in_any_order() {
    let s = groups();
    let (one, two, group) = s.pair().await;
    assert!(group.ready_to_use && group.creation_time.is_some());
    assert_eq!(group.snapshots.len(), 2);
    for member in &group.snapshots {
        assert_eq!(member.group_snapshot_id, group.group_snapshot_id);
        assert!(member.ready_to_use && !member.accessible_topology.is_empty());
        let request = GetSnapshotRequest { snapshot_id: member.snapshot_id.clone(), ..Default::default() };
        let found = inner(s.subject.service.get_snapshot(Request::new(request)).await).unwrap();
        assert_eq!(found.snapshot.as_ref(), Some(member));
        // CSI: a member is deleted with its group.
        let request = DeleteSnapshotRequest { snapshot_id: member.snapshot_id.clone(), ..Default::default() };
        refused(inner(s.subject.service.delete_snapshot(Request::new(request)).await), Code::InvalidArgument);
    }
    assert_eq!(s.create("group", &[&two, &one]).await.unwrap(), group);
    refused(s.create("group", &[&two]).await, Code::AlreadyExists);
    assert_eq!(s.subject.snapshot("group", &one).await.unwrap().group_snapshot_id, "", "another thing of that name");
}

#[tokio::test]
async fn wrong_requests() {
    let s = groups();
    let (one, two, _) = s.pair().await;
    let request = CreateVolumeRequest { parameters: text_map("backend", "bare"), ..volume_request("bare") };
    let bare = s.subject.create(request).await.unwrap().volume_id;
    let long = "n".repeat(129);
    for (name, sources) in [
        ("", &[one.as_str()][..]),
        ("", &["foreign"]),
        ("g", &[]),
        ("g", &[&one, ""]),
        ("g", &["foreign", ""]),
        ("nul\0", &[&one]),
        (&long, &[&one]),
        ("g", &[&one, &two, &one]),
        ("g", &[&one, &bare]),
        ("g", &[&bare]),
    ] {
        refused(s.create(name, sources).await, Code::InvalidArgument);
    }
    for source in FOREIGN.into_iter().chain([NO_VOLUME]) {
        refused(s.create("g", &[&one, source]).await, Code::NotFound);
    }
    let with = async |key: &str| {
        let (name, source_volume_ids, parameters) = ("with".to_owned(), strings(&[&one]), text_map(key, "x"));
        let request = CreateVolumeGroupSnapshotRequest { name, source_volume_ids, parameters, ..Default::default() };
        inner(s.service.create_volume_group_snapshot(Request::new(request)).await)
    };
    refused(with("unknown").await, Code::InvalidArgument);
    with("csi.storage.k8s.io/volumegroupsnapshot/name").await.unwrap();
}

#[tokio::test]
async fn get() {
    let s = groups();
    let (_, _, group) = s.pair().await;
    let (id, members) = (group.group_snapshot_id.as_str(), members(&group));
    assert_eq!(s.get(id, &members).await.unwrap(), group);
    assert_eq!(s.get(id, &[members[1], members[0]]).await.unwrap(), group);
    for wrong in [&[][..], &members[..1], &[members[0], NO_SNAPSHOT], &[members[0], members[1], "foreign"]] {
        refused(s.get(id, wrong).await, Code::InvalidArgument);
    }
    refused(s.get("", &members).await, Code::InvalidArgument);
    for nothing in FOREIGN.into_iter().chain([NO_GROUP, NO_SNAPSHOT, members[0]]) {
        refused(s.get(nothing, &members).await, Code::NotFound);
    }
}

#[tokio::test]
async fn delete() {
    let s = groups();
    let (_, _, group) = s.pair().await;
    let (id, members) = (group.group_snapshot_id.as_str(), members(&group));
    refused(s.delete("", &members).await, Code::InvalidArgument);
    refused(s.delete("attic.g00000000000000000000000000000000", &[]).await, Code::FailedPrecondition);
    for nothing in FOREIGN.into_iter().chain([NO_GROUP, NO_SNAPSHOT, members[0]]) {
        s.delete(nothing, &members).await.unwrap();
    }
    for wrong in [&[][..], &members[..1], &[members[0], members[1], NO_SNAPSHOT]] {
        refused(s.delete(id, wrong).await, Code::InvalidArgument);
    }
    assert_eq!(s.get(id, &members).await.unwrap(), group);
    for _ in 0..2 {
        s.delete(id, &members).await.unwrap();
        refused(s.get(id, &members).await, Code::NotFound);
    }
    let request = Request::new(ListSnapshotsRequest::default());
    assert!(inner(s.subject.service.list_snapshots(request).await).unwrap().entries.is_empty());
}

/// Nothing waits for a group that is under way: not another one with a volume of it, nor anything about its members.
#[tokio::test]
async fn what_is_under_way_is_aborted_at_once() {
    let s = Arc::new(groups());
    let [one, two, three] = ["one", "two", "three"].map(|name| s.subject.created(name));
    let [one, two, three] = [one.await.volume_id, two.await.volume_id, three.await.volume_id];
    s.subject.shelf.close_gate();
    let (other, sources) = (Arc::clone(&s), [one.clone(), two.clone()]);
    let taking = tokio::spawn(async move { other.create("first", &[&sources[0], &sources[1]]).await });
    s.subject.shelf.wait_until_stopped(1).await;
    refused(s.create("first", &[&two, &one]).await, Code::Aborted);
    refused(s.create("second", &[&two, &three]).await, Code::Aborted);
    refused(s.subject.snapshot("alone", &one).await, Code::Aborted);
    refused(s.subject.delete(&two).await, Code::Aborted);
    let name = volume::VolumeName::parse("first").unwrap();
    let id = volume::GroupSnapshotId::of_name(s.subject.shelf.name(), &name);
    let member = volume::SnapshotId::of_member(&id, &volume::VolumeId::parse(&one).unwrap());
    refused(s.delete(id.as_str(), &[]).await, Code::Aborted);
    refused(s.delete(NO_GROUP, &[member.as_str()]).await, Code::Aborted);
    s.subject.shelf.open_gate();
    let group = taking.await.unwrap().unwrap();
    assert_eq!(group.group_snapshot_id, id.as_str());
    s.create("second", &[&two, &three]).await.unwrap();
}
