//! ControllerModifyVolume, and mutable parameters where a volume is made or looked at.

use super::*;
use volume::{MutableParameters, VolumeId};

async fn modify(s: &Subject, volume_id: &str, mutable_parameters: BTreeMap<String, String>) -> Result<(), Status> {
    let request =
        ControllerModifyVolumeRequest { volume_id: volume_id.to_owned(), mutable_parameters, secrets: BTreeMap::new() };
    s.service.controller_modify_volume(Request::new(request)).await.map(drop)
}

fn recorded(s: &Subject, id: &str) -> MutableParameters {
    s.shelf.find_volume(&VolumeId::parse(id).unwrap()).unwrap().unwrap().mutable
}

fn with(name: &str, key: &str, value: &str) -> CreateVolumeRequest {
    CreateVolumeRequest { mutable_parameters: text_map(key, value), ..volume_request(name) }
}

#[tokio::test]
async fn keys_that_are_named_change() {
    let s = subject();
    let id = s.create(with("v", "readAheadKiB", "256")).await.unwrap().volume_id;
    assert_eq!(recorded(&s, &id).read_ahead_kib, Some(256));
    for _ in 0..2 {
        modify(&s, &id, text_map("writeBytesPerSecond", "1048576")).await.unwrap();
        let now = recorded(&s, &id);
        assert_eq!((now.read_ahead_kib, now.limits.write_bytes_per_second), (Some(256), Some(1 << 20)));
    }
    modify(&s, &id, text_map("readAheadKiB", "default")).await.unwrap();
    assert_eq!(recorded(&s, &id).read_ahead_kib, None);
}

#[tokio::test]
async fn refusals_change_nothing() {
    let s = subject();
    let id = s.create(with("v", "readAheadKiB", "256")).await.unwrap().volume_id;
    let before = recorded(&s, &id);
    let mut half_known = text_map("readAheadKiB", "512");
    half_known.insert("iops".to_owned(), "7".to_owned());
    for wrong in [half_known, text_map("iops", "7"), text_map("readOpsPerSecond", "-1"), BTreeMap::new()] {
        refused(modify(&s, &id, wrong).await, Code::InvalidArgument);
    }
    assert_eq!(recorded(&s, &id), before);
    let good = || text_map("readAheadKiB", "512");
    refused(modify(&s, "", good()).await, Code::InvalidArgument);
    for missing in FOREIGN.into_iter().chain([NO_VOLUME]) {
        refused(modify(&s, missing, good()).await, Code::NotFound);
    }
    let directory = CreateVolumeRequest { volume_capabilities: vec![mount(5)], ..volume_request("shared") };
    let directory = s.create(directory).await.unwrap().volume_id;
    refused(modify(&s, &directory, good()).await, Code::InvalidArgument);
    let bare = CreateVolumeRequest { parameters: text_map("backend", "bare"), ..volume_request("bare") };
    let bare = s.create(bare).await.unwrap().volume_id;
    refused(modify(&s, &bare, good()).await, Code::InvalidArgument);
}

#[tokio::test]
async fn creation() {
    let s = subject();
    let id = s.create(with("v", "readAheadKiB", "256")).await.unwrap().volume_id;
    // Compatible is who asks for the same, or for nothing.
    assert_eq!(s.create(with("v", "readAheadKiB", "256")).await.unwrap().volume_id, id);
    assert_eq!(s.created("v").await.volume_id, id);
    refused(s.create(with("v", "readAheadKiB", "512")).await, Code::AlreadyExists);
    refused(s.create(with("v", "readOpsPerSecond", "100")).await, Code::AlreadyExists);
    assert_eq!(recorded(&s, &id).read_ahead_kib, Some(256));
    let elsewhere =
        CreateVolumeRequest { parameters: text_map("backend", "bare"), ..with("bare", "readAheadKiB", "256") };
    refused(s.create(elsewhere).await, Code::InvalidArgument);
}

#[tokio::test]
async fn validation_tells_what_a_volume_could_have() {
    let s = subject();
    let id = s.created("v").await.volume_id;
    for (key, value, fits) in [("readAheadKiB", "64", true), ("readAheadKiB", "x", false), ("iops", "7", false)] {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: id.clone(),
            volume_capabilities: vec![mount(1)],
            mutable_parameters: text_map(key, value),
            ..Default::default()
        };
        let answer = inner(s.service.validate_volume_capabilities(Request::new(request)).await).unwrap();
        assert_eq!(answer.confirmed.map(|c| c.mutable_parameters), fits.then(|| text_map(key, value)), "{key}={value}");
    }
}
