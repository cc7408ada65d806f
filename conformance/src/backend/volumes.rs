//! Volumes come, are found and go.

use super::{Subject, at_least, at_most, refused};
use crate::backend::{MIB, SIZE};
use std::collections::BTreeMap;
use volume::{
    ErrorKind, Failover, FsType, PageRequest, Parameters, Segments, TopologyRequirement, Volume, VolumeId, VolumeKind,
    VolumeSpec,
};

pub fn create_is_idempotent(s: &Subject) {
    let first = s.create("pvc-1");
    assert_eq!(first.size_bytes, SIZE);
    assert_eq!((first.epoch.0, &first.attachment, &first.problem), (0, &None, &None));
    assert!(first.created_at_ms > 1_500_000_000_000, "created at {}", first.created_at_ms);
    assert_eq!(s.create("pvc-1"), first);
    assert_eq!(s.find(&first.id), first);
    // Anything that the volume answers is the same volume.
    for size in [at_least(MIB), at_most(SIZE * 2), Default::default()] {
        assert_eq!(s.ensure(&VolumeSpec { size, ..s.spec("pvc-1") }).unwrap(), first, "{size:?}");
    }
    assert_eq!((s.another)().find_volume(&first.id).unwrap(), Some(first));
}

pub fn create_refuses_a_different_volume(s: &Subject) {
    let first = s.create("pvc-1");
    let other = s.create("pvc-2");
    let spec = s.spec("pvc-1");
    let specs = [
        VolumeSpec { size: at_least(SIZE * 2), ..spec.clone() },
        VolumeSpec { size: at_most(SIZE / 2), ..spec.clone() },
        VolumeSpec { kind: VolumeKind::FileSystem(FsType::Xfs), size: Default::default(), ..spec.clone() },
        VolumeSpec { kind: VolumeKind::Block, ..spec.clone() },
        VolumeSpec { kind: VolumeKind::Directory, ..spec.clone() },
        VolumeSpec { source: Some(volume::VolumeSource::Volume(other.id)), ..spec.clone() },
        VolumeSpec { parameters: Parameters { uid: Some(7), ..Parameters::default() }, ..spec },
    ];
    for spec in specs {
        refused(s.ensure(&spec), ErrorKind::AlreadyExists);
    }
    assert_eq!(s.find(&first.id), first);
}

pub fn names(s: &Subject) {
    let long = "n".repeat(128);
    let names =
        ["a/b", "../../etc/passwd", "..", "new\nline", "db[0]", "volume with spaces", "Ünï-名前-🦀", "-rf", &long];
    for name in names {
        let made = s.create(name);
        assert_eq!(made.name.as_str(), name);
        assert_eq!(made.id, s.volume_id(name));
        assert_eq!(s.find(&made.id).name.as_str(), name);
    }
    assert_eq!(list(s).len(), names.len());
    for name in names {
        s.delete(&s.volume_id(name)).unwrap();
    }
    assert_eq!(list(s), []);
}

pub fn kinds(s: &Subject) {
    for fs in FsType::ALL {
        let spec =
            VolumeSpec { kind: VolumeKind::FileSystem(fs), size: at_least(MIB), ..s.spec(&format!("the {fs} volume")) };
        let made = s.ensure(&spec).unwrap();
        assert_eq!(made.kind, VolumeKind::FileSystem(fs));
        assert_eq!(s.ensure(&spec).unwrap(), made);
    }
    let directory = s.ensure(&VolumeSpec { kind: VolumeKind::Directory, ..s.spec("directory") }).unwrap();
    assert_eq!((directory.kind, directory.size_bytes), (VolumeKind::Directory, SIZE));
    let block = VolumeSpec { kind: VolumeKind::Block, ..s.spec("block") };
    match s.backend.restrictions().no_block {
        None => assert_eq!(s.ensure(&block).unwrap().kind, VolumeKind::Block),
        Some(_) => {
            refused(s.ensure(&block), ErrorKind::InvalidArgument);
            assert_eq!(s.backend.find_volume(&block.id).unwrap(), None);
        }
    }
}

pub fn paging(s: &Subject) {
    let mut ids: Vec<VolumeId> = (0..5).map(|n| s.create(&format!("v{n}")).id).collect();
    ids.sort();
    assert_eq!(list(s), ids);
    let page = |max_entries, token: Option<&str>| {
        let page = s.backend.list_volumes(&PageRequest { max_entries, token: token.map(str::to_owned) })?;
        Ok((page.entries.iter().map(|v: &Volume| v.id.clone()).collect::<Vec<_>>(), page.next_token))
    };
    let (first, token) = page(2, None).unwrap();
    assert_eq!(first, ids[..2]);
    // What was on the earlier page goes away meanwhile: the rest is unchanged.
    s.delete(&ids[1]).unwrap();
    let (second, token) = page(2, token.as_deref()).unwrap();
    assert_eq!(second, ids[2..4]);
    let (third, end) = page(2, token.as_deref()).unwrap();
    assert_eq!((&third[..], end), (&ids[4..], None));
    assert_eq!(page(5, None).unwrap().1, None, "all of them fit: no token");
    assert_eq!(page(0, Some("")).unwrap().0.len(), 4, "an empty token is no token");
    for bad in ["4", "../x", "pool.v12", "\u{1F980}", s.snapshot_id("s").as_str()] {
        refused::<(Vec<VolumeId>, Option<String>)>(page(2, Some(bad)), ErrorKind::BadPageToken);
    }
}

pub fn topology(s: &Subject) {
    let own = s.backend.topology().unwrap();
    let elsewhere = Segments(BTreeMap::from([("csi.hawser.dev/node".to_owned(), "nowhere".to_owned())]));
    let spec = s.spec("here");
    let require = |requisite| TopologyRequirement { requisite, preferred: Vec::new() };
    if own.is_empty() {
        s.ensure(&VolumeSpec { topology: require(vec![elsewhere]), ..spec }).unwrap();
        return;
    }
    refused(s.ensure(&VolumeSpec { topology: require(vec![elsewhere.clone()]), ..spec.clone() }), ErrorKind::Exhausted);
    assert_eq!(s.backend.find_volume(&spec.id).unwrap(), None);
    let here = VolumeSpec { topology: require(vec![elsewhere, own[0].clone()]), ..spec };
    assert_eq!(s.ensure(&here).unwrap().accessible_topology, own);
}

pub fn delete_is_idempotent(s: &Subject) {
    let first = s.create("pvc-1");
    let kept = s.create("pvc-2");
    s.delete(&first.id).unwrap();
    s.delete(&first.id).unwrap();
    assert_eq!(s.backend.find_volume(&first.id).unwrap(), None);
    assert_eq!(list(s), [kept.id]);
    // The name is free again, for a different volume too.
    let again = s.ensure(&VolumeSpec { size: at_least(SIZE * 2), ..s.spec("pvc-1") }).unwrap();
    assert_eq!((again.id, again.size_bytes), (first.id, SIZE * 2));
}

pub fn parameters_are_kept(s: &Subject) {
    let parameters = Parameters {
        fs_type: Some(FsType::Ext4),
        mount_flags: vec!["noatime".to_owned()],
        uid: Some(70),
        gid: Some(71),
        mode: Some(0o750),
        failover: Failover::Off,
        ..Parameters::default()
    };
    let spec = VolumeSpec { parameters: parameters.clone(), ..s.spec("with parameters") };
    let made = s.ensure(&spec).unwrap();
    assert_eq!(made.parameters, parameters);
    assert_eq!(s.ensure(&spec).unwrap(), made);
    assert_eq!((s.another)().find_volume(&made.id).unwrap().unwrap().parameters, parameters);
    assert_eq!(s.connector.volume(&made.id).unwrap().parameters, parameters);
}

pub fn unknown_volumes(s: &Subject) {
    let id = s.volume_id("never made");
    assert_eq!(s.backend.find_volume(&id).unwrap(), None);
    refused(s.connector.volume(&id), ErrorKind::NotFound);
    assert_eq!(list(s), []);
    s.backend.check().unwrap();
}

fn list(s: &Subject) -> Vec<VolumeId> {
    let page = s.backend.list_volumes(&PageRequest::default()).unwrap();
    assert_eq!(page.next_token, None);
    page.entries.into_iter().map(|v| v.id).collect()
}
