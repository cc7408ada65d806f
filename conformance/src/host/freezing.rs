//! Freezing around a piece of work.

use super::{Content, Fixture, SIZE, refused};
use host::LoopDevice;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use volume::{DeviceNumber, Error, ErrorKind, FsType};

const DEADLINE_MS: u64 = 10_000;

pub fn work_runs_frozen(fixture: &dyn Fixture) {
    for fs in FsType::ALL {
        let (device, target) = mounted(fixture, fs);
        let mut ran = 0;
        fixture
            .host()
            .with_frozen(device.number, DEADLINE_MS, &mut || {
                ran += 1;
                // Frozen already: the same freeze again is somebody else's.
                refused(fixture.host().with_frozen(device.number, DEADLINE_MS, &mut || Ok(())), ErrorKind::Busy);
                Ok(())
            })
            .unwrap();
        assert_eq!(ran, 1);
        is_writable(fixture, &device, target);
    }
}

pub fn failing_work(fixture: &dyn Fixture) {
    let (device, target) = mounted(fixture, FsType::Ext4);
    let full = || Err(Error::new(ErrorKind::Exhausted, "the pool is full"));
    refused(fixture.host().with_frozen(device.number, DEADLINE_MS, &mut || full()), ErrorKind::Exhausted);
    is_writable(fixture, &device, target);
}

pub fn panicking_work(fixture: &dyn Fixture) {
    let (device, target) = mounted(fixture, FsType::Ext4);
    let work = &mut || resume_unwind(Box::new("a defect"));
    let caught = catch_unwind(AssertUnwindSafe(|| fixture.host().with_frozen(device.number, DEADLINE_MS, work)));
    assert!(caught.is_err());
    is_writable(fixture, &device, target);
}

pub fn nothing_mounted(fixture: &dyn Fixture) {
    let device = fixture.attach(&fixture.make_image("image", Content::Blank, SIZE), "image");
    let mut ran = false;
    let mut work = || {
        ran = true;
        Ok(())
    };
    fixture.host().with_frozen(device.number, DEADLINE_MS, &mut work).unwrap();
    assert!(ran);
    fixture.host().detach_loop(&device).unwrap();
}

/// What was left frozen by a process that is gone can be let go on; work that this hits says that it failed.
pub fn left_frozen(fixture: &dyn Fixture) {
    let host = fixture.host();
    let (device, target) = mounted(fixture, FsType::Ext4);
    let elsewhere = fixture.target("elsewhere");
    assert!(!host.thaw_left_over(device.number, None).unwrap());
    let work = &mut || {
        // Wherever the caller thinks that it is mounted.
        for known in [Some(&*target), None, Some(&*elsewhere)] {
            let is_first = known == Some(&*target);
            assert_eq!(host.thaw_left_over(device.number, known).unwrap(), is_first, "{known:?}");
        }
        fixture.write_file(&target.join("meanwhile"), b"thawed").unwrap();
        Ok(())
    };
    refused(host.with_frozen(device.number, DEADLINE_MS, work), ErrorKind::Unavailable);
    host.unmount(&target).unwrap();
    assert!(!host.thaw_left_over(device.number, None).unwrap());
    fixture.mount(&device, FsType::Ext4, &target);
    is_writable(fixture, &device, target);
}

/// One after the other is fine.
pub fn frozen_twice(fixture: &dyn Fixture) {
    let (device, target) = mounted(fixture, FsType::Ext4);
    for _ in 0..3 {
        fixture.host().with_frozen(device.number, DEADLINE_MS, &mut || Ok(())).unwrap();
    }
    is_writable(fixture, &device, target);
}

/// All stand still while the work runs, and it is told which: nothing is to be frozen on a device without a mount.
pub fn several_at_once(fixture: &dyn Fixture) {
    let host = fixture.host();
    let all: Vec<_> = FsType::ALL.into_iter().map(|fs| mounted_at(fixture, fs, fs.as_str())).collect();
    let bare = fixture.attach(&fixture.make_image("bare", Content::Blank, SIZE), "bare");
    let mounted: Vec<_> = all.iter().map(|(device, _)| device.number).collect();
    let devices: Vec<_> = mounted.iter().copied().chain([bare.number]).collect();
    let mut ran = 0;
    let mut work = |frozen: &[DeviceNumber]| {
        assert_eq!(frozen, mounted);
        for &device in &mounted {
            refused(host.with_frozen(device, DEADLINE_MS, &mut || Ok(())), ErrorKind::Busy);
        }
        ran += 1;
        Ok(())
    };
    host.with_all_frozen(&devices, DEADLINE_MS, &mut work).unwrap();
    assert_eq!(ran, 1);
    for (device, target) in all {
        is_writable(fixture, &device, target);
    }
    host.detach_loop(&bare).unwrap();
}

/// One that cannot be frozen lets the others go on, and so does work that fails, panics, or loses its freeze.
pub fn several_or_none(fixture: &dyn Fixture) {
    let host = fixture.host();
    let all = ["one", "two"].map(|name| mounted_at(fixture, FsType::Ext4, name));
    let [one, two] = [all[0].0.number, all[1].0.number];
    let unfrozen = || host.with_all_frozen(&[one, two], DEADLINE_MS, &mut |_| Ok(())).unwrap();
    let busy = &mut || {
        let work = &mut |_: &[DeviceNumber]| panic!("it is frozen by somebody else");
        refused(host.with_all_frozen(&[one, two], DEADLINE_MS, work), ErrorKind::Busy);
        // The first was let go again.
        host.with_frozen(one, DEADLINE_MS, &mut || Ok(()))
    };
    host.with_frozen(two, DEADLINE_MS, busy).unwrap();
    unfrozen();
    let full = &mut |_: &[DeviceNumber]| Err(Error::new(ErrorKind::Exhausted, "the pool is full"));
    refused(host.with_all_frozen(&[one, two], DEADLINE_MS, full), ErrorKind::Exhausted);
    unfrozen();
    let defect = &mut |_: &[DeviceNumber]| resume_unwind(Box::new("a defect"));
    assert!(catch_unwind(AssertUnwindSafe(|| host.with_all_frozen(&[one, two], DEADLINE_MS, defect))).is_err());
    unfrozen();
    for lost in [one, two] {
        let work = &mut |_: &[DeviceNumber]| {
            assert!(host.thaw_left_over(lost, None).unwrap());
            Ok(())
        };
        refused(host.with_all_frozen(&[one, two], DEADLINE_MS, work), ErrorKind::Unavailable);
        unfrozen();
    }
    for (device, target) in all {
        is_writable(fixture, &device, target);
    }
}

fn mounted(fixture: &dyn Fixture, fs: FsType) -> (LoopDevice, PathBuf) {
    mounted_at(fixture, fs, "target")
}

fn mounted_at(fixture: &dyn Fixture, fs: FsType, name: &str) -> (LoopDevice, PathBuf) {
    let (device, target) = (fixture.attach_new(&format!("{name}-{fs}"), fs), fixture.target(name));
    fixture.mount(&device, fs, &target);
    (device, target)
}

fn is_writable(fixture: &dyn Fixture, device: &LoopDevice, target: PathBuf) {
    fixture.write_file(&target.join("after"), b"thawed").unwrap();
    fixture.unmount_and_detach(&target, device);
}
