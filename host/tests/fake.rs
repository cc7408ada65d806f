//! What is the fake's own: faults, and what workloads see. Its likeness to Linux is for `conformance` to show.
#![allow(clippy::unwrap_used, reason = "the helpers of tests fail the test")]

use host::{FakeHost, Host, LoopDevice, LoopRequest, MountRequest, PathState};
use std::path::Path;
use std::sync::Arc;
use volume::{ErrorKind, FsType, Result};

const IMAGE: &str = "/pool/image";
const MIB: u64 = 1 << 20;

fn host_with_image() -> Arc<FakeHost> {
    let host = Arc::new(FakeHost::default());
    host.create_image(Path::new(IMAGE), 64 * MIB).unwrap();
    host.format_image(Path::new(IMAGE), FsType::Ext4, [1; 16]).unwrap();
    host
}

fn attach(host: &FakeHost, image: &str) -> Result<LoopDevice> {
    let image = Path::new(image);
    let identity = host.image_identity(image)?;
    host.attach_loop(&LoopRequest { image, identity: &identity, label: "v@1", read_only: false })
}

fn mount(host: &FakeHost, device: &LoopDevice, target: &str) -> Result<()> {
    let (fs, target) = (FsType::Ext4, Path::new(target));
    let request =
        MountRequest { device: &device.path, number: device.number, fs, target, read_only: false, flags: &[] };
    host.ensure_directory(target)?;
    host.mount(&request)
}

#[test]
fn files_follow_their_image_and_mounts_stack() {
    let host = host_with_image();
    let device = attach(&host, IMAGE).unwrap();
    host.create_directory(Path::new("/stage")).unwrap();
    host.write_file(Path::new("/stage/below"), b"hidden").unwrap();
    mount(&host, &device, "/stage").unwrap();
    host.bind(Path::new("/stage"), Path::new("/stage"), true).unwrap();
    assert_eq!(host.write_file(Path::new("/stage/a"), b"x").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    host.unmount(Path::new("/stage")).unwrap();
    host.write_file(Path::new("/stage/a"), b"x").unwrap();
    host.clone_image(Path::new(IMAGE), Path::new("/pool/clone")).unwrap();
    host.write_file(Path::new("/stage/a"), b"later").unwrap();
    {
        let _open = host.open(Path::new("/stage/a")).unwrap();
        assert_eq!(host.unmount(Path::new("/stage")).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    }
    host.unmount(Path::new("/stage")).unwrap();
    assert_eq!(host.read_file(Path::new("/stage/below")).unwrap(), b"hidden");
    let clone = attach(&host, "/pool/clone").unwrap();
    mount(&host, &clone, "/clone").unwrap();
    assert_eq!(host.read_file(Path::new("/clone/a")).unwrap(), b"x");
}

#[test]
fn an_inode_number_used_again_has_another_generation() {
    let host = host_with_image();
    let first = host.image_identity(Path::new(IMAGE)).unwrap();
    host.remove_all(Path::new("/pool"));
    host.create_image(Path::new(IMAGE), 64 * MIB).unwrap();
    let second = host.image_identity(Path::new(IMAGE)).unwrap();
    assert_eq!((first.inode, &first.name), (second.inode, &second.name));
    let image = Path::new(IMAGE);
    let stale = LoopRequest { image, identity: &first, label: "v@1", read_only: false };
    assert_eq!(host.attach_loop(&stale).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_fence_ends_writes() {
    let host = host_with_image();
    let device = attach(&host, IMAGE).unwrap();
    mount(&host, &device, "/stage").unwrap();
    host.write_file(Path::new("/stage/a"), b"acked").unwrap();
    host.with_frozen(device.number, 1000, &mut || {
        assert!(host.write_file(Path::new("/stage/a"), b"no").is_err() && host.is_frozen(device.number));
        host.with_frozen(device.number, 1000, &mut || Ok(()))
    })
    .unwrap_err();
    assert!(!host.is_frozen(device.number));
    let fenced = host.fence_loop(&device, 1000).unwrap().unwrap();
    assert!(fenced.froze && !host.is_frozen(device.number));
    assert_eq!(host.write_file(Path::new("/stage/a"), b"late").unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(host.read_file(Path::new("/stage/a")).unwrap(), b"acked");
    host.unmount(Path::new("/stage")).unwrap();
    host.detach_loop(&device).unwrap();
    assert_eq!(host.fence_loop(&device, 1000).unwrap(), None);
}

#[test]
fn faults_come_when_they_are_asked_for() {
    let host = host_with_image();
    let directory = Path::new("/a/b/c");
    host.fail_after(1, ErrorKind::Exhausted);
    assert_eq!(host.ensure_directory(directory).unwrap_err().kind(), ErrorKind::Exhausted);
    assert_eq!(host.observe_path(Path::new("/a")).unwrap(), PathState::Directory { is_empty: true });
    host.ensure_directory(directory).unwrap();
    assert_eq!(host.effect_count(), 3);
    // The effect happens, the caller never hears of it, and the kernel keeps it.
    host.crash_after(1);
    assert!(attach(&host, IMAGE).is_err());
    assert!(host.loops().is_err());
    host.restart();
    let loops = host.loops().unwrap();
    assert_eq!(loops.len(), 1);
    mount(&host, &loops[0], "/stage").unwrap();
    let boot_id = host.boot_id().unwrap();
    host.reboot();
    assert_ne!(host.boot_id().unwrap(), boot_id);
    assert!(host.loops().unwrap().is_empty());
    assert!(host.mounts().unwrap().iter().all(|m| m.mounted_at != Path::new("/stage")));
}

#[test]
fn a_hang_holds_up_nobody_else() {
    let host = host_with_image();
    host.hang_after(0);
    let hung = std::thread::spawn({
        let host = Arc::clone(&host);
        move || attach(&host, IMAGE)
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(host.loops().unwrap().is_empty() && !hung.is_finished());
    host.release();
    hung.join().unwrap().unwrap();
    assert_eq!(host.loops().unwrap().len(), 1);
}
