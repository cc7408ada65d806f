//! Limits in cgroups of this machine where it has v1, and in directories laid out like a v2 hierarchy: the kernel's own
//! `io.max` takes the same lines, but no machine has the controller in both hierarchies.

use super::cgroup::{find, hierarchies, set};
use super::lab::Lab;
use super::mountinfo;
use crate::{CgroupVersion, Effects, IoCgroup, MountEntry};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use volume::{DeviceNumber, ErrorKind, IoLimits};

const MIB: u64 = 1 << 20;

fn mounted(at: &Path, fs_type: &str, options: &str, read_only: bool) -> MountEntry {
    MountEntry {
        mounted_at: at.to_owned(),
        root: "/".into(),
        device: DeviceNumber { major: 0, minor: 30 },
        fs_type: fs_type.to_owned(),
        source: "cgroup".to_owned(),
        read_only,
        own_read_only: read_only,
        options: options.split(',').map(str::to_owned).collect::<BTreeSet<_>>(),
        id: 1,
    }
}

/// A directory like a v2 hierarchy with the controllers, and cgroups in it with `io.max` where it is on.
fn v2(controllers: &str, cgroups: &[(&str, bool)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("cgroup.controllers"), controllers).unwrap();
    for (name, is_on) in cgroups {
        fs::create_dir_all(root.path().join(name)).unwrap();
        if *is_on {
            fs::write(root.path().join(name).join("io.max"), "").unwrap();
        }
    }
    root
}

fn names(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

#[test]
fn which_hierarchy_has_the_controller() {
    let (with, without) = (v2("cpuset cpu io memory", &[]), v2("hugetlb", &[]));
    let v1 = Path::new("/sys/fs/cgroup/blkio");
    for (mounts, expected) in [
        (vec![mounted(with.path(), "cgroup2", "rw", false)], "V2"),
        (vec![mounted(v1, "cgroup", "rw,blkio", false)], "V1"),
        (vec![mounted(without.path(), "cgroup2", "rw", false), mounted(v1, "cgroup", "rw,blkio", false)], "V1"),
        (vec![mounted(without.path(), "cgroup2", "rw", false), mounted(v1, "cgroup", "rw,memory", false)], ""),
    ] {
        let found = format!("{:?}", hierarchies(&mounts));
        assert!(found.contains(expected) && expected.is_empty() == (found == "[]"), "{expected}: {found}");
    }
}

#[test]
fn why_nothing_can_be_limited() {
    let refusal = |mounts: &[MountEntry], wanted: &[&str]| {
        let error = find(&hierarchies(mounts), &names(wanted)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        error.chain()
    };
    let root = v2("io", &[("kubepods", false), ("nomad", true)]);
    let mount = |read_only| mounted(root.path(), "cgroup2", "rw", read_only);
    assert!(refusal(&[], &["kubepods"]).contains("no mounted cgroup hierarchy"));
    assert!(refusal(&[mount(true)], &["nomad"]).contains("read-only"));
    assert!(refusal(&[mount(false)], &["kubepods"]).contains("io_limit_cgroups"), "the controller is off there");
    assert!(refusal(&[mount(false)], &["docker"]).contains("io_limit_cgroups"));
    assert!(refusal(&[mount(false)], &[]).contains("io_limit_cgroups"));
}

#[test]
fn v2_one_line_for_each_named_cgroup() {
    let root = v2("io", &[("nomad", true), ("nomad/job", true), ("nomad.slice", true)]);
    let mount = mounted(root.path(), "cgroup2", "rw", false);
    let found = find(&hierarchies(&[mount.clone(), mount]), &names(&["nomad", "nomad.slice", "gone"])).unwrap();
    let paths: Vec<_> = found.iter().map(|c| c.path.strip_prefix(root.path()).unwrap().to_owned()).collect();
    assert_eq!(paths, names(&["nomad", "nomad.slice"]));
    let device = DeviceNumber { major: 7, minor: 5 };
    let file = found[0].path.join("io.max");
    let (effects, count) = counting();
    let limits = IoLimits { write_bytes_per_second: Some(MIB), read_ops_per_second: Some(50), ..Default::default() };
    for _ in 0..2 {
        set(&effects, &found[0], device, &limits).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "7:5 rbps=max wbps=1048576 riops=50 wiops=max\n");
    }
    assert_eq!(count(), 1, "what is there already is not written again");
    set(&effects, &found[0], device, &IoLimits::default()).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "7:5 rbps=max wbps=max riops=max wiops=max\n");
    // 7:55 is another device, and what is unlimited needs no line.
    fs::write(&file, "7:55 rbps=7 wbps=max riops=max wiops=max\n").unwrap();
    set(&effects, &found[0], device, &IoLimits::default()).unwrap();
    assert_eq!(count(), 2);
    fs::remove_dir_all(&found[1].path).unwrap();
    set(&effects, &found[1], device, &limits).unwrap();
}

/// The kernel itself: a direct writer falls to the limit, in a cgroup that was made below the named one, and is free again.
#[test]
fn v1_throttles_a_writer_and_lets_it_go() {
    let Some(scratch) = V1::make() else { return };
    let Some(mut lab) = Lab::make() else { return };
    let image = lab.pool.join("image");
    let device = lab.attach(&image, None, 64 * MIB);
    let cgroups = scratch.find();
    assert_eq!(cgroups.len(), 3, "{cgroups:?}");
    let (effects, count) = counting();
    let limit = |limits: &IoLimits| {
        cgroups.iter().for_each(|cgroup| set(&effects, cgroup, device.number, limits).unwrap());
    };
    let free = scratch.seconds_to_write(&device.path, 3 * MIB);
    let limits = IoLimits { write_bytes_per_second: Some(2 * MIB), ..Default::default() };
    limit(&limits);
    limit(&limits);
    assert_eq!(count(), 3, "one rule for each cgroup, once");
    let limited = scratch.seconds_to_write(&device.path, 3 * MIB);
    assert!(limited > 1.2, "3 MiB took {limited} s at 2 MiB/s");
    assert!(free < limited / 2.0, "without a limit it took {free} s, with one {limited} s");
    // What the device's number had stays with the number: the next image at it is limited as well.
    lab.release(&device);
    let other = lab.attach(&lab.pool.join("other"), None, 64 * MIB);
    if other.number == device.number {
        let inherited = scratch.seconds_to_write(&other.path, 3 * MIB);
        assert!(inherited > 1.2, "the kernel forgot the limit by itself: {inherited} s");
    }
    limit(&IoLimits::default());
    let lifted = scratch.seconds_to_write(&other.path, 3 * MIB);
    assert!(lifted < limited / 2.0, "lifted, it took {lifted} s");
    for cgroup in &cgroups {
        let rules = fs::read_to_string(cgroup.path.join("blkio.throttle.write_bps_device")).unwrap();
        assert!(!rules.contains(&format!("{}:{} ", device.number.major, device.number.minor)), "{rules}");
    }
    lab.release(&other);
}

#[test]
fn v1_a_device_or_cgroup_that_is_gone_needs_no_limit() {
    let Some(scratch) = V1::make() else { return };
    let cgroup = scratch.find().remove(0);
    let nobody = DeviceNumber { major: 7, minor: 1 << 19 };
    let effects = Effects::default();
    set(&effects, &cgroup, nobody, &IoLimits::default()).unwrap();
    let limits = IoLimits { read_ops_per_second: Some(50), ..Default::default() };
    assert!(set(&effects, &cgroup, nobody, &limits).is_err());
    drop(scratch);
    set(&effects, &cgroup, nobody, &limits).unwrap();
}

fn counting() -> (Effects, impl Fn() -> usize) {
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let own = count.clone();
    let effects = Effects::with_action(move |_, _| {
        own.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    });
    (effects, move || count.load(std::sync::atomic::Ordering::SeqCst))
}

/// Cgroups of its own in the v1 hierarchy of this machine; removed with it.
struct V1 {
    root: PathBuf,
    name: String,
}

impl V1 {
    fn make() -> Option<Self> {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        let entries = mountinfo::own().unwrap();
        let v1 = entries.into_iter().find(|e| e.fs_type == "cgroup" && e.options.contains("blkio") && !e.read_only);
        let Some(entry) = v1.filter(|_| nix::unistd::geteuid().is_root()) else {
            println!("SKIPPED: {name}: needs root and the blkio controller in a cgroup v1 hierarchy");
            return None;
        };
        let scratch = Self { root: entry.mounted_at, name: format!("hawser-{}", uuid::Uuid::new_v4().simple()) };
        fs::create_dir_all(scratch.path().join("pod/container")).unwrap();
        Some(scratch)
    }

    fn path(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    fn find(&self) -> Vec<IoCgroup> {
        let found = find(&hierarchies(&mountinfo::own().unwrap()), &[PathBuf::from(&self.name)]).unwrap();
        assert!(found.iter().all(|cgroup| cgroup.version == CgroupVersion::V1));
        found
    }

    /// Of a thread that writes past the page cache, in the innermost cgroup. v1 takes single threads.
    fn seconds_to_write(&self, device: &Path, bytes: u64) -> f64 {
        let tasks = self.path().join("pod/container/tasks");
        let (root_tasks, device) = (self.root.join("tasks"), device.to_owned());
        let writer = std::thread::spawn(move || {
            let own = nix::unistd::gettid().to_string();
            fs::write(&tasks, &own).unwrap();
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).custom_flags(nix::libc::O_DIRECT).open(device).unwrap();
            let block = 128 << 10;
            let memory = vec![1u8; 2 * block];
            let start = memory.as_ptr().align_offset(4096);
            let started = Instant::now();
            for _ in 0..bytes / block as u64 {
                file.write_all(&memory[start..start + block]).unwrap();
            }
            let took = started.elapsed().as_secs_f64();
            fs::write(&root_tasks, &own).unwrap();
            took
        });
        writer.join().unwrap()
    }
}

impl Drop for V1 {
    fn drop(&mut self) {
        for part in ["pod/container", "pod", ""] {
            let path = self.path().join(part);
            // A thread that has just ended is in its cgroup for a moment.
            for _ in 0..100 {
                if fs::remove_dir(&path).is_ok() || !path.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
