//! Read-ahead of devices.

use super::{Content, Fixture, SIZE, refused};
use volume::{DeviceNumber, ErrorKind, FsType};

pub fn read_ahead(fixture: &dyn Fixture) {
    let host = fixture.host();
    let device = fixture.attach(&fixture.make_image("image", Content::Blank, SIZE), "image");
    let first = host.read_ahead_kib(&device.path, device.number).unwrap();
    assert!(first > 0);
    for (set, found) in [(256, 256), (0, 0), (8192, 8192), (7, 4), (first, first)] {
        host.set_read_ahead(&device.path, device.number, set).unwrap();
        assert_eq!(host.read_ahead_kib(&device.path, device.number).unwrap(), found);
    }
    host.detach_loop(&device).unwrap();
}

pub fn read_ahead_in_use(fixture: &dyn Fixture) {
    let host = fixture.host();
    let (device, target) = (fixture.attach_new("image", FsType::Ext4), fixture.target("target"));
    fixture.mount(&device, FsType::Ext4, &target);
    host.set_read_ahead(&device.path, device.number, 512).unwrap();
    assert_eq!(host.read_ahead_kib(&device.path, device.number).unwrap(), 512);
    fixture.unmount_and_detach(&target, &device);
}

pub fn read_ahead_of_another(fixture: &dyn Fixture) {
    let host = fixture.host();
    let device = fixture.attach(&fixture.make_image("image", Content::Blank, SIZE), "image");
    let before = host.read_ahead_kib(&device.path, device.number).unwrap();
    let other = DeviceNumber { minor: device.number.minor + 1, ..device.number };
    refused(host.set_read_ahead(&device.path, other, 64), ErrorKind::FailedPrecondition);
    refused(host.read_ahead_kib(&device.path, other), ErrorKind::FailedPrecondition);
    assert_eq!(host.read_ahead_kib(&device.path, device.number).unwrap(), before);
    host.detach_loop(&device).unwrap();
}
