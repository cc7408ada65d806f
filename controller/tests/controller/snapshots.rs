//! CreateSnapshot, DeleteSnapshot, GetSnapshot and ListSnapshots.

use super::*;

#[tokio::test]
async fn idempotent_by_name() {
    let s = subject();
    let (one, two) = (s.created("one").await.volume_id, s.created("two").await.volume_id);
    let first = s.snapshot("snap", &one).await.unwrap();
    assert!(first.ready_to_use && first.creation_time.is_some());
    assert_eq!((first.source_volume_id.as_str(), first.size_bytes), (one.as_str(), 64 << 20));
    assert_eq!(s.snapshot("snap", &one).await.unwrap(), first);
    refused(s.snapshot("snap", &two).await, Code::AlreadyExists);
    let request = CreateVolumeRequest { parameters: text_map("backend", "bare"), ..volume_request("bare") };
    let bare = s.create(request).await.unwrap().volume_id;
    refused(s.snapshot("snap", &bare).await, Code::AlreadyExists);
    refused(s.snapshot("of bare", &bare).await, Code::InvalidArgument);
    s.snapshot(&"n".repeat(128), &one).await.unwrap();
}

#[tokio::test]
async fn wrong_requests() {
    let s = subject();
    let id = s.created("v").await.volume_id;
    for (name, source) in [("", id.as_str()), ("snap", ""), ("", "foreign"), ("nul\0", &id), (&"n".repeat(129), &id)] {
        refused(s.snapshot(name, source).await, Code::InvalidArgument);
    }
    for source in FOREIGN.into_iter().chain([NO_VOLUME]) {
        refused(s.snapshot("snap", source).await, Code::NotFound);
    }
    let with = async |key: &str| {
        let request = CreateSnapshotRequest {
            name: "with".to_owned(),
            source_volume_id: id.clone(),
            parameters: text_map(key, "x"),
            ..Default::default()
        };
        inner(s.service.create_snapshot(Request::new(request)).await)
    };
    refused(with("unknown").await, Code::InvalidArgument);
    with("csi.storage.k8s.io/volumesnapshot/name").await.unwrap();
}

#[tokio::test]
async fn delete() {
    let s = subject();
    let id = s.created("v").await.volume_id;
    let snapshot = s.snapshot("snap", &id).await.unwrap().snapshot_id;
    let delete = async |id: &str| {
        let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        inner(s.service.delete_snapshot(Request::new(request)).await)
    };
    refused(delete("").await, Code::InvalidArgument);
    for id in FOREIGN.into_iter().chain([NO_SNAPSHOT, NO_VOLUME, &snapshot, &snapshot]) {
        delete(id).await.unwrap();
    }
    refused(delete("attic.s00000000000000000000000000000000").await, Code::FailedPrecondition);
}

#[tokio::test]
async fn list() {
    let s = subject();
    let (one, two) = (s.created("one").await.volume_id, s.created("two").await.volume_id);
    let mut all = Vec::new();
    for n in 0..5 {
        all.push(s.snapshot(&format!("s{n}"), if n < 3 { &one } else { &two }).await.unwrap());
    }
    all.sort_by(|a, b| a.snapshot_id.cmp(&b.snapshot_id));
    let list = async |request: ListSnapshotsRequest| {
        let answer = inner(s.service.list_snapshots(Request::new(request)).await)?;
        let entries: Vec<_> = answer.entries.into_iter().map(|entry| entry.snapshot.unwrap()).collect();
        Ok::<_, Status>((entries, answer.next_token))
    };
    let any = ListSnapshotsRequest::default;
    let of = |source: &str| ListSnapshotsRequest { source_volume_id: source.to_owned(), ..any() };
    let by = |id: &str| ListSnapshotsRequest { snapshot_id: id.to_owned(), ..any() };
    assert_eq!(list(any()).await.unwrap(), (all.clone(), String::new()));
    let (first, token) = list(ListSnapshotsRequest { max_entries: 2, ..any() }).await.unwrap();
    assert_eq!(first, all[..2]);
    assert_eq!(list(ListSnapshotsRequest { starting_token: token, ..any() }).await.unwrap().0, all[2..]);
    let expected: Vec<_> = all.iter().filter(|snapshot| snapshot.source_volume_id == two).cloned().collect();
    assert_eq!(list(of(&two)).await.unwrap().0, expected);
    assert_eq!(list(by(&all[1].snapshot_id)).await.unwrap().0, all[1..2]);
    for nothing in
        FOREIGN.into_iter().map(of).chain(FOREIGN.into_iter().map(by)).chain([of(NO_VOLUME), by(NO_SNAPSHOT)])
    {
        assert!(list(nothing).await.unwrap().0.is_empty());
    }
    let wrong = ListSnapshotsRequest { starting_token: "wrong".to_owned(), ..any() };
    refused(list(wrong).await, Code::Aborted);
    refused(list(ListSnapshotsRequest { max_entries: -1, ..any() }).await, Code::InvalidArgument);
}

#[tokio::test]
async fn get() {
    let s = subject();
    let id = s.created("v").await.volume_id;
    let snapshot = s.snapshot("snap", &id).await.unwrap();
    let get = async |id: &str| {
        let request = GetSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        Ok::<_, Status>(inner(s.service.get_snapshot(Request::new(request)).await)?.snapshot.unwrap())
    };
    assert_eq!(get(&snapshot.snapshot_id).await.unwrap(), snapshot);
    refused(get("").await, Code::InvalidArgument);
    for id in FOREIGN.into_iter().chain([NO_SNAPSHOT, NO_VOLUME, "bare.s00000000000000000000000000000000"]) {
        refused(get(id).await, Code::NotFound);
    }
}

#[tokio::test]
async fn accessibility() {
    let place = |node: &str| Topology { segments: text_map("csi.hawser.dev/node", node) };
    let (here, there) = (place("n1"), place("n2"));
    for profile in Profile::ALL {
        let s = subject_for(profile);
        let source_volume_id = s.created("v").await.volume_id;
        let ask = async |name: &str, requisite: &[&Topology], preferred: &[&Topology]| {
            let places = |list: &[&Topology]| list.iter().map(|&topology| topology.clone()).collect();
            let requirement = TopologyRequirement { requisite: places(requisite), preferred: places(preferred) };
            let request = CreateSnapshotRequest {
                name: name.to_owned(),
                source_volume_id: source_volume_id.clone(),
                accessibility_requirements: Some(requirement),
                ..Default::default()
            };
            Ok::<_, Status>(inner(s.service.create_snapshot(Request::new(request)).await)?.snapshot.unwrap())
        };
        // No other orchestrator has topology of snapshots, so nothing is told of it and nothing is refused for it.
        let has_topology = profile == Profile::Kubernetes;
        let expected = if has_topology { vec![here.clone()] } else { vec![] };
        for (name, requisite) in [("any", &[][..]), ("here", &[&here]), ("here or there", &[&there, &here])] {
            assert_eq!(
                ask(name, requisite, &[&there]).await.map(|s| s.accessible_topology).ok(),
                match name {
                    // With no requisite place, one of the preferred has to do, as for volumes.
                    "any" if has_topology => None,
                    _ => Some(expected.clone()),
                },
                "{profile}: {name}"
            );
        }
        let elsewhere = ask("elsewhere", &[&there], &[]).await;
        if has_topology {
            refused(elsewhere, Code::ResourceExhausted);
            let request = GetSnapshotRequest { snapshot_id: s.shelf_snapshot("elsewhere"), ..Default::default() };
            refused(inner(s.service.get_snapshot(Request::new(request)).await), Code::NotFound);
            refused(ask("here", &[&there], &[]).await, Code::ResourceExhausted);
        } else {
            elsewhere.unwrap();
        }
    }
}
