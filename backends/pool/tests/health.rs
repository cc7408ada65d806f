//! What is said of a damaged, full, read-only or missing pool and of its volumes; and that it is not said any more once
//! the cause is gone.
#![allow(clippy::unwrap_used)] // The helpers below are no test functions.

mod common;

use common::Lab;
use conformance::backend::{SIZE, at_least, refused};
use host::file::{Dir, allocate, space};
use host::{Effects, Host, LinuxHost};
use nix::mount::{MsFlags, mount};
use pool::{Pool, PoolConfig};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use volume::{
    Backend, BackendName, Connector, ErrorKind, FsType, Health, HealthProblem, PageRequest, Parameters, Severity,
    VolumeId, VolumeKind, VolumeSpec,
};

type Found = Vec<(Severity, &'static str)>;

fn brief(problems: Vec<HealthProblem>) -> Found {
    assert!(problems.iter().all(|problem| problem.message.len() > 20), "{problems:?}");
    problems.into_iter().map(|problem| (problem.severity, problem.reason)).collect()
}

impl Lab {
    fn health(&self) -> &dyn Health {
        self.subject.backend.health().unwrap()
    }

    /// Of one volume; the list and the node's half agree.
    fn of(&self, id: &VolumeId) -> Found {
        let found = self.health().volume_health(id).unwrap();
        assert_eq!(self.subject.connector.volume_health(id).unwrap(), found);
        let listed = self.health().list_unhealthy(&PageRequest::default()).unwrap().entries;
        assert_eq!(listed.contains(&found), !found.is_healthy(), "{found:?}");
        // What `hawser volume ls` shows is the same problem.
        let problem = self.subject.find(id).problem;
        let is_own = |one: &&HealthProblem| one.reason.starts_with("Image") || one.reason.starts_with("Record");
        assert_eq!(problem, found.problems.iter().find(is_own).map(|one| one.message.clone()));
        brief(found.problems)
    }

    fn storage(&self) -> Found {
        brief(self.subject.connector.storage_health().unwrap())
    }
}

#[test]
fn images_that_are_missing_replaced_or_truncated() {
    let test = "images_that_are_missing_replaced_or_truncated";
    for fs in FsType::ALL {
        let Some(lab) = Lab::new(test, fs) else { return };
        let (id, other) = (lab.subject.create("v").id, lab.subject.create("other").id);
        let (image, aside) = (lab.image(&id), lab.directory.join("volumes/aside"));
        assert_eq!(lab.of(&id), []);
        fs::rename(&image, &aside).unwrap();
        assert_eq!(lab.of(&id), [(Severity::DataLoss, "ImageMissing")], "{fs}");
        fs::copy(&aside, &image).unwrap();
        assert_eq!(lab.of(&id), [(Severity::DataLoss, "ImageReplaced")], "{fs}");
        fs::rename(&aside, &image).unwrap();
        assert_eq!(lab.of(&id), [], "{fs}: it is back");
        (lab.subject.set_image_bytes)(&id, SIZE - 1);
        assert_eq!(lab.of(&id), [(Severity::DataLoss, "ImageTruncated")], "{fs}");
        (lab.subject.set_image_bytes)(&id, SIZE);
        assert_eq!(lab.of(&id), [], "{fs}");
        assert_eq!(lab.of(&other), []);
        let directory = VolumeSpec { kind: VolumeKind::Directory, ..lab.subject.spec("directory") };
        let directory = lab.subject.ensure(&directory).unwrap().id;
        fs::remove_dir(lab.volume_dir(&directory).join("data")).unwrap();
        let found = brief(lab.health().volume_health(&directory).unwrap().problems);
        assert_eq!(found, [(Severity::DataLoss, "DirectoryMissing")]);
    }
}

#[test]
fn records_that_are_damaged_or_newer() {
    let Some(lab) = Lab::new("records_that_are_damaged_or_newer", FsType::Xfs) else { return };
    let (id, other) = (lab.subject.create("v").id, lab.subject.create("other").id);
    let record = lab.volume_dir(&id).join(lab.files(&id, "record.").into_iter().max().unwrap());
    let whole = fs::read_to_string(&record).unwrap();
    fs::write(&record, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(lab.of(&id), [(Severity::Inaccessible, "RecordDamaged")]);
    let body = whole.lines().next().unwrap().replacen("\"format\":", "\"format\":99", 1);
    fs::write(&record, format!("{body}\n{{\"crc32c\":{}}}\n", crc32c::crc32c(body.as_bytes()))).unwrap();
    assert_eq!(lab.of(&id), [(Severity::Inaccessible, "RecordNewer")]);
    fs::write(&record, &whole).unwrap();
    assert_eq!(lab.of(&id), []);
    assert_eq!(lab.of(&other), []);
}

#[test]
fn a_pool_that_fills_up() {
    for fs in [FsType::Ext4, FsType::Xfs] {
        let Some(lab) = Lab::new("a_pool_that_fills_up", fs) else { return };
        let (thin, n1) = (lab.subject.create("thin").id, lab.subject.register("n1"));
        let thick = Parameters { thick: true, ..Parameters::default() };
        let thick = VolumeSpec { parameters: thick, size: at_least(SIZE), ..lab.subject.spec("thick") };
        let thick = lab.subject.ensure(&thick).unwrap().id;
        assert_eq!(lab.storage(), []);
        let ballast = lab.directory.parent().unwrap().join("ballast");
        leave_free(&ballast, &lab.directory, 150 << 20);
        assert_eq!(lab.storage(), [(Severity::Degraded, "PoolNearlyFull")], "{fs}");
        assert_eq!(lab.of(&thin), [], "{fs}: of the storage alone");
        leave_free(&ballast, &lab.directory, 30 << 20);
        assert_eq!(lab.storage(), [(Severity::Degraded, "PoolFull")], "{fs}");
        assert_eq!(lab.of(&thin), [(Severity::Degraded, "PoolFull")], "{fs}");
        assert_eq!(lab.of(&thick), [], "{fs}: its space is reserved");
        let more = lab.directory.parent().unwrap().join("more");
        fs::write(&more, vec![1; 128 << 20]).unwrap_err();
        // The mark was made when the node was registered, and is overwritten in place.
        let attach = lab.subject.backend.attach().unwrap();
        let mark = || attach.signs_of_life().unwrap().unwrap().into_iter().map(|(_, mark)| mark).max();
        for _ in 0..3 {
            let before = mark();
            lab.subject.connector.show_life(&n1).unwrap();
            assert!(mark() > before, "{fs}: {before:?}");
        }
        fs::remove_file(&more).unwrap();
        fs::remove_file(&ballast).unwrap();
        // xfs gives the blocks of deleted files back in the background.
        for _ in 0..100 {
            if lab.storage().is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(lab.storage(), [], "{fs}");
        assert_eq!(lab.of(&thin), [], "{fs}");
    }
}

#[test]
fn a_pool_that_is_read_only() {
    for fs in FsType::ALL {
        let Some(lab) = Lab::new("a_pool_that_is_read_only", fs) else { return };
        let id = lab.subject.create("v").id;
        let remount = |flags| mount(None::<&str>, lab.directory.parent().unwrap(), None::<&str>, flags, None::<&str>);
        remount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY).unwrap();
        assert_eq!(lab.storage(), [(Severity::Inaccessible, "PoolNotWritable")], "{fs}");
        assert_eq!(lab.of(&id), [(Severity::Inaccessible, "PoolNotWritable")], "{fs}");
        remount(MsFlags::MS_REMOUNT).unwrap();
        assert_eq!((lab.storage(), lab.of(&id)), (vec![], vec![]), "{fs}");
    }
}

/// errors=remount-ro on the pool's own file system.
#[test]
fn a_pool_whose_file_system_met_an_error() {
    let Some(lab) = Lab::new("a_pool_whose_file_system_met_an_error", FsType::Ext4) else { return };
    let id = lab.subject.create("v").id;
    let at = lab.directory.parent().unwrap();
    let mounts = LinuxHost::new(Effects::default()).mounts().unwrap();
    let source = mounts.into_iter().find(|entry| entry.mounted_at == at).unwrap().source;
    let device = source.strip_prefix("/dev/").unwrap();
    fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a test").unwrap();
    assert!(fs::write(at.join("file"), "no").is_err());
    assert_eq!(lab.storage(), [(Severity::Inaccessible, "PoolNotWritable")]);
    assert_eq!(lab.of(&id), [(Severity::Inaccessible, "PoolNotWritable")]);
}

/// The storage says that it is away; what is asked of volumes cannot be answered, and "not found" would be a lie.
#[test]
fn a_pool_that_is_not_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (at, aside) = (dir.path().join("pool"), dir.path().join("aside"));
    let config = PoolConfig::new(BackendName::parse("pool").unwrap(), &at);
    let pool = Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap();
    let id = VolumeId::of_name(pool.name(), &volume::VolumeName::parse("v").unwrap());
    refused(Health::volume_health(&pool, &id), ErrorKind::NotFound);
    fs::rename(&at, &aside).unwrap();
    for put_there in [false, true] {
        if put_there {
            fs::create_dir(&at).unwrap();
        }
        assert_eq!(brief(pool.storage_health().unwrap()), [(Severity::Inaccessible, "PoolUnreachable")]);
        refused(Health::volume_health(&pool, &id), ErrorKind::Unavailable);
        refused(pool.list_unhealthy(&PageRequest::default()), ErrorKind::Unavailable);
    }
    fs::remove_dir(&at).unwrap();
    fs::rename(&aside, &at).unwrap();
    assert_eq!(pool.storage_health().unwrap(), []);
    refused(Health::volume_health(&pool, &id), ErrorKind::NotFound);
}

/// Makes the ballast as large as leaves so much of the file system free.
fn leave_free(ballast: &Path, on: &Path, bytes: u64) {
    let file = fs::OpenOptions::new().create(true).append(true).open(ballast).unwrap();
    let dir = Dir::open(on, Effects::default()).unwrap();
    for _ in 0..10 {
        let size = file.metadata().unwrap().len();
        match space(&dir).unwrap().available_bytes.checked_sub(bytes) {
            Some(more) if more > 1 << 20 => allocate(&file, size..size + more, &Effects::default()).unwrap(),
            _ => return,
        }
    }
}
