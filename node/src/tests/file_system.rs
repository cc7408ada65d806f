//! What is on the device: never formatted here, never repaired, grown when it is smaller, owned as asked for.

use super::*;
use host::{Owner, Probe};
use volume::Expand;

/// What the image holds is changed while it is connected, by a hand that the driver does not see.
fn tampered(change: impl FnOnce(&Lab, &Path)) -> (Lab, Volume) {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    lab.host.unmount(Path::new(STAGING)).unwrap();
    change(&lab, &lab.device(&volume.id));
    lab.unstage(&volume.id, STAGING).unwrap();
    (lab, volume)
}

#[test]
fn what_is_not_the_file_system_is_never_mounted_or_formatted() {
    let uuid = [7; 16];
    for (found, says) in [
        (Probe::Blank, "zeros"),
        (Probe::Other("LUKS".to_owned()), "LUKS"),
        (Probe::Damaged { fs: FsType::Ext4, reason: "checksum".to_owned() }, "checksum"),
        (Probe::FileSystem { fs: FsType::Xfs, uuid, size_bytes: SIZE, errors: false }, "holds xfs"),
    ] {
        let (lab, volume) = tampered(|lab, device| lab.host.put_on_image(device, &found).unwrap());
        let before = lab.state();
        refused(lab.stage(&volume, STAGING), ErrorKind::Corrupt, says);
        assert_eq!(lab.state(), before);
    }
    let (lab, volume) = tampered(|lab, device| lab.host.make_unreadable(device).unwrap());
    let before = lab.state();
    assert_ne!(lab.stage(&volume, STAGING).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(lab.state(), before, "a read error is not blank");
}

#[test]
fn a_damaged_file_system_is_checked_and_not_repaired() {
    let (lab, volume) = tampered(|lab, device| lab.host.set_errors(device, "block bitmap differs").unwrap());
    let before = lab.state();
    let error = refused(lab.stage(&volume, STAGING), ErrorKind::Corrupt, "block bitmap differs");
    assert!(error.chain().contains("e2fsck -f") && error.chain().contains("nothing was changed"), "{}", error.chain());
    assert_eq!(lab.state(), before);
    // The flag alone, with nothing found, is no reason to refuse.
    let (lab, volume) = tampered(|lab, device| lab.host.set_errors(device, "").unwrap());
    lab.stage(&volume, STAGING).unwrap();
}

#[test]
fn a_smaller_file_system_grows_when_it_is_staged() {
    for (fs, may) in [(FsType::Ext4, true), (FsType::Ext4, false), (FsType::Xfs, false), (FsType::Btrfs, false)] {
        let lab = Lab::new();
        lab.host.set_may_grow_mounted_ext4(may);
        let volume = lab.attached("v", VolumeKind::FileSystem(fs));
        lab.stage(&volume, STAGING).unwrap();
        lab.write("/staging/a/file", "kept").unwrap();
        lab.unstage(&volume.id, STAGING).unwrap();
        grow(&lab, &volume.id);
        lab.stage(&volume, STAGING).unwrap();
        assert_eq!(lab.host.stats(Path::new(STAGING)).unwrap().total_bytes, 2 * SIZE, "{fs} {may}");
        assert_eq!(lab.read("/staging/a/file"), "kept");
        assert_eq!(lab.state().iter().filter(|line| line.starts_with(STAGING)).count(), 1);
    }
}

#[test]
fn expansion() {
    let lab = Lab::new();
    lab.host.set_may_grow_mounted_ext4(true);
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    lab.publish(&volume.read_only(), STAGING, TARGET).unwrap();
    refused(lab.expand(&volume.id, "/targets/none", SIZE), ErrorKind::NotFound, "/targets/none");
    refused(lab.expand(&volume.id, TARGET, 2 * SIZE), ErrorKind::OutOfRange, "ControllerExpandVolume");
    grow(&lab, &volume.id);
    for _ in 0..2 {
        assert_eq!(lab.expand(&volume.id, TARGET, 2 * SIZE).unwrap(), 2 * SIZE);
        assert_eq!(lab.host.stats(Path::new(TARGET)).unwrap().total_bytes, 2 * SIZE);
    }
    let raw = lab.attached("raw", VolumeKind::Block);
    lab.stage(&raw, "/staging/raw").unwrap();
    lab.publish(&raw, "/staging/raw", "/targets/raw").unwrap();
    grow(&lab, &raw.id);
    assert_eq!(lab.expand(&raw.id, "/targets/raw", 2 * SIZE).unwrap(), 2 * SIZE);
}

#[test]
fn expansion_without_the_privilege_says_when_it_will_happen() {
    let lab = Lab::new();
    lab.host.set_may_grow_mounted_ext4(false);
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    grow(&lab, &volume.id);
    refused(lab.expand(&volume.id, STAGING, 2 * SIZE), ErrorKind::FailedPrecondition, "CAP_SYS_RESOURCE");
    lab.unstage(&volume.id, STAGING).unwrap();
    lab.stage(&volume, STAGING).unwrap();
    assert_eq!(lab.host.stats(Path::new(STAGING)).unwrap().total_bytes, 2 * SIZE);
}

#[test]
fn ownership_is_set_for_the_first_use() {
    let lab = Lab::new();
    let parameters = Parameters { uid: Some(70), gid: Some(71), mode: Some(0o750), ..Parameters::default() };
    let id = lab.create("v", EXT4, parameters);
    let context = Some(lab.attach(&id, "n1", false).unwrap());
    let volume = Volume { id, context, capability: capability(EXT4), is_read_only: false };
    let owner = || lab.host.owner(Path::new(STAGING)).unwrap();
    lab.stage(&volume, STAGING).unwrap();
    assert_eq!(owner(), Owner { uid: 70, gid: 71, mode: 0o750 });
    lab.host.set_owner(Path::new(STAGING), Some(1000), Some(1000), Some(0o700)).unwrap();
    lab.unstage(&volume.id, STAGING).unwrap();
    lab.stage(&volume, STAGING).unwrap();
    assert_eq!(owner(), Owner { uid: 1000, gid: 1000, mode: 0o700 }, "a workload's choice stays");
    lab.unstage(&volume.id, STAGING).unwrap();
    let access_type = AccessType::Mount { fs_type: None, mount_flags: vec![], mount_group: Some(2000) };
    let capability = VolumeCapability { access_mode: AccessMode::SingleNodeWriter, access_type };
    lab.stage(&Volume { capability, ..volume }, STAGING).unwrap();
    assert_eq!(owner(), Owner { uid: 1000, gid: 2000, mode: 0o2770 });
}

fn grow(lab: &Lab, id: &VolumeId) {
    let size = SizeRange { required_bytes: Some(2 * SIZE), limit_bytes: None };
    Expand::expand(&lab.backend, &lock(id), id, size).unwrap();
}
