//! Paths at which a volume must not be put, and volumes that are elsewhere: a clear refusal, and nothing lost.

use super::*;

#[test]
fn targets_that_are_taken() {
    let lab = Lab::new();
    let (volume, foreign) = (lab.attached("v", EXT4), lab.attached("foreign", EXT4));
    lab.stage(&volume, STAGING).unwrap();
    lab.stage(&foreign, "/staging/foreign").unwrap();
    lab.publish(&foreign, "/staging/foreign", "/targets/mounted").unwrap();
    lab.write("/targets/mounted/file", "foreign").unwrap();
    lab.write("/targets/file", "a file").unwrap();
    lab.host.create_directory(Path::new("/targets/full/below")).unwrap();
    lab.host.create_symlink(Path::new("/targets/link"), Path::new("/etc")).unwrap();
    lab.host.create_socket(Path::new("/targets/socket")).unwrap();
    let before = lab.state();
    for (target, says) in [
        ("/targets/file", "a file"),
        ("/targets/full", "not empty"),
        ("/targets/link", "a symlink"),
        ("/targets/socket", "neither"),
        ("/targets/mounted", "another mount"),
    ] {
        refused(lab.publish(&volume, STAGING, target), ErrorKind::FailedPrecondition, says);
        let unpublished = lab.unpublish(&volume.id, target);
        if target == "/targets/mounted" {
            refused(unpublished, ErrorKind::FailedPrecondition, "left alone");
        } else {
            unpublished.unwrap();
        }
        assert_eq!(lab.state(), before, "{target}");
    }
    assert_eq!(lab.read("/targets/file"), "a file");
    assert_eq!(lab.read("/targets/mounted/file"), "foreign");
    refused(lab.publish(&volume, STAGING, STAGING), ErrorKind::InvalidArgument, "both");

    let raw = lab.attached("raw", VolumeKind::Block);
    lab.stage(&raw, "/staging/raw").unwrap();
    lab.host.create_directory(Path::new("/targets/empty")).unwrap();
    refused(lab.publish(&raw, "/staging/raw", "/targets/empty"), ErrorKind::FailedPrecondition, "needs a file");
    refused(lab.publish(&raw, "/staging/raw", "/targets/file"), ErrorKind::FailedPrecondition, "not empty");
}

#[test]
fn parents_are_made_and_links_in_them_resolved() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.host.create_directory(Path::new("/real")).unwrap();
    lab.host.create_symlink(Path::new("/link"), Path::new("/real")).unwrap();
    lab.stage(&volume, "/staging/deep/er/a").unwrap();
    for _ in 0..2 {
        lab.publish(&volume, "/staging/deep/er/a", "/link/per-alloc/db[0]/new\nline,ro").unwrap();
    }
    assert_eq!(lab.state().iter().filter(|line| line.contains("/real/per-alloc/db[0]")).count(), 1);
    lab.unpublish(&volume.id, "/link/per-alloc/db[0]/new\nline,ro").unwrap();
    assert!(!lab.state().iter().any(|line| line.contains("/real/per-alloc")));
}

#[test]
fn staging_paths_that_are_taken() {
    let lab = Lab::new();
    let (volume, foreign) = (lab.attached("v", EXT4), lab.attached("foreign", EXT4));
    lab.stage(&foreign, "/staging/foreign").unwrap();
    lab.write("/staging/file", "a file").unwrap();
    lab.host.create_directory(Path::new("/staging/full/below")).unwrap();
    lab.host.create_symlink(Path::new("/staging/link"), Path::new("/etc")).unwrap();
    let before = lab.state();
    for (path, says) in [
        ("/staging/file", "a file"),
        ("/staging/full", "not empty"),
        ("/staging/link", "a symlink"),
        ("/staging/foreign", "another mount"),
    ] {
        refused(lab.stage(&volume, path), ErrorKind::FailedPrecondition, says);
        refused(lab.publish(&volume, path, TARGET), ErrorKind::FailedPrecondition, "not staged");
        lab.unstage(&volume.id, path).unwrap();
        assert_eq!(lab.state(), before, "{path}");
    }
}

#[test]
fn staged_elsewhere() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    refused(lab.stage(&volume, "/staging/b"), ErrorKind::FailedPrecondition, STAGING);
    refused(lab.publish(&volume, "/staging/b", TARGET), ErrorKind::FailedPrecondition, STAGING);
    refused(lab.publish(&volume, "", TARGET), ErrorKind::FailedPrecondition, "not given");
    let before = lab.state();
    lab.unstage(&volume.id, "/staging/b").unwrap();
    assert_eq!(lab.state(), before, "another path than the volume's");
}

#[test]
fn what_a_volume_is_not() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    let as_block = Volume { capability: capability(VolumeKind::Block), ..volume.clone() };
    refused(lab.stage(&as_block, STAGING), ErrorKind::FailedPrecondition, "block access");
    refused(
        lab.stage(&volume.mode(AccessMode::MultiNodeMultiWriter), STAGING),
        ErrorKind::FailedPrecondition,
        "one node",
    );
    for flag in ["lowerdir=/etc", "suid", "errors=panic", "noatime,suid", ""] {
        refused(lab.stage(&volume.flags(&[flag]), STAGING), ErrorKind::InvalidArgument, "flag");
    }
    assert!(lab.host.loops().unwrap().is_empty());
    lab.stage(&volume.flags(&["noatime", "noatime"]), STAGING).unwrap();
}
