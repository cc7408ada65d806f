//! Cutting a loop off from its image.

use super::{BLOCK, Content, Fixture, SIZE, refused};
use volume::{ErrorKind, FsType};

const DEADLINE_MS: u64 = 10_000;

pub fn mounted(fixture: &dyn Fixture) {
    for fs in FsType::ALL {
        let (device, target) = (fixture.attach_new(fs.as_str(), fs), fixture.target("target"));
        fixture.mount(&device, fs, &target);
        fixture.write_file(&target.join("before"), b"acknowledged").unwrap();
        let fenced = fixture.host().fence_loop(&device, DEADLINE_MS).unwrap().unwrap();
        assert!(fenced.froze, "{fs:?}");
        assert_eq!(fenced.device, device.number);
        assert!(fixture.write_file(&target.join("after"), b"late").is_err(), "{fs:?}");
        let limited = fixture.host().loops().unwrap().into_iter().find(|d| d.number == device.number).unwrap();
        assert_eq!(limited.size_limit_bytes, fenced.size_limit_bytes);
        assert!(limited.size_limit_bytes > 0 && limited.size_limit_bytes < BLOCK);
        fixture.unmount_and_detach(&target, &device);
        // What was acknowledged is in the image, what came after is not.
        let again = fixture.attach(&fixture.path(fs.as_str()), "again");
        fixture.mount(&again, fs, &target);
        assert_eq!(fixture.read_file(&target.join("before")).unwrap(), b"acknowledged");
        assert!(fixture.read_file(&target.join("after")).is_err());
        fixture.unmount_and_detach(&target, &again);
    }
}

pub fn raw_block(fixture: &dyn Fixture) {
    let image = fixture.make_image("image", Content::Blank, SIZE);
    let device = fixture.attach(&image, "image");
    fixture.write_block(&device.path, BLOCK, 1).unwrap();
    let held = fixture.hold_open(&device.path);
    let fenced = fixture.host().fence_loop(&device, DEADLINE_MS).unwrap().unwrap();
    assert!(!fenced.froze && fenced.size_limit_bytes < BLOCK);
    for offset in [0, BLOCK, SIZE - BLOCK] {
        assert!(fixture.write_block(&device.path, offset, 2).is_err());
    }
    assert_eq!(fixture.read_block(&image, 0).unwrap(), [0; BLOCK as usize]);
    assert_eq!(fixture.read_block(&image, BLOCK).unwrap(), [1; BLOCK as usize]);
    drop(held);
    fixture.host().detach_loop(&device).unwrap();
}

pub fn twice(fixture: &dyn Fixture) {
    let (device, target) = (fixture.attach_new("image", FsType::Ext4), fixture.target("target"));
    fixture.mount(&device, FsType::Ext4, &target);
    for _ in 0..3 {
        assert!(fixture.host().fence_loop(&device, DEADLINE_MS).unwrap().unwrap().size_limit_bytes < BLOCK);
    }
    fixture.unmount_and_detach(&target, &device);
    let device = fixture.attach(&fixture.make_image("raw", Content::Blank, SIZE), "raw");
    for _ in 0..3 {
        assert!(fixture.host().fence_loop(&device, DEADLINE_MS).unwrap().unwrap().size_limit_bytes < BLOCK);
    }
    fixture.host().detach_loop(&device).unwrap();
}

/// A snapshot whose process was stopped in the middle must not hold the fence up; it is the snapshot that fails.
pub fn frozen_by_others(fixture: &dyn Fixture) {
    let host = fixture.host();
    let (device, target) = (fixture.attach_new("image", FsType::Ext4), fixture.target("target"));
    fixture.mount(&device, FsType::Ext4, &target);
    let work = &mut || {
        assert!(host.fence_loop(&device, 1_000).unwrap().unwrap().froze);
        assert!(fixture.write_file(&target.join("late"), b"late").is_err());
        Ok(())
    };
    refused(host.with_frozen(device.number, DEADLINE_MS, work), ErrorKind::Unavailable);
    fixture.unmount_and_detach(&target, &device);
}

pub fn gone(fixture: &dyn Fixture) {
    let device = fixture.attach(&fixture.make_image("image", Content::Blank, SIZE), "image");
    fixture.host().detach_loop(&device).unwrap();
    assert_eq!(fixture.host().fence_loop(&device, DEADLINE_MS).unwrap(), None);
}

/// A fencer that was paused must not hit who has the loop's number, or the image, now.
pub fn another_image(fixture: &dyn Fixture) {
    let host = fixture.host();
    let old = fixture.attach(&fixture.make_image("old", Content::Blank, SIZE), "volume@1");
    host.detach_loop(&old).unwrap();
    for (image, label) in
        [(fixture.make_image("new", Content::Blank, SIZE), "volume@2"), (fixture.path("old"), "volume@3")]
    {
        let new = fixture.attach(&image, label);
        assert_eq!(host.fence_loop(&old, DEADLINE_MS).unwrap(), None);
        fixture.write_block(&new.path, 0, 3).unwrap();
        assert!(fixture.is_listed(&new));
        host.detach_loop(&new).unwrap();
    }
}

pub fn shut_down(fixture: &dyn Fixture) {
    let host = fixture.host();
    for fs in [FsType::Ext4, FsType::Xfs] {
        let (device, target) = (fixture.attach_new(fs.as_str(), fs), fixture.target("target"));
        fixture.mount(&device, fs, &target);
        host.shutdown_filesystem(&target).unwrap();
        host.shutdown_filesystem(&target).unwrap();
        assert!(fixture.write_file(&target.join("after"), b"late").is_err());
        // Nothing else hangs on it.
        host.observe_path(&target).unwrap();
        refused(host.remove_target(&target), ErrorKind::FailedPrecondition);
        assert!(host.fence_loop(&device, DEADLINE_MS).unwrap().is_some());
        fixture.unmount_and_detach(&target, &device);
    }
    let (device, target) = (fixture.attach_new("btrfs", FsType::Btrfs), fixture.target("target"));
    fixture.mount(&device, FsType::Btrfs, &target);
    refused(host.shutdown_filesystem(&target), ErrorKind::Unsupported);
    fixture.unmount_and_detach(&target, &device);
}

/// A path where nothing is mounted, or a part of another file system, would take the pool or the machine's root down.
pub fn no_shutdown_of_others(fixture: &dyn Fixture) {
    let host = fixture.host();
    let (part, target) = (fixture.target("pool/data"), fixture.target("target"));
    refused(host.shutdown_filesystem(&target), ErrorKind::FailedPrecondition);
    refused(host.shutdown_filesystem(&fixture.path("missing")), ErrorKind::FailedPrecondition);
    host.bind(&part, &target, false).unwrap();
    refused(host.shutdown_filesystem(&target), ErrorKind::FailedPrecondition);
    fixture.write_file(&target.join("file"), b"alive").unwrap();
    host.unmount(&target).unwrap();
}
