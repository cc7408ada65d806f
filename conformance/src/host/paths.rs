//! Paths that an orchestrator names.

use super::{Content, Fixture, refused};
use host::{Owner, PathState};
use std::path::Path;
use volume::{ErrorKind, FsType};

pub fn what_is_there(fixture: &dyn Fixture) {
    let host = fixture.host();
    let seen = |name: &str| host.observe_path(&fixture.path(name)).unwrap();
    assert_eq!(seen("nothing"), PathState::Absent);
    assert_eq!(seen("nothing/below"), PathState::Absent);
    fixture.target("directory/child");
    assert_eq!(seen("directory"), PathState::Directory { is_empty: false });
    assert_eq!(seen("directory/child"), PathState::Directory { is_empty: true });
    fixture.write_file(&fixture.path("file"), b"12345").unwrap();
    assert_eq!(seen("file"), PathState::File { size_bytes: 5 });
    assert_eq!(seen("file/below"), PathState::Absent);
    fixture.make_symlink(&fixture.path("link"), &fixture.path("directory"));
    fixture.make_symlink(&fixture.path("dangling"), &fixture.path("nothing"));
    assert_eq!((seen("link"), seen("dangling")), (PathState::Symlink, PathState::Symlink));
    assert_eq!(seen("link/child"), PathState::Directory { is_empty: true });
    let device = fixture.attach_new("image", FsType::Ext4);
    assert_eq!(host.observe_path(&device.path).unwrap(), PathState::BlockDevice(device.number));
    host.detach_loop(&device).unwrap();
}

pub fn odd_paths(fixture: &dyn Fixture) {
    let host = fixture.host();
    let escape = fixture.path("a/../../b");
    for path in [Path::new("relative/target"), Path::new(""), Path::new("/"), &escape] {
        refused(host.observe_path(path), ErrorKind::InvalidArgument);
        refused(host.ensure_directory(path), ErrorKind::InvalidArgument);
        refused(host.ensure_file(path), ErrorKind::InvalidArgument);
        refused(host.remove_target(path), ErrorKind::InvalidArgument);
        refused(host.unmount(path), ErrorKind::InvalidArgument);
    }
    refused(host.resolve_parents(Path::new("relative")), ErrorKind::InvalidArgument);
    refused(host.ensure_directory(&fixture.path(&"x".repeat(300))), ErrorKind::InvalidArgument);
}

pub fn directories(fixture: &dyn Fixture) {
    let host = fixture.host();
    let deep = fixture.path("a/b c/[0]/ü\n/d");
    host.ensure_directory(&deep).unwrap();
    host.ensure_directory(&deep).unwrap();
    assert_eq!(host.observe_path(&deep).unwrap(), PathState::Directory { is_empty: true });
    fixture.write_file(&fixture.path("file"), b"").unwrap();
    fixture.make_symlink(&fixture.path("link"), &deep);
    fixture.make_symlink(&fixture.path("dangling"), &fixture.path("elsewhere"));
    for name in ["file", "file/below", "link", "dangling"] {
        refused(host.ensure_directory(&fixture.path(name)), ErrorKind::FailedPrecondition);
    }
    assert_eq!(host.observe_path(&fixture.path("elsewhere")).unwrap(), PathState::Absent);
}

pub fn files(fixture: &dyn Fixture) {
    let host = fixture.host();
    let file = fixture.path("missing/parents/file");
    host.ensure_file(&file).unwrap();
    host.ensure_file(&file).unwrap();
    assert_eq!(host.observe_path(&file).unwrap(), PathState::File { size_bytes: 0 });
    fixture.target("directory");
    fixture.write_file(&fixture.path("full"), b"somebody's").unwrap();
    fixture.make_symlink(&fixture.path("link"), &file);
    for name in ["directory", "full", "link", "full/below"] {
        refused(host.ensure_file(&fixture.path(name)), ErrorKind::FailedPrecondition);
    }
    assert_eq!(fixture.read_file(&fixture.path("full")).unwrap(), b"somebody's");
}

pub fn removal(fixture: &dyn Fixture) {
    let host = fixture.host();
    host.remove_target(&fixture.path("nothing")).unwrap();
    host.remove_target(&fixture.path("nothing/below")).unwrap();
    let (directory, file) = (fixture.target("directory"), fixture.path("file"));
    host.ensure_file(&file).unwrap();
    for path in [&directory, &file] {
        host.remove_target(path).unwrap();
        assert_eq!(host.observe_path(path).unwrap(), PathState::Absent);
        host.remove_target(path).unwrap();
    }

    let kept = fixture.target("kept");
    fixture.write_file(&kept.join("data"), b"precious").unwrap();
    fixture.make_symlink(&fixture.path("link"), &kept);
    for path in [kept.clone(), kept.join("data"), fixture.path("link")] {
        refused(host.remove_target(&path), ErrorKind::FailedPrecondition);
    }
    assert_eq!(fixture.read_file(&kept.join("data")).unwrap(), b"precious");

    // Also when the volume's root looks empty to whoever does not look at the mount table.
    let mounted = fixture.target("mounted");
    let device = fixture.attach_new("image", FsType::Xfs);
    fixture.mount(&device, FsType::Xfs, &mounted);
    refused(host.remove_target(&mounted), ErrorKind::FailedPrecondition);
    let node = fixture.path("node");
    host.ensure_file(&node).unwrap();
    host.bind(&device.path, &node, false).unwrap();
    refused(host.remove_target(&node), ErrorKind::FailedPrecondition);
    host.ensure_file(&node).unwrap();
    host.unmount(&node).unwrap();
    host.remove_target(&node).unwrap();
    fixture.unmount_and_detach(&mounted, &device);
    host.remove_target(&mounted).unwrap();
}

/// What was below a mount takes nothing once the mount is gone, and can still be removed.
pub fn sealing(fixture: &dyn Fixture) {
    let host = fixture.host();
    assert!(!host.seal_target(&fixture.path("nothing")).unwrap());
    let target = fixture.target("target");
    let device = fixture.attach_new("image", FsType::Ext4);
    fixture.mount(&device, FsType::Ext4, &target);
    if !host.seal_target(&target).unwrap() {
        // The file system that the test is on has no such flag.
        fixture.unmount_and_detach(&target, &device);
        return;
    }
    assert!(host.seal_target(&target).unwrap());
    fixture.write_file(&target.join("on-the-volume"), b"as before").unwrap();
    fixture.unmount_and_detach(&target, &device);
    assert!(fixture.write_file(&target.join("below"), b"lost").is_err());
    assert!(host.ensure_directory(&target.join("directory")).is_err());
    assert_eq!(host.observe_path(&target).unwrap(), PathState::Directory { is_empty: true });
    // It takes a mount again.
    let device = fixture.attach_new("second", FsType::Ext4);
    fixture.mount(&device, FsType::Ext4, &target);
    fixture.write_file(&target.join("on-the-volume"), b"as before").unwrap();
    fixture.unmount_and_detach(&target, &device);
    host.remove_target(&target).unwrap();
    assert_eq!(host.observe_path(&target).unwrap(), PathState::Absent);
}

pub fn symlinked_parents(fixture: &dyn Fixture) {
    let host = fixture.host();
    let real = fixture.target("real/deep");
    fixture.make_symlink(&fixture.path("link"), &fixture.path("real"));
    let resolve = |name: &str| host.resolve_parents(&fixture.path(name)).unwrap();
    assert_eq!(resolve("link/deep/x"), real.join("x"));
    assert_eq!(resolve("link/deep/missing/x"), real.join("missing/x"));
    assert_eq!(resolve("real/../link/deep"), real);
    assert_eq!(resolve("link"), fixture.path("link"));
    refused(host.resolve_parents(&fixture.path("missing/../x")), ErrorKind::InvalidArgument);
    // An orchestrator's directory may be a symlink: verbs pass through it.
    host.ensure_directory(&fixture.path("link/deep/new")).unwrap();
    assert_eq!(host.observe_path(&real.join("new")).unwrap(), PathState::Directory { is_empty: true });
    let device = fixture.attach(&fixture.make_image("image", Content::FileSystem(FsType::Ext4), super::SIZE), "image");
    fixture.mount(&device, FsType::Ext4, &fixture.path("link/deep/new"));
    assert_eq!(fixture.mounted_at(&real.join("new")).len(), 1);
    fixture.unmount_and_detach(&fixture.path("link/deep/new"), &device);
}

pub fn owners(fixture: &dyn Fixture) {
    let host = fixture.host();
    let directory = fixture.target("directory");
    host.set_owner(&directory, Some(70), Some(71), Some(0o2750)).unwrap();
    assert_eq!(host.owner(&directory).unwrap(), Owner { uid: 70, gid: 71, mode: 0o2750 });
    host.set_owner(&directory, None, Some(72), None).unwrap();
    host.set_owner(&directory, None, None, None).unwrap();
    assert_eq!(host.owner(&directory).unwrap(), Owner { uid: 70, gid: 72, mode: 0o2750 });
    fixture.make_symlink(&fixture.path("link"), &directory);
    refused(host.set_owner(&fixture.path("link"), Some(1), None, None), ErrorKind::FailedPrecondition);
    refused(host.owner(&fixture.path("missing")), ErrorKind::NotFound);
    assert_eq!(host.owner(&directory).unwrap().uid, 70);
}
