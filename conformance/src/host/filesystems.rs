//! What is on a device: probing, growing, checking.

use super::{Content, Fixture, SIZE, refused};
use host::{FileSystemCheck, Probe};
use std::path::Path;
use volume::{ErrorKind, FsType};

pub fn probing(fixture: &dyn Fixture) {
    let host = fixture.host();
    assert_eq!(host.probe(&fixture.make_image("blank", Content::Blank, SIZE)).unwrap(), Probe::Blank);
    assert!(matches!(host.probe(&fixture.make_image("data", Content::Data, SIZE)).unwrap(), Probe::Other(_)));
    for wanted in FsType::ALL {
        let image = fixture.make_image(wanted.as_str(), Content::FileSystem(wanted), SIZE);
        let twin = fixture.make_image(&format!("{}-twin", wanted.as_str()), Content::FileSystem(wanted), SIZE);
        let Probe::FileSystem { fs, uuid, size_bytes, errors } = host.probe(&image).unwrap() else {
            panic!("{wanted:?}: {:?}", host.probe(&image))
        };
        assert_eq!((fs, errors), (wanted, false));
        assert!(size_bytes > SIZE / 2 && size_bytes <= SIZE, "{size_bytes}");
        assert!(!matches!(host.probe(&twin).unwrap(), Probe::FileSystem { uuid: other, .. } if other == uuid));
        let device = fixture.attach(&image, "image");
        assert_eq!(host.probe(&device.path).unwrap(), host.probe(&image).unwrap());
        host.detach_loop(&device).unwrap();
    }
}

/// A read error is never "blank".
pub fn unreadable(fixture: &dyn Fixture) {
    let host = fixture.host();
    refused(host.probe(&fixture.path("missing")), ErrorKind::NotFound);
    let device = fixture.attach(&fixture.make_image("image", Content::Blank, SIZE), "image");
    host.fence_loop(&device, 10_000).unwrap().unwrap();
    assert!(!matches!(host.probe(&device.path), Ok(Probe::Blank)));
    host.detach_loop(&device).unwrap();
}

pub fn growing_unmounted(fixture: &dyn Fixture) {
    let host = fixture.host();
    // xfs and btrfs grow mounted alone.
    let image = fixture.make_image("image", Content::FileSystem(FsType::Ext4), SIZE);
    let device = fixture.attach(&image, "image");
    fixture.grow_image(&image, 2 * SIZE);
    host.refresh_loop(&device).unwrap();
    host.grow_filesystem(&device.path, FsType::Ext4, None).unwrap();
    host.grow_filesystem(&device.path, FsType::Ext4, None).unwrap();
    assert_eq!(size_on(fixture, &device.path), 2 * SIZE);
    host.detach_loop(&device).unwrap();
}

pub fn growing_mounted(fixture: &dyn Fixture) {
    let host = fixture.host();
    let target = fixture.target("target");
    for fs in FsType::ALL {
        let image = fixture.make_image(fs.as_str(), Content::FileSystem(fs), SIZE);
        let device = fixture.attach(&image, "image");
        fixture.mount(&device, fs, &target);
        fixture.write_file(&target.join("file"), b"kept").unwrap();
        fixture.grow_image(&image, 2 * SIZE);
        host.refresh_loop(&device).unwrap();
        match host.grow_filesystem(&device.path, fs, Some(&target)) {
            Ok(()) => assert!(host.stats(&target).unwrap().total_bytes > SIZE * 3 / 2, "{fs:?}"),
            Err(error) if error.kind() == ErrorKind::PermissionDenied && fs == FsType::Ext4 => {
                println!("SKIPPED: growing a mounted ext4: {}", error.chain());
            }
            Err(error) => panic!("{fs:?}: {}", error.chain()),
        }
        assert_eq!(fixture.read_file(&target.join("file")).unwrap(), b"kept");
        fixture.unmount_and_detach(&target, &device);
    }
}

pub fn checking(fixture: &dyn Fixture) {
    for fs in FsType::ALL {
        let device = fixture.attach_new(fs.as_str(), fs);
        assert_eq!(fixture.host().check_filesystem(&device.path, fs).unwrap(), FileSystemCheck::Clean);
        fixture.host().detach_loop(&device).unwrap();
    }
}

fn size_on(fixture: &dyn Fixture, device: &Path) -> u64 {
    match fixture.host().probe(device).unwrap() {
        Probe::FileSystem { size_bytes, .. } => size_bytes,
        other => panic!("{other:?}"),
    }
}
