//! Mutable parameters reach the device of a connected volume, follow its record, and go when it goes.

use super::*;
use host::CgroupVersion;
use std::collections::BTreeMap;
use volume::{DeviceNumber, IoLimits, Modify, MutableChange};

const POD: &str = "kubepods/pod1";

fn modify(lab: &Lab, id: &VolumeId, pairs: &[(&str, &str)]) {
    let change = MutableChange::parse(pairs.iter().copied()).unwrap();
    Modify::modify(&lab.backend, &lock(id), id, &change).unwrap();
}

fn number(lab: &Lab, id: &VolumeId) -> DeviceNumber {
    match lab.backend.connector().observe(id).unwrap() {
        Some(volume::Connected::Device { number, .. }) => number,
        other => panic!("{id} is {other:?}"),
    }
}

fn read_ahead(lab: &Lab, id: &VolumeId) -> u32 {
    lab.host.read_ahead_kib(&lab.device(id), number(lab, id)).unwrap()
}

fn reads(bytes_per_second: u64) -> IoLimits {
    IoLimits { read_bytes_per_second: Some(bytes_per_second), ..IoLimits::default() }
}

/// With the I/O controller, and one pod.
fn lab_with(version: CgroupVersion) -> Lab {
    let lab = Lab::new();
    lab.host.set_cgroup_version(Some(version));
    for cgroup in ["kubepods", POD, "system"] {
        lab.host.add_cgroup(cgroup);
    }
    lab
}

fn notes(lab: &Lab) -> usize {
    std::fs::read_dir(lab.state.path().join("tuned")).unwrap().count()
}

#[test]
fn a_published_volume_follows_its_record() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    lab.publish(&volume, STAGING, TARGET).unwrap();
    let default = read_ahead(&lab, &volume.id);
    // What an administrator sets stays, as long as nothing else is recorded.
    lab.host.set_read_ahead(&lab.device(&volume.id), number(&lab, &volume.id), 1024).unwrap();
    lab.service.tune();
    assert_eq!((read_ahead(&lab, &volume.id), notes(&lab)), (1024, 0));
    for (given, found) in [("256", 256), ("0", 0), ("default", 1024)] {
        modify(&lab, &volume.id, &[("readAheadKiB", given)]);
        lab.service.tune();
        assert_eq!((read_ahead(&lab, &volume.id), notes(&lab)), (found, usize::from(given != "default")), "{given}");
    }
    lab.host.set_read_ahead(&lab.device(&volume.id), number(&lab, &volume.id), default).unwrap();
    modify(&lab, &volume.id, &[("readAheadKiB", "256")]);
    lab.service.tune();
    lab.unpublish(&volume.id, TARGET).unwrap();
    lab.unstage(&volume.id, STAGING).unwrap();
    assert_eq!(notes(&lab), 0);
    lab.stage(&volume, STAGING).unwrap();
    assert_eq!(read_ahead(&lab, &volume.id), 256, "staged with what is recorded");
    lab.write("/staging/a/file", "as ever").unwrap();
}

#[test]
fn limits_are_set_where_the_controller_needs_them() {
    for (version, cgroups) in [(CgroupVersion::V1, &["kubepods", POD][..]), (CgroupVersion::V2, &["kubepods"])] {
        let lab = lab_with(version);
        let volume = lab.attached("v", VolumeKind::Block);
        lab.stage(&volume, STAGING).unwrap();
        let device = number(&lab, &volume.id);
        let limited = || lab.host.io_limits(device);
        let everywhere = |limits| cgroups.iter().map(|path| (PathBuf::from(path), limits)).collect::<BTreeMap<_, _>>();
        assert!(limited().is_empty());
        for bytes in [1 << 20, 2 << 20] {
            modify(&lab, &volume.id, &[("readBytesPerSecond", &bytes.to_string())]);
            lab.service.tune();
            assert_eq!(limited(), everywhere(reads(bytes)), "{version:?}");
        }
        // Nothing is done twice.
        let before = lab.host.effect_count();
        lab.service.tune();
        assert_eq!(lab.host.effect_count(), before);
        // A container that starts later, and one that takes the name of one that ended.
        lab.host.add_cgroup("kubepods/pod2");
        lab.host.add_cgroup(POD);
        lab.service.tune();
        let has = |path: &str| limited().contains_key(Path::new(path));
        let is_flat = version == CgroupVersion::V1;
        assert_eq!((has("kubepods/pod2"), has(POD), has("system")), (is_flat, is_flat, false));
        lab.host.remove_cgroup("kubepods/pod2");
        modify(&lab, &volume.id, &[("readBytesPerSecond", "default")]);
        lab.service.tune();
        assert!(limited().is_empty(), "{version:?}: {:?}", limited());
        assert_eq!(notes(&lab), 0);
    }
}

#[test]
fn the_next_volume_at_a_device_s_number_has_nothing_of_the_last() {
    let lab = lab_with(CgroupVersion::V1);
    let (first, second) = (lab.attached("first", EXT4), lab.attached("second", EXT4));
    modify(&lab, &first.id, &[("readBytesPerSecond", "1048576"), ("readAheadKiB", "8192")]);
    lab.stage(&first, STAGING).unwrap();
    let device = number(&lab, &first.id);
    assert_eq!((lab.host.io_limits(device).len(), read_ahead(&lab, &first.id)), (2, 8192));
    lab.unstage(&first.id, STAGING).unwrap();
    lab.stage(&second, STAGING).unwrap();
    assert_eq!(number(&lab, &second.id), device, "the number is used again");
    assert!(lab.host.io_limits(device).is_empty());
    assert_ne!(read_ahead(&lab, &second.id), 8192);
}

/// Wherever the driver ends while the first volume goes, and whoever disconnects its device.
#[test]
fn nothing_stays_after_a_crash() {
    for crash_at in 1.. {
        let mut lab = lab_with(CgroupVersion::V1);
        let (first, second) = (lab.attached("first", EXT4), lab.attached("second", EXT4));
        modify(&lab, &first.id, &[("readBytesPerSecond", "1048576"), ("readAheadKiB", "8192")]);
        lab.stage(&first, STAGING).unwrap();
        let device = number(&lab, &first.id);
        lab.host.crash_after(crash_at);
        let finished = lab.unstage(&first.id, STAGING).is_ok();
        lab.restart().unwrap();
        // By hand, where reconciliation has nothing to finish.
        lab.unstage(&first.id, STAGING).unwrap();
        lab.stage(&second, STAGING).unwrap();
        lab.service.tune();
        assert_eq!(number(&lab, &second.id), device);
        assert!(lab.host.io_limits(device).is_empty(), "crashed at {crash_at}");
        assert_ne!(read_ahead(&lab, &second.id), 8192, "crashed at {crash_at}");
        assert_eq!(notes(&lab), 0, "crashed at {crash_at}");
        if finished {
            assert!(crash_at > 4, "the effects of taking back are seen");
            break;
        }
    }
}

/// The device went without us: an administrator detached it, or the process that did was killed before it noted so.
#[test]
fn a_note_of_a_volume_that_is_gone_is_worked_off() {
    let mut lab = lab_with(CgroupVersion::V2);
    let volume = lab.attached("v", VolumeKind::Block);
    modify(&lab, &volume.id, &[("writeOpsPerSecond", "100")]);
    lab.stage(&volume, STAGING).unwrap();
    let device = number(&lab, &volume.id);
    let looped = lab.host.loops().unwrap().remove(0);
    lab.host.detach_loop(&looped).unwrap();
    assert_eq!(lab.host.io_limits(device).len(), 1);
    lab.restart().unwrap();
    lab.service.tune();
    assert!(lab.host.io_limits(device).is_empty());
    assert_eq!(notes(&lab), 0);
    // A note of another boot is of other devices.
    lab.stage(&volume, STAGING).unwrap();
    lab.host.reboot();
    for cgroup in ["kubepods", POD] {
        lab.host.add_cgroup(cgroup);
    }
    lab.host.create_directory(Path::new(STAGING)).unwrap();
    lab.restart().unwrap();
    assert_eq!(notes(&lab), 0);
}

#[test]
fn a_restarted_driver_applies_what_changed_meanwhile() {
    let mut lab = lab_with(CgroupVersion::V2);
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    modify(&lab, &volume.id, &[("readAheadKiB", "256"), ("writeOpsPerSecond", "100")]);
    lab.restart().unwrap();
    let device = number(&lab, &volume.id);
    assert_eq!((read_ahead(&lab, &volume.id), lab.host.io_limits(device).len()), (256, 1));
    // And takes back what was set before it started.
    modify(&lab, &volume.id, &[("readAheadKiB", "default"), ("writeOpsPerSecond", "default")]);
    lab.restart().unwrap();
    assert_eq!((read_ahead(&lab, &volume.id), lab.host.io_limits(device).len(), notes(&lab)), (128, 0, 0));
}

#[test]
fn where_nothing_can_be_limited_the_volume_is_used_all_the_same() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    modify(&lab, &volume.id, &[("readBytesPerSecond", "1048576")]);
    lab.stage(&volume, STAGING).unwrap();
    lab.publish(&volume, STAGING, TARGET).unwrap();
    lab.service.tune();
    // The orchestrator makes its cgroups when it starts its first container.
    lab.host.set_cgroup_version(Some(CgroupVersion::V2));
    lab.host.add_cgroup("kubepods");
    lab.service.tune();
    assert_eq!(lab.host.io_limits(number(&lab, &volume.id)).len(), 1);
}

#[test]
fn a_setting_that_fails_is_tried_again() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    modify(&lab, &volume.id, &[("readAheadKiB", "256")]);
    lab.host.fail_after(0, ErrorKind::Internal);
    lab.service.tune();
    assert_eq!(read_ahead(&lab, &volume.id), 128);
    lab.service.tune();
    assert_eq!(read_ahead(&lab, &volume.id), 256);
}

/// What this node did not connect is not its to change: nodes of one machine see each other's devices.
#[test]
fn volumes_of_another_node_are_left_alone() {
    let lab = lab_with(CgroupVersion::V2);
    let state = tempfile::tempdir().unwrap();
    let other = service(&lab.host, &lab.backend, state.path(), lab.profile, "n2");
    other.register().unwrap();
    other.reconcile().unwrap();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    modify(&lab, &volume.id, &[("readAheadKiB", "256"), ("writeOpsPerSecond", "100")]);
    other.tune();
    let device = number(&lab, &volume.id);
    assert_eq!((read_ahead(&lab, &volume.id), lab.host.io_limits(device).len()), (128, 0));
    lab.service.tune();
    other.tune();
    assert_eq!((read_ahead(&lab, &volume.id), lab.host.io_limits(device).len()), (256, 1));
}

#[test]
fn a_device_that_hangs_holds_up_no_other() {
    let lab = Lab::new();
    let config = config(&lab.host, &lab.backend, lab.state.path(), lab.profile, "n1");
    let (stuck, other) = (lab.attached("stuck", EXT4), lab.attached("other", EXT4));
    let impatient = NodeService::new(NodeConfig { step_deadline: Duration::from_millis(200), ..config }).unwrap();
    lab.stage(&stuck, STAGING).unwrap();
    lab.stage(&other, "/staging/b").unwrap();
    impatient.register().unwrap();
    impatient.reconcile().unwrap();
    modify(&lab, &stuck.id, &[("readAheadKiB", "256")]);
    lab.host.hang_after(0);
    impatient.tune();
    // The machine goes on, and the thread that hung is still at it: it has the first volume's lock.
    lab.host.hang_after(u64::MAX);
    modify(&lab, &other.id, &[("readAheadKiB", "512")]);
    let started = std::time::Instant::now();
    while read_ahead(&lab, &other.id) != 512 {
        assert!(started.elapsed() < Duration::from_secs(10), "it waits for the other");
        impatient.tune();
    }
    assert_eq!(read_ahead(&lab, &stuck.id), 128);
    lab.host.release();
    while read_ahead(&lab, &stuck.id) != 256 {
        assert!(started.elapsed() < Duration::from_secs(20), "it never went on");
        std::thread::sleep(Duration::from_millis(10));
    }
}
