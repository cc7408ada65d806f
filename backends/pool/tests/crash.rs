//! Every operation of the pool is ended after each of its effects; the pool is opened again, as after a restart, and the
//! operation repeated: the end is the same as without the crash, and nothing is left over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // The helpers below are no test functions.

use conformance::scratch::ScratchPool;
use host::{Effects, LinuxHost};
use pool::{Pool, PoolConfig};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::Path;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use volume::{
    Backend, BackendName, Expand, FsType, GroupSnapshotId, GroupSnapshots, LockTable, Modify, MutableChange,
    PageRequest, Parameters, Result, SizeRange, SnapshotFilter, SnapshotId, Snapshots, TopologyRequirement,
    VolumeGuard, VolumeId, VolumeKind, VolumeName, VolumeSource, VolumeSpec,
};

const SIZE: u64 = 64 << 20;

/// What a crash throws.
struct Crash;

type Step = fn(&Pool) -> Result<()>;

fn nothing(_: &Pool) -> Result<()> {
    Ok(())
}

fn create(pool: &Pool) -> Result<()> {
    pool.ensure_volume(&lock(pool), &spec(pool, "v")).map(drop)
}

fn create_directory(pool: &Pool) -> Result<()> {
    let spec = VolumeSpec { kind: VolumeKind::Directory, ..spec(pool, "v") };
    pool.ensure_volume(&lock(pool), &spec).map(drop)
}

fn create_thick(pool: &Pool) -> Result<()> {
    let parameters = Parameters { thick: true, ..Parameters::default() };
    pool.ensure_volume(&lock(pool), &VolumeSpec { parameters, ..spec(pool, "v") }).map(drop)
}

fn snapshot(pool: &Pool) -> Result<()> {
    let name = VolumeName::parse("s").unwrap();
    pool.ensure_snapshot(&lock(pool), &snapshot_id(pool), &name, &volume_id(pool, "v")).map(drop)
}

fn create_and_snapshot(pool: &Pool) -> Result<()> {
    create(pool)?;
    snapshot(pool)
}

fn clone(pool: &Pool) -> Result<()> {
    let source = Some(VolumeSource::Volume(volume_id(pool, "v")));
    let spec = VolumeSpec { source, size: SizeRange::default(), ..spec(pool, "clone") };
    pool.ensure_volume(&lock(pool), &spec).map(drop)
}

fn restore_larger(pool: &Pool) -> Result<()> {
    let source = Some(VolumeSource::Snapshot(snapshot_id(pool)));
    pool.ensure_volume(&lock(pool), &VolumeSpec { source, size: at_least(SIZE * 2), ..spec(pool, "restored") })
        .map(drop)
}

fn expand(pool: &Pool) -> Result<()> {
    Expand::expand(pool, &lock(pool), &volume_id(pool, "v"), at_least(SIZE * 2)).map(drop)
}

fn modify(pool: &Pool) -> Result<()> {
    let change = MutableChange::parse([("readAheadKiB", "256"), ("writeOpsPerSecond", "100")])?;
    Modify::modify(pool, &lock(pool), &volume_id(pool, "v"), &change)
}

fn delete(pool: &Pool) -> Result<()> {
    pool.delete_volume(&lock(pool), &volume_id(pool, "v"))
}

fn delete_and_create(pool: &Pool) -> Result<()> {
    delete(pool)?;
    create(pool)
}

fn delete_snapshot(pool: &Pool) -> Result<()> {
    pool.delete_snapshot(&lock(pool), &snapshot_id(pool))
}

fn create_two(pool: &Pool) -> Result<()> {
    create(pool)?;
    pool.ensure_volume(&lock(pool), &spec(pool, "clone")).map(drop)
}

fn group(pool: &Pool) -> Result<()> {
    let sources = ["clone", "v"].map(|name| volume_id(pool, name));
    pool.ensure_group_snapshot(&lock(pool), &group_id(pool), &VolumeName::parse("g").unwrap(), &sources).map(drop)
}

fn create_two_and_group(pool: &Pool) -> Result<()> {
    create_two(pool)?;
    group(pool)
}

fn delete_group(pool: &Pool) -> Result<()> {
    pool.delete_group_snapshot(&lock(pool), &group_id(pool))
}

fn delete_group_and_take_another(pool: &Pool) -> Result<()> {
    delete_group(pool)?;
    group(pool)
}

fn restore_member(pool: &Pool) -> Result<()> {
    let member = SnapshotId::of_member(&group_id(pool), &volume_id(pool, "v"));
    let source = Some(VolumeSource::Snapshot(member));
    let spec = VolumeSpec { source, size: SizeRange::default(), ..spec(pool, "restored") };
    pool.ensure_volume(&lock(pool), &spec).map(drop)
}

/// Of every volume; and not removed, because opening the pool rebuilds what is lost.
fn damage_records(directory: &Path) {
    for volume in std::fs::read_dir(directory.join("volumes")).unwrap() {
        let volume = volume.unwrap().path();
        for entry in std::fs::read_dir(volume).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.to_str().unwrap().contains("/record.") {
                std::fs::write(path, "damaged").unwrap();
            }
        }
    }
}

fn rebuild(pool: &Pool) -> Result<()> {
    pool.rebuild_volume(&lock(pool), &volume_id(pool, "v"))
}

const OPERATIONS: [(&str, Step, Step); 17] = [
    ("create, the first of its size", nothing, create),
    ("create", create_then_delete, create),
    ("create a directory", nothing, create_directory),
    ("create thick", nothing, create_thick),
    ("snapshot", create, snapshot),
    ("clone", create, clone),
    ("restore into a larger volume", create_and_snapshot, restore_larger),
    ("expand", create, expand),
    ("expand thick", create_thick, expand),
    ("modify", create, modify),
    ("delete", create_and_snapshot, delete),
    ("delete a directory and create another volume", create_directory, delete_and_create),
    ("delete a snapshot", create_and_snapshot, delete_snapshot),
    ("group snapshot", create_two, group),
    ("delete a group snapshot", create_two_and_group, delete_group),
    ("delete a group snapshot and take another of its name", create_two_and_group, delete_group_and_take_another),
    ("restore a member of a group", create_two_and_group, restore_member),
];

fn create_then_delete(pool: &Pool) -> Result<()> {
    create(pool)?;
    delete(pool)
}

#[test]
fn every_operation_survives_a_crash_after_every_effect_on_xfs() {
    sweep("every_operation_survives_a_crash_after_every_effect_on_xfs", FsType::Xfs);
}

#[test]
fn every_operation_survives_a_crash_after_every_effect_on_btrfs() {
    sweep("every_operation_survives_a_crash_after_every_effect_on_btrfs", FsType::Btrfs);
}

#[test]
fn every_operation_survives_a_crash_after_every_effect_on_ext4() {
    sweep("every_operation_survives_a_crash_after_every_effect_on_ext4", FsType::Ext4);
}

/// Making the pool itself.
#[test]
fn opening_a_new_pool_survives_a_crash_after_every_effect() {
    silence_crashes();
    let root = tempfile::tempdir().unwrap();
    for stop_after in 1.. {
        let directory = root.path().join(stop_after.to_string());
        let crashed = run(stop_after, &directory, |armed, directory| {
            armed.store(true, Ordering::SeqCst);
            open(directory, crash_effects(stop_after, &armed))
        });
        let pool = open(&directory, Effects::default());
        let uuid = pool.topology().unwrap();
        assert_eq!(open(&directory, Effects::default()).topology().unwrap(), uuid);
        assert_eq!(tree(&directory), BTreeSet::from(["pool.json".to_owned()]), "after effect {stop_after}");
        if !crashed {
            assert!(stop_after > 5, "the sweep saw only {stop_after} effects");
            return;
        }
    }
}

fn sweep(test: &str, fs: FsType) {
    silence_crashes();
    let scratch = match ScratchPool::new(fs, 3 << 30) {
        Ok(scratch) => scratch,
        Err(reason) => return println!("SKIPPED: {test}: {reason}"),
    };
    let untouched: fn(&Path) = |_| ();
    let operations = OPERATIONS.into_iter().map(|(name, prepare, operation)| (name, prepare, untouched, operation));
    let rebuild: (&str, Step, fn(&Path), Step) = ("rebuild", create, damage_records, rebuild);
    for (n, (name, prepare, damage, operation)) in operations.chain([rebuild]).enumerate() {
        let undisturbed = scratch.path().join(format!("{n}-undisturbed"));
        let pool = open(&undisturbed, Effects::default());
        prepare(&pool).unwrap();
        damage(&undisturbed);
        operation(&pool).unwrap();
        let expected = (state(&pool), tree(&undisturbed));
        drop(pool);
        for stop_after in 1.. {
            let directory = scratch.path().join(format!("{n}-{stop_after}"));
            prepare(&open(&directory, Effects::default())).unwrap();
            damage(&directory);
            let crashed = run(stop_after, &directory, |armed, directory| {
                let pool = open(directory, crash_effects(stop_after, &armed));
                armed.store(true, Ordering::SeqCst);
                operation(&pool).unwrap();
            });
            let at = format!("{name}, ended after effect {stop_after}");
            let pool = open_and_clean(&directory, &at);
            all_or_none(&pool, &at);
            operation(&pool).unwrap_or_else(|e| panic!("{at}: the retry failed: {}", e.chain()));
            assert_eq!((state(&pool), tree(&directory)), expected, "{at}");
            drop(pool);
            std::fs::remove_dir_all(&directory).unwrap();
            if !crashed {
                assert!(stop_after > 2, "{name}: the sweep saw only {stop_after} effects");
                break;
            }
        }
        std::fs::remove_dir_all(&undisturbed).unwrap();
    }
}

/// Whether the work was cut short by the crash.
fn run<T>(stop_after: u64, directory: &Path, work: impl FnOnce(Arc<AtomicBool>, &Path) -> T) -> bool {
    let armed = Arc::new(AtomicBool::new(false));
    match catch_unwind(AssertUnwindSafe(|| work(armed, directory))) {
        Ok(_) => false,
        Err(payload) if payload.is::<Crash>() => true,
        Err(payload) => {
            eprintln!("while running to effect {stop_after}");
            std::panic::resume_unwind(payload)
        }
    }
}

/// Crashes after the nth effect since it was armed; what runs while the stack unwinds is not disturbed.
fn crash_effects(stop_after: u64, armed: &Arc<AtomicBool>) -> Effects {
    let armed = Arc::clone(armed);
    let seen = AtomicU64::new(0);
    Effects::with_action(move |_, _| {
        if armed.load(Ordering::SeqCst) && seen.fetch_add(1, Ordering::SeqCst) + 1 == stop_after {
            panic_any(Crash);
        }
    })
}

fn silence_crashes() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Crash>() {
                default(info);
            }
        }));
    });
}

fn open(directory: &Path, effects: Effects) -> Pool {
    let config = PoolConfig::new(BackendName::parse("pool").unwrap(), directory);
    Pool::open(config, Arc::new(LinuxHost::new(effects.clone())), effects).unwrap()
}

/// Opens the pool after the crash: nothing is in the trash and nothing is half made, before the operation is repeated.
///
/// The programs that the other tests of this process start have its descriptors between fork(2) and execve(2), and
/// with them the locks of the dead builder. A restarted driver is another process; here it takes another look.
fn open_and_clean(directory: &Path, at: &str) -> Pool {
    let mut left = Vec::new();
    for _ in 0..50 {
        let pool = open(directory, Effects::default());
        left = tree(directory).into_iter().filter(|path| path.contains("trash/") || path.contains("/.")).collect();
        if left.is_empty() {
            return pool;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{at}: left over are {left:?}");
}

/// Nobody sees a member of a group that is not there.
fn all_or_none(pool: &Pool, at: &str) {
    let snapshots = pool.list_snapshots(&SnapshotFilter::default(), &PageRequest::default()).unwrap().entries;
    let members: Vec<_> = snapshots.into_iter().filter(|snapshot| snapshot.group.is_some()).collect();
    let group = pool.find_group_snapshot(&group_id(pool)).unwrap();
    assert_eq!(members, group.map(|group| group.snapshots).unwrap_or_default(), "{at}");
    assert!(matches!(members.len(), 0 | 2), "{at}: {members:?}");
}

/// What the pool says it has, without the times.
fn state(pool: &Pool) -> String {
    let mut volumes = pool.list_volumes(&PageRequest::default()).unwrap().entries;
    for volume in &mut volumes {
        volume.created_at_ms = 0;
        volume.accessible_topology.clear();
        assert_eq!(volume.problem, None);
    }
    let all = SnapshotFilter::default();
    let mut snapshots = pool.list_snapshots(&all, &PageRequest::default()).unwrap().entries;
    for snapshot in &mut snapshots {
        snapshot.created_at_ms = 0;
        snapshot.accessible_topology.clear();
    }
    format!("{volumes:#?} {snapshots:#?}")
}

/// All files below a directory with their sizes; the generations of a record are one.
fn tree(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
            if metadata.is_dir() {
                // Also an empty directory is a leak, but for those that every pool has.
                if name.contains('/') {
                    found.insert(format!("{name}/"));
                }
                todo.push(path);
            } else if let Some((record, _)) = name.split_once("/record.") {
                found.insert(format!("{record}/record"));
            } else if name.ends_with("/.ballast") {
                // It may or may not be there.
            } else if name == "pool.json" {
                found.insert(name);
            } else {
                found.insert(format!("{name} {}", metadata.len()));
            }
        }
    }
    found
}

fn spec(pool: &Pool, name: &str) -> VolumeSpec {
    VolumeSpec {
        id: volume_id(pool, name),
        name: VolumeName::parse(name).unwrap(),
        size: at_least(SIZE),
        kind: VolumeKind::FileSystem(FsType::Ext4),
        source: None,
        parameters: Parameters::default(),
        mutable: Default::default(),
        topology: TopologyRequirement::default(),
    }
}

fn volume_id(pool: &Pool, name: &str) -> VolumeId {
    VolumeId::of_name(pool.name(), &VolumeName::parse(name).unwrap())
}

fn snapshot_id(pool: &Pool) -> SnapshotId {
    SnapshotId::of_name(pool.name(), &VolumeName::parse("s").unwrap())
}

fn group_id(pool: &Pool) -> GroupSnapshotId {
    GroupSnapshotId::of_name(pool.name(), &VolumeName::parse("g").unwrap())
}

fn at_least(required_bytes: u64) -> SizeRange {
    SizeRange { required_bytes: Some(required_bytes), limit_bytes: None }
}

/// Everything that these tests touch.
fn lock(pool: &Pool) -> VolumeGuard {
    let volumes = ["v", "clone", "restored"].map(|name| volume_id(pool, name));
    let (snapshot, group) = (snapshot_id(pool), group_id(pool));
    let members = volumes.each_ref().map(|volume| SnapshotId::of_member(&group, volume));
    let ids = volumes.iter().map(VolumeId::as_str).chain(members.iter().map(SnapshotId::as_str));
    LockTable::default().try_lock(ids.chain([snapshot.as_str(), group.as_str()])).unwrap()
}
