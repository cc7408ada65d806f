//! Freezes where they are hard: in another mount namespace, by a process that dies, on a device that hangs.
#![allow(clippy::disallowed_methods, reason = "other processes are what is tested here")]

use super::lab::Lab;
use super::{LinuxHost, freeze};
use crate::{Effects, Host, LoopDevice};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use volume::{DeviceNumber, ErrorKind, FsType};

const SIZE: u64 = 512 << 20;
/// Tells the copy of this program that is to die what to freeze.
const TO_FREEZE: &str = "HAWSER_TEST_FREEZE";

#[test]
fn a_writer_waits_for_the_thaw() {
    let Some((lab, device, target)) = mounted(FsType::Ext4) else { return };
    let written = AtomicBool::new(false);
    thread::scope(|scope| {
        lab.host
            .with_frozen(device.number, 10_000, &mut || {
                scope.spawn(|| {
                    write(&target, b"late").unwrap();
                    written.store(true, Ordering::SeqCst);
                });
                thread::sleep(Duration::from_millis(150));
                assert!(!written.load(Ordering::SeqCst));
                Ok(())
            })
            .unwrap();
    });
    assert!(written.load(Ordering::SeqCst));
}

/// Nodes in containers have the volume mounted in their own namespaces, and nobody else does.
#[test]
fn a_mount_in_another_namespace_is_found() {
    for fs in FsType::ALL {
        let Some(mut lab) = Lab::make() else { return };
        let device = lab.attach(&lab.pool.join("image"), Some(fs), SIZE);
        let hidden = lab.directory.path().join("hidden");
        lab.host.ensure_directory(&hidden).unwrap();
        let script = format!("mount {} {} && echo mounted && read line", device.path.display(), hidden.display());
        let mut other =
            Holder::start(Command::new("unshare").args(["-m", "--propagation", "private", "sh", "-c", &script]));
        assert_eq!(other.line(), "mounted");
        let mut ran = false;
        lab.host
            .with_frozen(device.number, 10_000, &mut || {
                ran = true;
                let again = lab.host.with_frozen(device.number, 10_000, &mut || Ok(()));
                assert_eq!(again.unwrap_err().kind(), ErrorKind::Busy, "{fs:?} was not frozen");
                Ok(())
            })
            .unwrap();
        assert!(ran);
        assert!(lab.host.fence_loop(&device, 10_000).unwrap().unwrap().froze);
        drop(other);
        lab.release(&device);
    }
}

/// A driver killed in the middle of a snapshot must not leave the volume frozen.
#[test]
fn a_dead_process_leaves_nothing_frozen() {
    let Some((_lab, device, target)) = mounted(FsType::Ext4) else { return };
    let name = "linux::freeze_tests::freezes_until_it_is_killed";
    let number = format!("{}:{}", device.number.major, device.number.minor);
    let program = std::env::current_exe().unwrap();
    let mut other = Holder::start(Command::new(program).args(["--exact", name, "--nocapture"]).env(TO_FREEZE, number));
    while !other.line().contains("frozen") {}
    let frozen = freeze::freeze(File::open(&target).unwrap().into()).err().map(|e| e.kind());
    assert_eq!(frozen, Some(ErrorKind::Busy));
    drop(other);
    let started = Instant::now();
    write(&target, b"alive").unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// Nor several, whose guards were started one after the other.
#[test]
fn a_dead_process_leaves_none_of_several_frozen() {
    let Some((mut lab, first, target)) = mounted(FsType::Ext4) else { return };
    let mut devices = vec![first];
    let mut targets = vec![target];
    for (n, fs) in [FsType::Xfs, FsType::Ext4].into_iter().enumerate() {
        let device = lab.attach(&lab.pool.join(format!("more-{n}")), Some(fs), SIZE);
        let target = lab.directory.path().join(format!("more-{n}"));
        lab.mount(&device, fs, &target);
        devices.push(device);
        targets.push(target);
    }
    let numbers: Vec<_> = devices.iter().map(|d| format!("{}:{}", d.number.major, d.number.minor)).collect();
    let name = "linux::freeze_tests::freezes_until_it_is_killed";
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    let mut other = Holder::start(command.args(["--exact", name, "--nocapture"]).env(TO_FREEZE, numbers.join(",")));
    while !other.line().contains("frozen") {}
    for target in &targets {
        let frozen = freeze::freeze(File::open(target).unwrap().into()).err().map(|e| e.kind());
        assert_eq!(frozen, Some(ErrorKind::Busy));
    }
    drop(other);
    let started = Instant::now();
    for target in &targets {
        write(target, b"alive").unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// Not a test of its own: the process that the tests above kill.
#[test]
fn freezes_until_it_is_killed() {
    let Ok(numbers) = std::env::var(TO_FREEZE) else { return };
    let device = |number: &str| {
        let (major, minor) = number.split_once(':').unwrap();
        DeviceNumber { major: major.parse().unwrap(), minor: minor.parse().unwrap() }
    };
    let devices: Vec<_> = numbers.split(',').map(device).collect();
    let work = &mut || {
        println!("\nfrozen");
        thread::sleep(Duration::from_secs(60));
        Ok(())
    };
    let host = LinuxHost::new(Effects::default());
    match devices[..] {
        [device] => host.with_frozen(device, 10_000, work).unwrap(),
        _ => host.with_all_frozen(&devices, 10_000, &mut |_| work()).unwrap(),
    }
}

/// The pool hangs (its own file system is frozen): freeze and fence end at their deadlines, other volumes go on, and
/// what was begun undoes itself when the pool is back.
#[test]
fn a_hung_pool_is_not_waited_for() {
    let Some((mut lab, device, target)) = mounted(FsType::Ext4) else { return };
    let other_image = lab.directory.path().join("elsewhere");
    let other = lab.attach(&other_image, Some(FsType::Ext4), SIZE);
    let other_target = lab.directory.path().join("other");
    lab.mount(&other, FsType::Ext4, &other_target);
    // Dirty, so that a freeze has something to write.
    File::create(target.join("dirty")).unwrap().write_all(&[1; 1 << 20]).unwrap();
    let pool = freeze::freeze(File::open(&lab.pool).unwrap().into()).unwrap();
    let work = &mut || panic!("the work must not run");
    assert_eq!(lab.host.with_frozen(device.number, 300, work).unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(lab.host.fence_loop(&device, 300).unwrap_err().kind(), ErrorKind::Timeout);
    write(&other_target, b"not affected").unwrap();
    pool.thaw().unwrap();
    let started = Instant::now();
    // The late fence may have won by now, and then writes fail at once: what matters is that nothing stays stuck.
    let _ = write(&target, b"thawed");
    while lab.host.with_frozen(device.number, 5_000, &mut || Ok(())).is_err_and(|e| e.kind() == ErrorKind::Busy) {
        assert!(started.elapsed() < Duration::from_secs(10), "left frozen");
        thread::sleep(Duration::from_millis(20));
    }
    // The late fence holds the loop's descriptor until it is done.
    while lab.host.loops().unwrap().iter().any(|d| d.number == device.number && d.size_limit_bytes == 0) {
        assert!(started.elapsed() < Duration::from_secs(10), "the late fence never came");
        thread::sleep(Duration::from_millis(20));
    }
}

fn mounted(fs: FsType) -> Option<(Lab, LoopDevice, PathBuf)> {
    let mut lab = Lab::make()?;
    let device = lab.attach(&lab.pool.join("image"), Some(fs), SIZE);
    let target = lab.directory.path().join("target");
    lab.mount(&device, fs, &target);
    Some((lab, device, target))
}

fn write(directory: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(directory.join("file"))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A process that is killed when this is dropped.
struct Holder {
    child: Child,
    output: BufReader<Box<dyn Read>>,
}

impl Holder {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output: Box<dyn Read> = Box::new(child.stdout.take().unwrap());
        Self { child, output: BufReader::new(output) }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "the other process ended");
        line.trim().to_owned()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
