//! Freezing around a piece of work.

use super::{Content, Fixture, SIZE, refused};
use host::LoopDevice;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use volume::{Error, ErrorKind, FsType};

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

fn mounted(fixture: &dyn Fixture, fs: FsType) -> (LoopDevice, PathBuf) {
    let (device, target) = (fixture.attach_new(fs.as_str(), fs), fixture.target("target"));
    fixture.mount(&device, fs, &target);
    (device, target)
}

fn is_writable(fixture: &dyn Fixture, device: &LoopDevice, target: PathBuf) {
    fixture.write_file(&target.join("after"), b"thawed").unwrap();
    fixture.unmount_and_detach(&target, device);
}
