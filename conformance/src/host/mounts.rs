//! Mounts, binds, and what must not be mounted.

use super::{Content, Fixture, SIZE, refused};
use host::{MountRequest, PathState};
use volume::{DeviceNumber, ErrorKind, FsType};

pub fn mount_and_unmount(fixture: &dyn Fixture) {
    let host = fixture.host();
    let (device, target) = (fixture.attach_new("image", FsType::Ext4), fixture.target("target"));
    host.unmount(&target).unwrap();
    fixture.mount(&device, FsType::Ext4, &target);
    let entry = fixture.mounted_at(&target).remove(0);
    assert_eq!(host.mount_at(&target).unwrap(), Some(entry.clone()));
    assert_eq!((entry.device, entry.fs_type.as_str(), entry.read_only), (device.number, "ext4", false));
    assert_eq!(entry.root.as_os_str(), "/");
    let stats = host.stats(&target).unwrap();
    assert!(stats.total_bytes > SIZE / 2 && stats.total_bytes <= SIZE && stats.available_bytes <= stats.total_bytes);
    assert!(stats.used_inodes > 0 && stats.total_inodes == stats.used_inodes + stats.available_inodes);
    fixture.write_file(&target.join("file"), b"kept").unwrap();
    host.unmount(&target).unwrap();
    host.unmount(&target).unwrap();
    assert!(fixture.mounted_at(&target).is_empty());
    assert_eq!(host.mount_at(&target).unwrap(), None);
    assert_eq!(host.mount_at(&fixture.path("missing")).unwrap(), None);
    assert_eq!(host.observe_path(&target).unwrap(), PathState::Directory { is_empty: true });
    fixture.mount(&device, FsType::Ext4, &target);
    assert_eq!(fixture.read_file(&target.join("file")).unwrap(), b"kept");
    fixture.unmount_and_detach(&target, &device);
    host.unmount(&fixture.path("missing")).unwrap();
}

pub fn every_filesystem(fixture: &dyn Fixture) {
    for fs in FsType::ALL {
        let (device, target) = (fixture.attach_new(fs.as_str(), fs), fixture.target("target"));
        fixture.mount(&device, fs, &target);
        assert_eq!(fixture.mounted_at(&target)[0].fs_type, fs.as_str());
        fixture.write_file(&target.join("file"), fs.as_str().as_bytes()).unwrap();
        fixture.unmount_and_detach(&target, &device);
    }
}

pub fn stacking(fixture: &dyn Fixture) {
    let target = fixture.target("target");
    let (lower, upper) = (fixture.attach_new("lower", FsType::Ext4), fixture.attach_new("upper", FsType::Ext4));
    fixture.mount(&lower, FsType::Ext4, &target);
    fixture.write_file(&target.join("file"), b"lower").unwrap();
    fixture.mount(&upper, FsType::Ext4, &target);
    fixture.write_file(&target.join("file"), b"upper").unwrap();
    let numbers: Vec<_> = fixture.mounted_at(&target).iter().map(|m| m.device).collect();
    assert_eq!(numbers, [lower.number, upper.number]);
    assert_eq!(fixture.host().mount_at(&target).unwrap().unwrap().device, upper.number);
    fixture.unmount_and_detach(&target, &upper);
    assert_eq!(fixture.read_file(&target.join("file")).unwrap(), b"lower");
    fixture.unmount_and_detach(&target, &lower);
    assert!(fixture.mounted_at(&target).is_empty());
}

pub fn binds(fixture: &dyn Fixture) {
    let host = fixture.host();
    let (staged, published, reader) = (fixture.target("staged"), fixture.target("published"), fixture.target("reader"));
    let device = fixture.attach_new("image", FsType::Ext4);
    fixture.mount(&device, FsType::Ext4, &staged);
    fixture.write_file(&staged.join("file"), b"1").unwrap();
    host.bind(&staged, &published, false).unwrap();
    host.bind(&staged, &reader, true).unwrap();
    let entry = |path| fixture.mounted_at(path).remove(0);
    assert_eq!((entry(&published).device, entry(&published).read_only), (device.number, false));
    assert_eq!((entry(&reader).device, entry(&reader).read_only), (device.number, true));
    fixture.write_file(&published.join("file"), b"2").unwrap();
    assert!(fixture.write_file(&reader.join("file"), b"3").is_err());
    assert_eq!(fixture.read_file(&reader.join("file")).unwrap(), b"2");
    // The device stays in use until its last mount is gone.
    host.unmount(&staged).unwrap();
    refused(host.detach_loop(&device), ErrorKind::FailedPrecondition);
    host.unmount(&reader).unwrap();
    refused(host.detach_loop(&device), ErrorKind::FailedPrecondition);
    fixture.unmount_and_detach(&published, &device);

    fixture.write_file(&fixture.path("file"), b"").unwrap();
    refused(host.bind(&staged, &fixture.path("file"), false), ErrorKind::FailedPrecondition);
    refused(host.bind(&fixture.path("missing"), &published, false), ErrorKind::NotFound);
    fixture.make_symlink(&fixture.path("link"), &published);
    refused(host.bind(&staged, &fixture.path("link"), false), ErrorKind::FailedPrecondition);
    refused(host.bind(&fixture.path("link"), &published, false), ErrorKind::FailedPrecondition);

    // A directory of a pool: the entry tells which part of the file system it is.
    host.bind(&fixture.target("pool/data"), &published, false).unwrap();
    assert!(entry(&published).root.ends_with("pool/data"), "{:?}", entry(&published));
    host.unmount(&published).unwrap();
}

pub fn device_binds(fixture: &dyn Fixture) {
    let host = fixture.host();
    let device = fixture.attach(&fixture.make_image("image", Content::Blank, SIZE), "image");
    let (staged, target) = (fixture.path("staged"), fixture.path("target"));
    refused(host.bind(&device.path, &target, false), ErrorKind::NotFound);
    refused(host.bind(&device.path, &fixture.target("directory"), false), ErrorKind::FailedPrecondition);
    for (source, place) in [(&device.path, &staged), (&staged, &target)] {
        host.ensure_file(place).unwrap();
        host.bind(source, place, false).unwrap();
        host.ensure_file(place).unwrap();
        assert_eq!(host.observe_path(place).unwrap(), PathState::BlockDevice(device.number));
    }
    assert_eq!(host.device_size(&target).unwrap(), SIZE);
    fixture.write_block(&target, 0, 7).unwrap();
    assert_eq!(fixture.read_block(&device.path, 0).unwrap(), [7; 4096]);
    // A read-only mount of a node does not make the device so.
    let reader = fixture.path("reader");
    host.ensure_file(&reader).unwrap();
    refused(host.bind(&device.path, &reader, true), ErrorKind::FailedPrecondition);
    host.unmount(&target).unwrap();
    host.unmount(&staged).unwrap();
    assert_eq!(host.observe_path(&target).unwrap(), PathState::File { size_bytes: 0 });
    host.detach_loop(&device).unwrap();

    let device = fixture.try_attach(&fixture.path("image"), "image", true).unwrap();
    host.bind(&device.path, &reader, true).unwrap();
    assert!(fixture.write_block(&reader, 0, 8).is_err());
    fixture.unmount_and_detach(&reader, &device);
}

pub fn read_only(fixture: &dyn Fixture) {
    let target = fixture.target("target");
    let device = fixture.attach_new("image", FsType::Ext4);
    for (read_only, flags) in [(true, &[][..]), (false, &["ro"][..])] {
        fixture.try_mount(&device, FsType::Ext4, &target, read_only, flags).unwrap();
        assert!(fixture.mounted_at(&target)[0].read_only);
        assert!(fixture.write_file(&target.join("file"), b"x").is_err());
        fixture.host().unmount(&target).unwrap();
    }
    fixture.host().detach_loop(&device).unwrap();
}

pub fn busy(fixture: &dyn Fixture) {
    let target = fixture.target("target");
    let device = fixture.attach_new("image", FsType::Ext4);
    fixture.mount(&device, FsType::Ext4, &target);
    fixture.write_file(&target.join("file"), b"x").unwrap();
    let held = fixture.hold_open(&target.join("file"));
    let error = refused(fixture.host().unmount(&target), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("in use"), "{error}");
    assert_eq!(fixture.mounted_at(&target).len(), 1);
    drop(held);
    fixture.unmount_and_detach(&target, &device);
}

pub fn wrong_device(fixture: &dyn Fixture) {
    let host = fixture.host();
    let target = fixture.target("target");
    let (meant, other) = (fixture.attach_new("meant", FsType::Ext4), fixture.attach_new("other", FsType::Ext4));
    let request = |device, number| MountRequest {
        device,
        number,
        fs: FsType::Ext4,
        target: &target,
        read_only: false,
        flags: &[],
    };
    refused(host.mount(&request(&other.path, meant.number)), ErrorKind::FailedPrecondition);
    let nowhere = DeviceNumber { major: 7, minor: 1 << 19 };
    refused(host.mount(&request(&meant.path, nowhere)), ErrorKind::FailedPrecondition);
    let link = fixture.path("link");
    fixture.make_symlink(&link, &meant.path);
    refused(host.mount(&request(&link, meant.number)), ErrorKind::FailedPrecondition);
    for (name, kind) in [("missing", ErrorKind::NotFound), ("meant", ErrorKind::FailedPrecondition)] {
        let path = fixture.path(name);
        let request = MountRequest { device: &path, ..request(&meant.path, meant.number) };
        refused(host.mount(&request), kind);
    }
    assert!(fixture.mounted_at(&target).is_empty());
    host.detach_loop(&meant).unwrap();
    host.detach_loop(&other).unwrap();
}

pub fn flags(fixture: &dyn Fixture) {
    let target = fixture.target("target");
    let device = fixture.attach_new("image", FsType::Ext4);
    for flag in ["noatime,errors=panic", "errors=panic", "data=writeback", "nobarrier", "suid", "loop", "commit=x", ""]
    {
        let error =
            refused(fixture.try_mount(&device, FsType::Ext4, &target, false, &[flag]), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("relatime"), "{error}");
    }
    assert!(fixture.mounted_at(&target).is_empty());
    fixture.try_mount(&device, FsType::Ext4, &target, false, &["noatime", "commit=9", "discard"]).unwrap();
    let options = fixture.mounted_at(&target).remove(0).options;
    assert!(options.contains("commit=9") && options.contains("discard"), "{options:?}");
    fixture.unmount_and_detach(&target, &device);
}

pub fn odd_targets(fixture: &dyn Fixture) {
    let device = fixture.attach_new("image", FsType::Ext4);
    fixture.write_file(&fixture.path("file"), b"").unwrap();
    fixture.make_symlink(&fixture.path("link"), &fixture.target("directory"));
    for (name, kind) in [
        ("file", ErrorKind::FailedPrecondition),
        ("link", ErrorKind::FailedPrecondition),
        ("missing", ErrorKind::NotFound),
        ("a/../../b", ErrorKind::InvalidArgument),
    ] {
        refused(fixture.try_mount(&device, FsType::Ext4, &fixture.path(name), false, &[]), kind);
    }
    fixture.host().detach_loop(&device).unwrap();
}

pub fn nothing_to_mount(fixture: &dyn Fixture) {
    let target = fixture.target("target");
    for (name, content) in
        [("blank", Content::Blank), ("data", Content::Data), ("xfs", Content::FileSystem(FsType::Xfs))]
    {
        let device = fixture.attach(&fixture.make_image(name, content, SIZE), name);
        refused(fixture.try_mount(&device, FsType::Ext4, &target, false, &[]), ErrorKind::Corrupt);
        fixture.host().detach_loop(&device).unwrap();
    }
    assert!(fixture.mounted_at(&target).is_empty());
}
