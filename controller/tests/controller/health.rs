//! Health of volumes over the wire.

use super::*;

async fn list(
    s: &Subject,
    max_entries: i32,
    starting_token: &str,
) -> Result<ControllerListVolumeHealthResponse, Status> {
    let starting_token = starting_token.to_owned();
    let request = ControllerListVolumeHealthRequest { max_entries, starting_token, ..Default::default() };
    inner(s.service.controller_list_volume_health(Request::new(request)).await)
}

async fn get(s: &Subject, id: &str) -> Result<VolumeHealth, Status> {
    let request = ControllerGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
    Ok(inner(s.service.controller_get_volume_health(Request::new(request)).await)?.volume_health.unwrap())
}

fn ids(list: &ControllerListVolumeHealthResponse) -> Vec<&str> {
    list.entries.iter().map(|entry| entry.volume_id.as_str()).collect()
}

#[tokio::test]
async fn only_the_unhealthy_are_listed_page_by_page() {
    let s = subject();
    let mut made = Vec::new();
    for n in 0..6 {
        made.push(s.created(&format!("v{n}")).await.volume_id);
    }
    made.sort();
    assert!(list(&s, 0, "").await.unwrap().entries.is_empty());
    assert_eq!(get(&s, &made[0]).await.unwrap(), VolumeHealth { volume_id: made[0].clone(), health_statuses: vec![] });
    for n in [1, 2, 4, 5] {
        s.shelf.set_problem(&made[n], Some("its image is gone"));
    }
    let entry = get(&s, &made[1]).await.unwrap();
    let expected = volume_health::VolumeHealthEntry {
        status: VolumeHealthErrorType::DataLoss.into(),
        reason: "ImageMissing".to_owned(),
        message: "its image is gone".to_owned(),
    };
    assert_eq!(entry.health_statuses, [expected]);
    let first = list(&s, 2, "").await.unwrap();
    assert_eq!(ids(&first), [&made[1], &made[2]]);
    assert_eq!(first.entries[0], entry);
    // Meanwhile one becomes well, and the last one given out is deleted: the token stays good.
    s.shelf.set_problem(&made[4], None);
    s.delete(&made[2]).await.unwrap();
    let rest = list(&s, 2, &first.next_token).await.unwrap();
    assert_eq!((ids(&rest), rest.next_token.as_str()), (vec![made[5].as_str()], ""));
}

#[tokio::test]
async fn what_cannot_be_answered() {
    let s = subject();
    refused(list(&s, -1, "").await, Code::InvalidArgument);
    refused(list(&s, 0, "nonsense").await, Code::Aborted);
    refused(get(&s, "").await, Code::InvalidArgument);
    for id in FOREIGN.into_iter().chain([NO_VOLUME]) {
        refused(get(&s, id).await, Code::NotFound);
    }
    s.shelf.set_away(true);
    refused(list(&s, 0, "").await, Code::Unavailable);
    s.shelf.set_away(false);
    list(&s, 0, "").await.unwrap();
}
