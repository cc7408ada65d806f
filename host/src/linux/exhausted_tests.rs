//! A machine that has no loop device left, or none at all: said so, and what is attached goes on.

use super::lab::Lab;
use super::os;
use crate::{Host, LoopRequest, PathState};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod, stat};
use std::path::Path;
use volume::{ErrorKind, FsType};

#[test]
fn without_a_free_loop_device_nothing_is_attached_and_the_others_go_on() {
    let Some(mut lab) = Lab::make() else { return };
    let other = lab.attach(&lab.pool.join("other"), Some(FsType::Ext4), 64 << 20);
    let mounted = lab.directory.path().join("mounted");
    lab.mount(&other, FsType::Ext4, &mounted);
    let image = lab.pool.join("image");
    std::fs::File::create_new(&image).unwrap().set_len(64 << 20).unwrap();
    let identity = lab.host.image_identity(&image).unwrap();
    // Other tests have loops too.
    let label = lab.directory.path().file_name().unwrap().to_string_lossy().into_owned();
    let request = LoopRequest { image: &image, identity: &identity, label: &label, read_only: false };
    let control = stat("/dev/loop-control").unwrap().st_rdev;

    // As in a container whose /dev has the nodes of no further loop: the kernel names a free one that is not there.
    let made = mount(Some("none"), "/dev", Some("tmpfs"), MsFlags::empty(), None::<&str>);
    if let Err(errno) = made.and_then(|()| mknod("/dev/loop-control", SFlag::S_IFCHR, Mode::S_IRWXU, control)) {
        return println!("SKIPPED: without_a_free_loop_device: no /dev of its own: {errno}");
    }
    let unseen = lab.host.loops();
    let exhausted = lab.host.attach_loop(&request);
    let survivor = std::fs::write(mounted.join("file"), "written without a free loop");
    std::fs::remove_file("/dev/loop-control").unwrap();
    let unsupported = lab.host.attach_loop(&request);
    umount2("/dev", MntFlags::MNT_DETACH).unwrap();

    let error = exhausted.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{}", error.chain());
    assert!(error.chain().contains("no free loop device") && error.chain().contains("image"), "{}", error.chain());
    let error = unsupported.unwrap_err();
    // What an administrator changes, and no fault of the request.
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{}", error.chain());
    assert!(error.chain().contains("kernel module `loop`"), "{}", error.chain());
    let error = unseen.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{}", error.chain());
    assert!(error.chain().contains("/dev/loop") && error.chain().contains("devtmpfs"), "{}", error.chain());
    survivor.unwrap();
    assert_eq!(std::fs::read_to_string(mounted.join("file")).unwrap(), "written without a free loop");
    assert!(lab.host.loops().unwrap().iter().all(|device| device.label != label), "nothing was left attached");
    // With the nodes there again it works.
    let device = lab.attach(&image, None, 0);
    let number = os::device_number(stat(&device.path).unwrap().st_rdev).unwrap();
    assert_eq!(lab.host.observe_path(&device.path).unwrap(), PathState::BlockDevice(number));
    assert!(Path::new("/dev/loop-control").exists());
}
