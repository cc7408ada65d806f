//! Loop devices.

use super::{Content, Fixture, SIZE, refused};
use host::{LoopRequest, PathState};
use volume::{ErrorKind, FsType, ImageIdentity};

pub fn attach_and_detach(fixture: &dyn Fixture) {
    let host = fixture.host();
    let image = fixture.make_image("image", Content::Blank, SIZE);
    let device = fixture.attach(&image, "pool.v1@7");
    assert_eq!((device.label.as_str(), device.read_only, device.size_limit_bytes), ("pool.v1@7", false, 0));
    assert_eq!(device.backing_inode, host.image_identity(&image).unwrap().inode);
    assert_eq!(host.observe_path(&device.path).unwrap(), PathState::BlockDevice(device.number));
    assert_eq!(host.device_size(&device.path).unwrap(), SIZE);
    fixture.write_block(&device.path, SIZE - 4096, 9).unwrap();
    assert_eq!(fixture.read_block(&image, SIZE - 4096).unwrap(), [9; 4096]);
    host.detach_loop(&device).unwrap();
    assert!(!fixture.is_listed(&device));
    host.detach_loop(&device).unwrap();
}

pub fn listing(fixture: &dyn Fixture) {
    let host = fixture.host();
    let devices: Vec<_> = ["one", "two", "three"]
        .map(|name| fixture.attach(&fixture.make_image(name, Content::Blank, SIZE), name))
        .into_iter()
        .collect();
    assert!(devices.iter().all(|device| fixture.is_listed(device)));
    let with_content = host.loops_with_content().unwrap();
    assert!(devices.iter().all(|device| with_content.contains(device)));
    host.detach_loop(&devices[1]).unwrap();
    let left: Vec<_> = devices.iter().map(|device| fixture.is_listed(device)).collect();
    assert_eq!(left, [true, false, true]);
    assert!(!host.loops_with_content().unwrap().contains(&devices[1]));
    host.detach_loop(&devices[0]).unwrap();
    host.detach_loop(&devices[2]).unwrap();
}

pub fn in_use(fixture: &dyn Fixture) {
    let host = fixture.host();
    let (device, target) = (fixture.attach_new("image", FsType::Ext4), fixture.target("target"));
    fixture.mount(&device, FsType::Ext4, &target);
    refused(host.detach_loop(&device), ErrorKind::FailedPrecondition);
    host.unmount(&target).unwrap();
    // A process that merely has it open, as a raw block workload does.
    let held = fixture.hold_open(&device.path);
    refused(host.detach_loop(&device), ErrorKind::FailedPrecondition);
    assert!(fixture.is_listed(&device));
    drop(held);
    // The refused attempt has left nothing behind that would end it now.
    assert!(fixture.is_listed(&device));
    host.detach_loop(&device).unwrap();
    assert!(!fixture.is_listed(&device));
}

pub fn wrong_image(fixture: &dyn Fixture) {
    let host = fixture.host();
    let image = fixture.make_image("image", Content::Blank, SIZE);
    let identity = host.image_identity(&image).unwrap();
    // Other tests have loops too.
    let label = fixture.directory().file_name().unwrap().to_string_lossy().into_owned();
    let wrong = [
        ImageIdentity { inode: identity.inode + 1, ..identity.clone() },
        ImageIdentity { generation: identity.generation ^ 1, ..identity.clone() },
    ];
    for identity in &wrong {
        let request = LoopRequest { image: &image, identity, label: &label, read_only: false };
        refused(host.attach_loop(&request), ErrorKind::Corrupt);
    }
    fixture.make_symlink(&fixture.path("link"), &image);
    fixture.target("directory");
    fixture.write_file(&fixture.path("truncated"), b"x").unwrap();
    for (name, kind) in [
        ("link", ErrorKind::Corrupt),
        ("directory", ErrorKind::Corrupt),
        ("truncated", ErrorKind::Corrupt),
        ("missing", ErrorKind::NotFound),
    ] {
        let path = fixture.path(name);
        let identity = host.image_identity(&path).unwrap_or_else(|_| identity.clone());
        let request = LoopRequest { image: &path, identity: &identity, label: &label, read_only: false };
        refused(host.attach_loop(&request), kind);
    }
    assert!(host.loops().unwrap().iter().all(|device| device.label != label));
}

pub fn growing(fixture: &dyn Fixture) {
    let host = fixture.host();
    let image = fixture.make_image("image", Content::Blank, SIZE);
    let device = fixture.attach(&image, "image");
    fixture.grow_image(&image, 2 * SIZE);
    host.refresh_loop(&device).unwrap();
    host.refresh_loop(&device).unwrap();
    assert_eq!(host.device_size(&device.path).unwrap(), 2 * SIZE);
    host.detach_loop(&device).unwrap();
    refused(host.refresh_loop(&device), ErrorKind::NotFound);
}

/// What was attached once must not be mistaken for what has its number now.
pub fn reused(fixture: &dyn Fixture) {
    let host = fixture.host();
    let old = fixture.attach(&fixture.make_image("old", Content::Blank, SIZE), "old");
    host.detach_loop(&old).unwrap();
    let new = fixture.attach(&fixture.make_image("new", Content::Blank, SIZE), "new");
    host.detach_loop(&old).unwrap();
    refused(host.refresh_loop(&old), ErrorKind::NotFound);
    assert!(fixture.is_listed(&new));
    // The same image attached again at a later epoch is another attachment.
    host.detach_loop(&new).unwrap();
    let again = fixture.attach(&fixture.path("new"), "new@2");
    host.detach_loop(&new).unwrap();
    assert!(fixture.is_listed(&again));
    host.detach_loop(&again).unwrap();
}

pub fn read_only_loops(fixture: &dyn Fixture) {
    let image = fixture.make_image("image", Content::FileSystem(FsType::Ext4), SIZE);
    let device = fixture.try_attach(&image, "image", true).unwrap();
    assert!(device.read_only && fixture.is_listed(&device));
    assert!(fixture.write_block(&device.path, 0, 1).is_err());
    let target = fixture.target("target");
    refused(fixture.try_mount(&device, FsType::Ext4, &target, false, &[]), ErrorKind::FailedPrecondition);
    fixture.try_mount(&device, FsType::Ext4, &target, true, &[]).unwrap();
    fixture.unmount_and_detach(&target, &device);
}

pub fn labels(fixture: &dyn Fixture) {
    let image = fixture.make_image("image", Content::Blank, SIZE);
    let longest = "x".repeat(63);
    let device = fixture.attach(&image, &longest);
    assert_eq!(device.label, longest);
    fixture.host().detach_loop(&device).unwrap();
    refused(fixture.try_attach(&image, &"x".repeat(64), false), ErrorKind::Internal);
}

pub fn identities(fixture: &dyn Fixture) {
    let host = fixture.host();
    let (one, two) = (fixture.make_image("one", Content::Blank, SIZE), fixture.make_image("two", Content::Blank, SIZE));
    let identity = host.image_identity(&one).unwrap();
    assert_eq!(identity, host.image_identity(&one).unwrap());
    assert_eq!(identity.name, "one");
    assert_ne!(identity.inode, host.image_identity(&two).unwrap().inode);
    assert!(!host.boot_id().unwrap().is_empty());
    assert_eq!(host.boot_id().unwrap(), host.boot_id().unwrap());
}
