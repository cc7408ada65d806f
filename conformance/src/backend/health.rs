//! What a backend says of volumes that are well and that are not, and trims.

use super::{SIZE, Subject, at_least, lock, refused};
use volume::{
    ErrorKind, Health, PageRequest, Parameters, Result, Severity, Trim, VolumeHealth, VolumeId, VolumeKind, VolumeSpec,
};

pub fn healthy_is_empty(s: &Subject) {
    let Some(health) = s.backend.health() else { return };
    let volume = s.create("well");
    let directory = s.ensure(&VolumeSpec { kind: VolumeKind::Directory, ..s.spec("directory") }).unwrap();
    for id in [&volume.id, &directory.id] {
        let well = VolumeHealth { volume: id.clone(), problems: Vec::new() };
        assert_eq!(health.volume_health(id).unwrap(), well);
        assert_eq!(s.connector.volume_health(id).unwrap(), well);
    }
    assert_eq!(list(health, 0, None).unwrap(), (vec![], None));
    assert_eq!(s.connector.storage_health().unwrap(), []);
}

pub fn unknown(s: &Subject) {
    let Some(health) = s.backend.health() else { return };
    let id = s.create("once").id;
    s.delete(&id).unwrap();
    for id in [id, s.volume_id("never made")] {
        refused(health.volume_health(&id), ErrorKind::NotFound);
        refused(s.connector.volume_health(&id), ErrorKind::NotFound);
    }
}

pub fn pages_of_unhealthy(s: &Subject) {
    let Some(health) = s.backend.health() else { return };
    let mut ids: Vec<VolumeId> = (0..6).map(|n| s.create(&format!("v{n}")).id).collect();
    ids.sort();
    let (hurt, well) = ([&ids[0], &ids[2], &ids[3], &ids[5]], [&ids[1], &ids[4]]);
    hurt.iter().for_each(|id| (s.set_image_bytes)(id, SIZE / 2));
    for id in hurt {
        let found = health.volume_health(id).unwrap();
        assert_eq!(found.problems.iter().map(|p| (p.severity, p.reason)).collect::<Vec<_>>(), TRUNCATED);
        assert_eq!(s.connector.volume_health(id).unwrap(), found);
    }
    for id in well {
        assert!(health.volume_health(id).unwrap().is_healthy());
    }
    assert_eq!(list(health, 0, None).unwrap(), (hurt.map(Clone::clone).to_vec(), None));
    assert_eq!(list(health, 4, Some("")).unwrap().1, None, "all of them fit: no token");
    let (first, token) = list(health, 2, None).unwrap();
    assert_eq!(first, [ids[0].clone(), ids[2].clone()]);
    // Meanwhile the last one given out becomes well, and so does one of the next page: the token stays good.
    (s.set_image_bytes)(&ids[2], SIZE);
    (s.set_image_bytes)(&ids[3], SIZE);
    assert_eq!(list(health, 2, token.as_deref()).unwrap(), (vec![ids[5].clone()], None));
    for bad in ["4", "../x", "pool.v12", s.snapshot_id("s").as_str()] {
        refused(list(health, 2, Some(bad)), ErrorKind::BadPageToken);
    }
}

/// What a trim does to a mounted file system is tested where there are real ones.
pub fn trims(s: &Subject) {
    let Some(trim) = s.backend.trim() else { return };
    let volume = s.create("thin");
    let ask = |id: &VolumeId| Trim::trim(trim, &lock(id.as_str()), id);
    let message = refused(ask(&volume.id), ErrorKind::FailedPrecondition);
    assert!(message.contains("mounted"), "{message}");
    refused(trim.trim(&lock("another"), &volume.id), ErrorKind::Internal);
    refused(ask(&s.volume_id("never made")), ErrorKind::NotFound);
    let thick = VolumeSpec { parameters: Parameters { thick: true, ..Parameters::default() }, ..s.spec("thick") };
    let thick = s.ensure(&VolumeSpec { size: at_least(SIZE), ..thick }).unwrap();
    refused(ask(&thick.id), ErrorKind::FailedPrecondition);
    let directory = s.ensure(&VolumeSpec { kind: VolumeKind::Directory, ..s.spec("directory") }).unwrap();
    refused(ask(&directory.id), ErrorKind::Unsupported);
}

const TRUNCATED: [(Severity, &str); 1] = [(Severity::DataLoss, "ImageTruncated")];

fn list(health: &dyn Health, max_entries: usize, token: Option<&str>) -> Result<(Vec<VolumeId>, Option<String>)> {
    let page = health.list_unhealthy(&PageRequest { max_entries, token: token.map(str::to_owned) })?;
    assert!(page.entries.iter().all(|entry| !entry.is_healthy()));
    Ok((page.entries.into_iter().map(|entry| entry.volume).collect(), page.next_token))
}
