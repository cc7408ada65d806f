//! ListVolumes, ControllerGetVolume and GetCapacity.

use super::*;

async fn list(s: &Subject, max_entries: i32, starting_token: &str) -> Result<ListVolumesResponse, Status> {
    let request = ListVolumesRequest { max_entries, starting_token: starting_token.to_owned() };
    inner(s.service.list_volumes(Request::new(request)).await)
}

fn ids(list: &ListVolumesResponse) -> Vec<String> {
    list.entries.iter().map(|entry| entry.volume.as_ref().unwrap().volume_id.clone()).collect()
}

#[tokio::test]
async fn pages_over_all_backends() {
    let s = subject();
    for n in 0..7 {
        let backend = if n % 2 == 0 { "shelf" } else { "bare" };
        let parameters = text_map("backend", backend);
        s.create(CreateVolumeRequest { parameters, ..volume_request(&format!("v{n}")) }).await.unwrap();
    }
    let all = list(&s, 0, "").await.unwrap();
    assert_eq!((all.entries.len(), all.next_token.as_str()), (7, ""));
    for size in 1..9 {
        let (mut token, mut found, mut pages) = (String::new(), Vec::new(), 0);
        loop {
            let page = list(&s, size, &token).await.unwrap();
            assert!(page.entries.len() <= usize::try_from(size).unwrap());
            found.extend(ids(&page));
            token = page.next_token;
            pages += 1;
            if token.is_empty() || pages > 20 {
                break;
            }
        }
        assert_eq!(found, ids(&all), "in pages of {size}");
    }
    // What was on the last page goes away: the list goes on behind it.
    let first = list(&s, 2, "").await.unwrap();
    s.delete(&ids(&first)[1]).await.unwrap();
    assert_eq!(ids(&list(&s, 0, &first.next_token).await.unwrap()), ids(&all)[2..]);
    for wrong in ["x", "invalid-token", "attic/", "shelf/x", NO_VOLUME] {
        refused(list(&s, 0, wrong).await, Code::Aborted);
    }
    refused(list(&s, -1, "").await, Code::InvalidArgument);
}

/// gRPC clients refuse messages above 4 MiB, so a list without a limit has pages too.
#[tokio::test]
async fn a_long_list_fits_into_messages() {
    let s = subject();
    for n in 0..2100 {
        let parameters = text_map("mountFlags", &"noatime,".repeat(100));
        s.create(CreateVolumeRequest { parameters, ..volume_request(&format!("v{n}")) }).await.unwrap();
    }
    for max_entries in [0, i32::MAX] {
        let first = list(&s, max_entries, "").await.unwrap();
        // Longer than on the wire.
        assert!(format!("{first:?}").len() < 4 << 20);
        let second = list(&s, max_entries, &first.next_token).await.unwrap();
        assert_eq!((first.entries.len() + second.entries.len(), second.next_token.as_str()), (2100, ""));
    }
}

#[tokio::test]
async fn published_nodes() {
    let s = subject();
    let id = s.created("v").await.volume_id;
    let nodes = async || {
        let entry = list(&s, 0, "").await.unwrap().entries.remove(0);
        let request = ControllerGetVolumeRequest { volume_id: id.clone() };
        let got = inner(s.service.controller_get_volume(Request::new(request)).await).unwrap();
        assert_eq!(got.volume, entry.volume);
        let nodes = entry.status.unwrap().published_node_ids;
        assert_eq!(got.status.unwrap().published_node_ids, nodes);
        nodes
    };
    assert!(nodes().await.is_empty());
    s.publish(&id, "n2", false).await.unwrap();
    assert_eq!(nodes().await, ["n2"]);
}

#[tokio::test]
async fn get_unknown_volumes() {
    let s = subject();
    let get = async |id: &str| {
        let request = ControllerGetVolumeRequest { volume_id: id.to_owned() };
        inner(s.service.controller_get_volume(Request::new(request)).await)
    };
    refused(get("").await, Code::InvalidArgument);
    for id in FOREIGN.into_iter().chain([NO_VOLUME]) {
        refused(get(id).await, Code::NotFound);
    }
}

#[tokio::test]
async fn capacity() {
    let s = subject();
    let ask = async |request| inner(s.service.get_capacity(Request::new(request)).await);
    let place = |node: &str| Some(Topology { segments: text_map("csi.hawser.dev/node", node) });
    let full = shelf::CAPACITY as i64;
    let plain = ask(GetCapacityRequest::default()).await.unwrap();
    assert_eq!((plain.available_capacity, plain.maximum_volume_size), (full, Some(full)));
    assert_eq!(plain.minimum_volume_size, Some(shelf::MIB as i64));
    for (node, expected) in [("n1", full), ("n9", 0)] {
        let request = GetCapacityRequest {
            accessible_topology: place(node),
            volume_capabilities: vec![mount(1)],
            parameters: text_map("backend", "bare"),
        };
        assert_eq!(ask(request).await.unwrap().available_capacity, expected);
    }
    let unknown = GetCapacityRequest { parameters: text_map("backend", "nowhere"), ..Default::default() };
    refused(ask(unknown).await, Code::InvalidArgument);
}
