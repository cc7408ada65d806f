//! Small reads that tell whether a device and its file system still answer, and trims.

use super::{BLOCK, Content, Fixture, SIZE, refused};
use host::{LoopDevice, MountState};
use std::path::PathBuf;
use volume::{ErrorKind, FsType};

pub fn healthy(fixture: &dyn Fixture) {
    let host = fixture.host();
    for fs in FsType::ALL {
        let (device, target) = mounted(fixture, fs);
        host.try_device(&device.path).unwrap();
        assert_eq!(host.try_mounted(&target).unwrap(), MountState::Sound, "{fs}");
        let reader = fixture.target("reader");
        host.bind(&target, &reader, true).unwrap();
        assert_eq!(host.try_mounted(&reader).unwrap(), MountState::Sound, "{fs}: read-only, as it was asked for");
        host.unmount(&reader).unwrap();
        host.unmount(&target).unwrap();
        fixture.try_mount(&device, fs, &target, true, &[]).unwrap();
        assert_eq!(host.try_mounted(&target).unwrap(), MountState::Sound, "{fs}: mounted read-only");
        fixture.unmount_and_detach(&target, &device);
    }
    let raw = fixture.attach(&fixture.make_image("raw", Content::Blank, SIZE), "raw");
    host.try_device(&raw.path).unwrap();
    host.detach_loop(&raw).unwrap();
}

pub fn went_read_only(fixture: &dyn Fixture) {
    let host = fixture.host();
    let (device, target) = mounted(fixture, FsType::Ext4);
    fixture.write_file(&target.join("before"), b"kept").unwrap();
    fixture.fail_ext4(&device);
    assert!(fixture.write_file(&target.join("after"), b"late").is_err());
    assert_eq!(host.try_mounted(&target).unwrap(), MountState::WentReadOnly);
    assert!(fixture.mounted_at(&target)[0].went_read_only());
    host.try_device(&device.path).unwrap();
    assert_eq!(fixture.read_file(&target.join("before")).unwrap(), b"kept");
    fixture.unmount_and_detach(&target, &device);
}

pub fn shut_down(fixture: &dyn Fixture) {
    let host = fixture.host();
    for fs in [FsType::Ext4, FsType::Xfs] {
        let (device, target) = mounted(fixture, fs);
        host.shutdown_filesystem(&target).unwrap();
        assert_eq!(host.try_mounted(&target).unwrap(), MountState::ShutDown, "{fs}");
        host.try_device(&device.path).unwrap();
        host.unmount(&target).unwrap();
        fixture.mount(&device, fs, &target);
        assert_eq!(host.try_mounted(&target).unwrap(), MountState::Sound, "{fs}");
        fixture.unmount_and_detach(&target, &device);
    }
}

pub fn truncated(fixture: &dyn Fixture) {
    let image = fixture.make_image("image", Content::Blank, SIZE);
    let device = fixture.attach(&image, "image");
    fixture.truncate_image(&image, SIZE - BLOCK);
    refused(fixture.host().try_device(&device.path), ErrorKind::Unavailable);
    fixture.grow_image(&image, SIZE);
    fixture.host().try_device(&device.path).unwrap();
    fixture.host().detach_loop(&device).unwrap();
}

pub fn cut_off(fixture: &dyn Fixture) {
    let (device, target) = mounted(fixture, FsType::Ext4);
    fixture.host().fence_loop(&device, 10_000).unwrap().unwrap();
    refused(fixture.host().try_device(&device.path), ErrorKind::Unavailable);
    fixture.unmount_and_detach(&target, &device);
}

pub fn nothing_there(fixture: &dyn Fixture) {
    let host = fixture.host();
    refused(host.try_mounted(&fixture.target("target")), ErrorKind::NotFound);
    refused(host.try_mounted(&fixture.path("missing")), ErrorKind::NotFound);
    refused(host.try_device(&fixture.path("missing")), ErrorKind::NotFound);
    let raw = fixture.attach(&fixture.make_image("raw", Content::Blank, SIZE), "raw");
    assert_eq!(host.trim(raw.number).unwrap(), None);
    host.detach_loop(&raw).unwrap();
}

/// Files stay; what is free is told to the device.
pub fn trimming(fixture: &dyn Fixture) {
    for fs in FsType::ALL {
        let (device, target) = mounted(fixture, fs);
        fixture.write_file(&target.join("file"), b"kept").unwrap();
        let discarded = fixture.host().trim(device.number).unwrap().unwrap();
        assert!(discarded > 0 && discarded <= SIZE, "{fs}: {discarded}");
        fixture.host().unmount(&target).unwrap();
        assert_eq!(fixture.host().trim(device.number).unwrap(), None, "{fs}");
        fixture.mount(&device, fs, &target);
        assert_eq!(fixture.read_file(&target.join("file")).unwrap(), b"kept");
        fixture.unmount_and_detach(&target, &device);
    }
}

fn mounted(fixture: &dyn Fixture, fs: FsType) -> (LoopDevice, PathBuf) {
    let (device, target) = (fixture.attach_new(fs.as_str(), fs), fixture.target("target"));
    fixture.mount(&device, fs, &target);
    (device, target)
}
