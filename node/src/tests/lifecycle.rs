//! Stage, publish, unpublish, unstage of every kind, and each of them again.

use super::*;
use crate::stats::Usage;

#[test]
fn a_file_system_from_stage_to_unstage() {
    for fs in FsType::ALL {
        let lab = Lab::new();
        let clean = lab.state();
        let volume = lab.attached("v", VolumeKind::FileSystem(fs));
        for _ in 0..2 {
            lab.stage(&volume, STAGING).unwrap();
        }
        for _ in 0..2 {
            lab.publish(&volume, STAGING, TARGET).unwrap();
        }
        lab.write("/targets/a/file", "kept").unwrap();
        assert_eq!(lab.read("/staging/a/file"), "kept");
        refused(lab.unstage(&volume.id, STAGING), ErrorKind::FailedPrecondition, TARGET);
        let published = lab.state();
        assert!(published.iter().all(|line| !line.starts_with("note")), "{published:?}");
        for _ in 0..2 {
            lab.unpublish(&volume.id, TARGET).unwrap();
        }
        assert_eq!(lab.host.observe_path(Path::new(TARGET)).unwrap(), host::PathState::Absent);
        for _ in 0..2 {
            lab.unstage(&volume.id, STAGING).unwrap();
        }
        lab.host.remove_target(Path::new(STAGING)).unwrap();
        assert_eq!(lab.state(), clean, "{fs}");
        // The context is a hint: without it all works as well.
        let bare = Volume { context: None, ..volume };
        lab.stage(&bare, STAGING).unwrap();
        assert_eq!(lab.read("/staging/a/file"), "kept");
    }
}

#[test]
fn a_block_volume() {
    let lab = Lab::new();
    let clean = lab.state();
    let volume = lab.attached("v", VolumeKind::Block);
    refused(lab.publish(&volume, STAGING, TARGET), ErrorKind::FailedPrecondition, "not staged");
    for _ in 0..2 {
        lab.stage(&volume, STAGING).unwrap();
        lab.publish(&volume, STAGING, TARGET).unwrap();
    }
    lab.host.write_blocks(Path::new(TARGET), 0, &[7; 4096]).unwrap();
    assert_eq!(lab.host.read_blocks(Path::new(TARGET), 0, 4096).unwrap(), [7; 4096]);
    refused(lab.unstage(&volume.id, STAGING), ErrorKind::FailedPrecondition, TARGET);
    refused(lab.publish(&volume.read_only(), STAGING, "/targets/b"), ErrorKind::FailedPrecondition, "read-only");
    let stats = |path: &str| lab.node().volume_stats(&volume.id, &at(path), &mut Trace::new());
    assert_eq!(stats(TARGET).unwrap(), Usage::Block { total_bytes: SIZE });
    lab.unpublish(&volume.id, TARGET).unwrap();
    refused(stats(TARGET), ErrorKind::NotFound, TARGET);
    lab.unstage(&volume.id, STAGING).unwrap();
    assert_eq!(lab.state(), clean);
}

#[test]
fn a_directory_volume_is_shared_without_staging() {
    let lab = Lab::new();
    let clean = lab.state();
    let volume = lab.attached("v", VolumeKind::Directory);
    lab.stage(&volume, STAGING).unwrap();
    for _ in 0..2 {
        lab.publish(&volume, STAGING, TARGET).unwrap();
        lab.publish(&volume.read_only(), STAGING, "/targets/b").unwrap();
    }
    lab.write("/targets/a/file", "shared").unwrap();
    assert_eq!(lab.read("/targets/b/file"), "shared");
    assert!(lab.write("/targets/b/file", "no").is_err());
    assert!(matches!(
        lab.node().volume_stats(&volume.id, &at(TARGET), &mut Trace::new()).unwrap(),
        Usage::FileSystem(_)
    ));
    refused(lab.publish(&volume.read_only(), STAGING, TARGET), ErrorKind::AlreadyExists, "read-write");
    refused(lab.stage(&volume.flags(&["noatime"]), STAGING), ErrorKind::InvalidArgument, "no mount flags");
    for target in [TARGET, "/targets/b"] {
        lab.unpublish(&volume.id, target).unwrap();
    }
    lab.unstage(&volume.id, STAGING).unwrap();
    assert_eq!(lab.state(), clean);
}

#[test]
fn where_the_orchestrator_does_not_stage_publish_does() {
    for kind in [EXT4, VolumeKind::Block, VolumeKind::Directory] {
        let lab = Lab::of(Profile::Swarm);
        let volume = lab.attached("v", kind);
        let clean = lab.state();
        for _ in 0..2 {
            lab.publish(&volume, "", TARGET).unwrap();
            lab.publish(&volume, "", "/targets/deep/er/b").unwrap();
        }
        lab.unpublish(&volume.id, TARGET).unwrap();
        lab.unpublish(&volume.id, "/targets/never").unwrap();
        assert_eq!(lab.host.loops().unwrap().is_empty(), kind == VolumeKind::Directory, "one target is left");
        for _ in 0..2 {
            lab.unpublish(&volume.id, "/targets/deep/er/b").unwrap();
        }
        lab.host.remove_target(Path::new("/targets/deep/er")).unwrap();
        lab.host.remove_target(Path::new("/targets/deep")).unwrap();
        assert_eq!(lab.state(), clean, "{kind}");
        let own_staging = lab.node().own_staging_path(&volume.id);
        assert_eq!(lab.host.observe_path(&own_staging).unwrap(), host::PathState::Absent);
    }
}

#[test]
fn several_targets() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    lab.publish(&volume, STAGING, TARGET).unwrap();
    // Pods of one node share a ReadWriteOnce volume.
    lab.publish(&volume, STAGING, "/targets/b").unwrap();
    lab.publish(&volume.mode(AccessMode::SingleNodeMultiWriter), STAGING, "/targets/c").unwrap();
    let single = volume.mode(AccessMode::SingleNodeSingleWriter);
    refused(lab.publish(&single, STAGING, "/targets/d"), ErrorKind::FailedPrecondition, "SINGLE_NODE_SINGLE_WRITER");
    for target in ["/targets/b", "/targets/c"] {
        lab.unpublish(&volume.id, target).unwrap();
    }
    lab.publish(&single, STAGING, TARGET).unwrap();
    refused(lab.publish(&single, STAGING, "/targets/d"), ErrorKind::FailedPrecondition, TARGET);
}

#[test]
fn read_only() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    lab.publish(&volume.read_only(), STAGING, TARGET).unwrap();
    assert!(lab.write("/targets/a/file", "no").is_err());
    refused(lab.publish(&volume, STAGING, TARGET), ErrorKind::AlreadyExists, "read-only");
    refused(lab.stage(&volume.flags(&["ro"]), STAGING), ErrorKind::AlreadyExists, "staged read-write");
    lab.unpublish(&volume.id, TARGET).unwrap();
    lab.unstage(&volume.id, STAGING).unwrap();

    let reader = volume.mode(AccessMode::SingleNodeReaderOnly);
    lab.stage(&reader, STAGING).unwrap();
    assert!(lab.write("/staging/a/file", "no").is_err());
    lab.publish(&reader, STAGING, TARGET).unwrap();
    assert!(lab.write("/targets/a/file", "no").is_err());

    let raw = lab.attached("raw", VolumeKind::Block).mode(AccessMode::SingleNodeReaderOnly);
    lab.stage(&raw, "/staging/raw").unwrap();
    lab.publish(&raw, "/staging/raw", "/targets/raw").unwrap();
    assert!(lab.host.write_blocks(Path::new("/targets/raw"), 0, &[7; 4096]).is_err());
}

#[test]
fn unknown_volumes() {
    let lab = Lab::new();
    let name = VolumeName::parse("nobody").unwrap();
    for id in
        [VolumeId::of_name(lab.backend.name(), &name), VolumeId::of_name(&BackendName::parse("other").unwrap(), &name)]
    {
        let volume = Volume { id: id.clone(), ..lab.attached("v", EXT4) };
        refused(lab.stage(&volume, STAGING), ErrorKind::NotFound, id.as_str());
        refused(lab.publish(&volume, STAGING, TARGET), ErrorKind::NotFound, id.as_str());
        refused(lab.expand(&id, STAGING, SIZE), ErrorKind::NotFound, id.as_str());
        refused(lab.node().volume_stats(&id, &at(TARGET), &mut Trace::new()), ErrorKind::NotFound, id.as_str());
        lab.host.create_directory(Path::new(TARGET)).unwrap();
        lab.unpublish(&id, TARGET).unwrap();
        assert_eq!(lab.host.observe_path(Path::new(TARGET)).unwrap(), host::PathState::Absent);
        lab.unstage(&id, STAGING).unwrap();
    }
}

#[test]
fn a_volume_that_hangs_holds_up_no_other() {
    let lab = Lab::new();
    let (stuck, other) = (lab.attached("stuck", EXT4), lab.attached("other", EXT4));
    lab.stage(&other, "/staging/other").unwrap();
    lab.host.hang_after(0);
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| lab.stage(&stuck, STAGING));
        while !hung.is_finished() && lab.node().journal.find(&stuck.id).unwrap().is_none() {
            std::thread::yield_now();
        }
        // The fake hangs every effect; what needs none goes on.
        lab.stage(&other, "/staging/other").unwrap();
        lab.node().volume_stats(&other.id, &at("/staging/other"), &mut Trace::new()).unwrap();
        assert!(!hung.is_finished());
        lab.host.release();
        hung.join().unwrap().unwrap();
    });
    lab.publish(&stuck, STAGING, TARGET).unwrap();
}

/// A managed plugin that crashed has lost the mounts of its own mount namespace, but not the propagated ones.
#[test]
fn what_was_published_survives_the_loss_of_our_own_staging() {
    let mut lab = Lab::of(Profile::Swarm);
    let volume = lab.attached("v", EXT4);
    let clean = lab.state();
    lab.publish(&volume, "", TARGET).unwrap();
    lab.write("/targets/a/file", "kept").unwrap();
    let own_staging = lab.node().own_staging_path(&volume.id);
    lab.host.unmount(&own_staging).unwrap();
    assert_eq!(lab.restart().unwrap().leftovers, Vec::<String>::new());
    lab.publish(&volume, "", TARGET).unwrap();
    refused(lab.publish(&volume.read_only(), "", TARGET), ErrorKind::AlreadyExists, "read-write");
    assert_eq!(lab.read("/targets/a/file"), "kept");
    lab.unpublish(&volume.id, TARGET).unwrap();
    assert_eq!(lab.state().len(), clean.len(), "{:?}", lab.state());
}

/// Kubelet binds subdirectories that tenants name (subPath): a name alone makes no mount a volume's.
#[test]
fn a_tenant_cannot_claim_a_volume_by_the_name_of_a_directory() {
    for (owner, victim) in [(EXT4, EXT4), (VolumeKind::Directory, EXT4), (VolumeKind::Directory, VolumeKind::Block)] {
        let lab = Lab::new();
        let tenant = lab.attached("tenant", owner);
        lab.stage(&tenant, STAGING).unwrap();
        lab.publish(&tenant, STAGING, TARGET).unwrap();
        let volume = lab.attached("victim", victim);
        let fake = PathBuf::from(format!("{TARGET}/volumes/{}/data", volume.id));
        lab.host.create_directory(&fake).unwrap();
        lab.host.create_directory(Path::new("/targets/subpath")).unwrap();
        lab.host.bind(&fake, Path::new("/targets/subpath"), false).unwrap();
        lab.stage(&volume, "/staging/b").unwrap();
        lab.publish(&volume, "/staging/b", "/targets/b").unwrap();
        lab.unpublish(&volume.id, "/targets/b").unwrap();
        lab.unstage(&volume.id, "/staging/b").unwrap();
        let error = lab.unpublish(&volume.id, "/targets/subpath").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{}", error.chain());
        if owner == EXT4 {
            refused(lab.unstage(&tenant.id, STAGING), ErrorKind::FailedPrecondition, "/targets/subpath");
        }
    }
}

/// One path may end like another without being the same place seen through a bind mount.
#[test]
fn a_target_that_is_named_like_the_end_of_the_staging_path_is_a_target() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, "/staging/targets/a").unwrap();
    lab.publish(&volume, "/staging/targets/a", TARGET).unwrap();
    lab.write("/targets/a/file", "kept").unwrap();
    refused(lab.unstage(&volume.id, "/staging/targets/a"), ErrorKind::FailedPrecondition, TARGET);
    assert_eq!(lab.read("/staging/targets/a/file"), "kept");
    let single = volume.mode(AccessMode::SingleNodeSingleWriter);
    refused(lab.publish(&single, "/staging/targets/a", "/targets/b"), ErrorKind::FailedPrecondition, TARGET);
}
