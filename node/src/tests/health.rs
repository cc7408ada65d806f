//! What is wrong with a volume as its node sees it, each cause made and taken away again.

use super::*;
use crate::health::HealthRequest;
use std::time::Instant;
use volume::{Connected, DeviceNumber, Fence, FenceHow, Severity};

type Found = Vec<(Severity, &'static str)>;

fn ask(lab: &Lab, id: &VolumeId, publish: &str) -> Result<Found> {
    let request = HealthRequest {
        volume: id.clone(),
        volume_publish_path: NodePath::parse_optional("volume_publish_path", publish).unwrap(),
        staging_target_path: Some(at(STAGING)),
    };
    let health = lab.service.node.volume_health(&request, &mut Trace::new())?;
    assert_eq!(health.volume, *id);
    assert!(health.problems.iter().all(|problem| problem.message.len() > 20), "{:?}", health.problems);
    Ok(health.problems.iter().map(|problem| (problem.severity, problem.reason)).collect())
}

fn number(lab: &Lab, id: &VolumeId) -> DeviceNumber {
    match lab.backend.connector().observe(id).unwrap() {
        Some(Connected::Device { number, .. }) => number,
        other => panic!("{other:?}"),
    }
}

fn image(lab: &Lab, id: &VolumeId) -> PathBuf {
    PathBuf::from(format!("/hawser-memory/{}/{id}/image.{:016x}", lab.backend.name(), 0))
}

#[test]
fn every_kind_is_well_at_every_step() {
    for kind in [EXT4, VolumeKind::FileSystem(FsType::Btrfs), VolumeKind::Block, VolumeKind::Directory] {
        let lab = Lab::new();
        let id = lab.create("v", kind, Parameters::default());
        let well = || assert_eq!(ask(&lab, &id, TARGET).unwrap(), [], "{kind}");
        well();
        let volume = lab.attached("v", kind);
        well();
        lab.stage(&volume, STAGING).unwrap();
        well();
        lab.publish(&volume, STAGING, TARGET).unwrap();
        well();
        lab.unpublish(&id, TARGET).unwrap();
        lab.unstage(&id, STAGING).unwrap();
        well();
    }
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4).mode(AccessMode::SingleNodeReaderOnly);
    lab.stage(&volume, STAGING).unwrap();
    lab.publish(&volume, STAGING, TARGET).unwrap();
    assert_eq!(ask(&lab, &volume.id, TARGET).unwrap(), [], "read-only, as it was asked for");
    let unknown = VolumeId::of_name(lab.backend.name(), &VolumeName::parse("unknown").unwrap());
    refused(ask(&lab, &unknown, TARGET), ErrorKind::NotFound, "no volume");
}

#[test]
fn a_file_system_that_stopped() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    lab.publish(&volume, STAGING, TARGET).unwrap();
    lab.host.fail_file_system(number(&lab, &volume.id));
    assert!(lab.write("/targets/a/file", "no").is_err());
    assert_eq!(ask(&lab, &volume.id, "").unwrap(), [(Severity::Inaccessible, "FileSystemReadOnly")]);
    lab.unpublish(&volume.id, TARGET).unwrap();
    lab.unstage(&volume.id, STAGING).unwrap();
    assert_eq!(ask(&lab, &volume.id, "").unwrap(), []);
    lab.stage(&volume, STAGING).unwrap();
    assert_eq!(ask(&lab, &volume.id, "").unwrap(), []);
    lab.host.shutdown_filesystem(Path::new(STAGING)).unwrap();
    assert_eq!(ask(&lab, &volume.id, "").unwrap(), [(Severity::Inaccessible, "FileSystemShutDown")]);
    lab.unstage(&volume.id, STAGING).unwrap();
    lab.host.set_errors(&image(&lab, &volume.id), "").unwrap();
    lab.stage(&volume, STAGING).unwrap();
    assert_eq!(ask(&lab, &volume.id, "").unwrap(), [(Severity::Degraded, "FileSystemErrors")]);
}

#[test]
fn a_truncated_image() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    lab.host.resize_image(&image(&lab, &volume.id), SIZE / 2).unwrap();
    let both = [(Severity::DataLoss, "ImageTruncated"), (Severity::Inaccessible, "DeviceError")];
    assert_eq!(ask(&lab, &volume.id, "").unwrap(), both);
    lab.host.resize_image(&image(&lab, &volume.id), SIZE).unwrap();
    assert_eq!(ask(&lab, &volume.id, "").unwrap(), []);
}

#[test]
fn something_else_at_the_path() {
    let lab = Lab::new();
    let (volume, other) = (lab.attached("v", EXT4), lab.attached("other", EXT4));
    lab.stage(&volume, STAGING).unwrap();
    lab.stage(&other, "/staging/other").unwrap();
    lab.host.ensure_directory(Path::new(TARGET)).unwrap();
    lab.host.bind(Path::new("/staging/other"), Path::new(TARGET), false).unwrap();
    assert_eq!(ask(&lab, &volume.id, TARGET).unwrap(), [(Severity::Inaccessible, "ForeignMount")]);
    assert_eq!(ask(&lab, &volume.id, "/targets/elsewhere").unwrap(), []);
    lab.host.unmount(Path::new(TARGET)).unwrap();
    assert_eq!(ask(&lab, &volume.id, TARGET).unwrap(), []);
}

#[test]
fn a_fence_is_seen() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    Fence::fence(&lab.backend, &NodeId::parse("n1").unwrap(), None, "test", FenceHow::Enforce).unwrap();
    let found = ask(&lab, &volume.id, "").unwrap();
    for reason in ["AttachmentLost", "DeviceCutOff", "DeviceError"] {
        assert!(found.contains(&(Severity::Inaccessible, reason)), "{reason} is not in {found:?}");
    }
    lab.service.register().unwrap();
    assert_eq!(ask(&lab, &volume.id, "").unwrap(), [], "it let go of everything");
}

/// The call is answered in time while a device hangs, and asking again costs no more threads and no more time.
#[test]
fn a_hung_device() {
    let lab = Lab::new();
    let (volume, other) = (lab.attached("v", EXT4), lab.attached("other", EXT4));
    lab.stage(&volume, STAGING).unwrap();
    lab.stage(&other, "/staging/other").unwrap();
    lab.host.hang_device(number(&lab, &volume.id));
    let hung = [(Severity::Inaccessible, "DeviceHung")];
    let begun = Instant::now();
    assert_eq!(ask(&lab, &volume.id, "").unwrap(), hung);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let begun = Instant::now();
    for _ in 0..50 {
        assert_eq!(ask(&lab, &volume.id, "").unwrap(), hung);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "each waits anew: {:?}", begun.elapsed());
    let request = HealthRequest { volume: other.id.clone(), volume_publish_path: None, staging_target_path: None };
    assert!(lab.service.node.volume_health(&request, &mut Trace::new()).unwrap().is_healthy());
    lab.host.release();
    let begun = Instant::now();
    while !ask(&lab, &volume.id, "").unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never became well again");
    }
}
