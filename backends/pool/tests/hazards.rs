//! Places and moments in which data was once in danger.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Lab, open};
use conformance::backend::{Subject, at_least, refused};
use conformance::scratch::ScratchPool;
use host::{Effects, Host, LinuxHost, MountRequest};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pool::{Pool, PoolConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use volume::{
    BackendName, Connected, ErrorKind, FenceHow, FsType, NodeIdentity, SnapshotId, VolumeKind, VolumeSource, VolumeSpec,
};

/// Mounted until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(what: &str, at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        mount(Some(what), at, Some(what), MsFlags::empty(), Some(options)).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The holder's file system cannot be frozen behind its limit, and need not be.
#[test]
fn a_snapshot_does_not_wait_for_a_fenced_holder() {
    let Some(lab) = Lab::new("a_snapshot_does_not_wait_for_a_fenced_holder", FsType::Ext4) else { return };
    let s = &lab.subject;
    let (id, n1, n2) = (s.create("v").id, s.register("n1"), s.register("n2"));
    s.attach(&id, &n1).unwrap();
    let Connected::Device { path, number, .. } = s.connect(&id, &n1, None).unwrap() else { panic!() };
    let at = tempfile::tempdir().unwrap();
    let host = LinuxHost::new(Effects::default());
    let fs = FsType::Ext4;
    let request = MountRequest { device: &path, number, fs, target: at.path(), read_only: false, flags: &[] };
    host.mount(&request).unwrap();
    s.backend.fence().unwrap().fence(&n1.id, None, "test", FenceHow::Enforce).unwrap().volumes.remove(0).proof.unwrap();
    // The frozen node goes on, and its file system has something to write back.
    let _ = std::fs::write(at.path().join("late"), vec![7; 1 << 20]);
    s.attach(&id, &n2).unwrap();
    s.connect(&id, &n2, None).unwrap();
    let taken = s.snapshot("s", &id);
    let cloned = s.ensure(&s.spec_from("c", VolumeSource::Volume(id.clone())));
    host.unmount(at.path()).unwrap();
    for node in [&n1, &n2] {
        s.disconnect(&id, node);
    }
    taken.unwrap();
    cloned.unwrap();
}

/// overlayfs over two file systems gives files another device number than their directories.
#[test]
fn loops_that_cannot_be_told_are_no_proof() {
    let test = "loops_that_cannot_be_told_are_no_proof";
    let scratch = match ScratchPool::new(FsType::Ext4, 1 << 30) {
        Ok(scratch) => scratch,
        Err(reason) => return println!("SKIPPED: {test}: {reason}"),
    };
    let upper = Mounted::new("tmpfs", &scratch.path().join("upper"), "size=512m");
    for name in [upper.0.join("u"), upper.0.join("w"), scratch.path().join("lower")] {
        std::fs::create_dir(name).unwrap();
    }
    let [low, up] = [scratch.path().join("lower"), upper.0.clone()].map(|path| path.display().to_string());
    let options = format!("lowerdir={low},upperdir={up}/u,workdir={up}/w");
    let merged = Mounted::new("overlay", &scratch.path().join("merged"), &options);
    let pool = Arc::new(open(&merged.0.join("pool"), Effects::default()));
    let another = pool.clone();
    let s = Subject {
        backend: pool.clone(),
        connector: pool,
        another: Box::new(move || another.clone()),
        write: conformance::backend::write_device(),
        set_image_bytes: Box::new(|id, _| panic!("no test here cuts {id}")),
        keep: Box::new(()),
    };
    let (id, n1) = (s.create("v").id, s.register("n1"));
    s.attach(&id, &n1).unwrap();
    let Connected::Device { path, .. } = s.connect(&id, &n1, None).unwrap() else { panic!() };
    let proof =
        s.backend.fence().unwrap().fence(&n1.id, None, "test", FenceHow::Enforce).unwrap().volumes.remove(0).proof;
    let host = LinuxHost::new(Effects::default());
    let device = host.loops().unwrap().into_iter().find(|device| device.path == path).unwrap();
    host.detach_loop(&device).unwrap();
    assert!(proof.is_err() || device.size_limit_bytes > 0, "{device:?} was never cut off: {proof:?}");
}

#[test]
fn a_pool_image_is_not_mounted_from_where_other_machines_have_it_too() {
    let test = "a_pool_image_is_not_mounted_from_where_other_machines_have_it_too";
    let scratch = match ScratchPool::new(FsType::Ext4, 1 << 30) {
        Ok(scratch) => scratch,
        Err(reason) => return println!("SKIPPED: {test}: {reason}"),
    };
    // Not known to be of one kernel alone, as NFS is known not to be.
    let strange = Mounted::new("ramfs", &scratch.path().join("strange"), "");
    let name = BackendName::parse("pool").unwrap();
    let config = PoolConfig { image_bytes: Some(400 << 20), ..PoolConfig::new(name, &strange.0) };
    let host = Arc::new(LinuxHost::new(Effects::default()));
    let message = refused(Pool::open(config, host, Effects::default()).map(drop), ErrorKind::FailedPrecondition);
    assert!(message.contains("several machines"), "{message}");
    assert!(!strange.0.join("pool.img").exists());
}

/// The fork of a btrfs has the UUID of the one that the fenced node still has mounted on this kernel.
#[test]
fn every_file_system_is_taken_over_beside_a_fenced_one() {
    let Some(lab) = Lab::new("every_file_system_is_taken_over_beside_a_fenced_one", FsType::Xfs) else { return };
    let s = &lab.subject;
    let host = LinuxHost::new(Effects::default());
    for fs in FsType::ALL {
        let name = format!("v-{fs}");
        let spec = VolumeSpec { kind: VolumeKind::FileSystem(fs), size: at_least(512 << 20), ..s.spec(&name) };
        let id = s.ensure(&spec).unwrap().id;
        let (n1, n2) = (s.register("n1"), s.register("n2"));
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mounted = |node: &NodeIdentity, at: &Path| {
            s.attach(&id, node).unwrap();
            let Connected::Device { path, number, .. } = s.connect(&id, node, None).unwrap() else { panic!() };
            host.mount(&MountRequest { device: &path, number, fs, target: at, read_only: false, flags: &[] })
        };
        mounted(&n1, old.path()).unwrap();
        let file = std::fs::File::create(old.path().join("kept")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 8192], 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        std::fs::File::open(old.path()).unwrap().sync_all().unwrap();
        let fence = s.backend.fence().unwrap();
        fence.fence(&n1.id, None, "test", FenceHow::Enforce).unwrap().volumes.remove(0).proof.unwrap();
        let taken = mounted(&n2, new.path());
        let read = std::fs::read(new.path().join("kept"));
        let written = std::fs::write(new.path().join("more"), [8; 8192]);
        let snapshot = s.snapshot(&format!("s-{fs}"), &id);
        let gone = host.unmount(new.path()).and(host.unmount(old.path()));
        for node in [&n1, &n2] {
            s.disconnect(&id, node);
        }
        s.detach(&id, Some(&n2)).unwrap();
        taken.unwrap_or_else(|e| panic!("{fs}: {}", e.chain()));
        assert_eq!(read.unwrap(), [7; 8192], "{fs}");
        written.unwrap_or_else(|e| panic!("{fs}: {e}"));
        gone.unwrap_or_else(|e| panic!("{fs}: {}", e.chain()));
        // What was written but not synced is in it too: the file system was frozen.
        let restored = spec_of_snapshot(s, &spec, &snapshot.unwrap().id, &format!("r-{fs}"));
        let id = s.ensure(&restored).unwrap().id;
        let n3 = s.register("n3");
        s.attach(&id, &n3).unwrap();
        let Connected::Device { path, number, .. } = s.connect(&id, &n3, None).unwrap() else { panic!() };
        let request = MountRequest { device: &path, number, fs, target: new.path(), read_only: false, flags: &[] };
        let mounted = host.mount(&request);
        let more = std::fs::read(new.path().join("more"));
        let gone = host.unmount(new.path());
        s.disconnect(&id, &n3);
        mounted.and(gone).unwrap_or_else(|e| panic!("{fs}: {}", e.chain()));
        assert_eq!(more.unwrap(), [8; 8192], "{fs}");
    }
}

fn spec_of_snapshot(s: &Subject, of: &VolumeSpec, snapshot: &SnapshotId, name: &str) -> VolumeSpec {
    VolumeSpec { kind: of.kind, ..s.spec_from(name, VolumeSource::Snapshot(snapshot.clone())) }
}

/// A mount namespace that no process is in any more keeps its mounts, and nobody can freeze them.
#[test]
fn what_is_mounted_out_of_reach_is_not_copied_piece_by_piece() {
    for below in [FsType::Ext4, FsType::Xfs] {
        let test = "what_is_mounted_out_of_reach_is_not_copied_piece_by_piece";
        let Some(lab) = Lab::new(test, below) else { return };
        let s = &lab.subject;
        let (id, n1) = (s.create("v").id, s.register("n1"));
        s.attach(&id, &n1).unwrap();
        let Connected::Device { path, number, .. } = s.connect(&id, &n1, None).unwrap() else { panic!() };
        let at = tempfile::tempdir().unwrap();
        let target = at.path().to_owned();
        let namespace = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let fs = FsType::Ext4;
            let request = MountRequest { device: &path, number, fs, target: &target, read_only: false, flags: &[] };
            LinuxHost::new(Effects::default()).mount(&request).unwrap();
            std::fs::File::open("/proc/thread-self/ns/mnt").unwrap()
        });
        let namespace = namespace.join().unwrap();
        let taken = s.snapshot("s", &id).map(drop);
        drop(namespace);
        match below {
            FsType::Ext4 => drop(refused(taken, ErrorKind::Unavailable)),
            // Cloned at one instant, it is what a power loss would have left.
            FsType::Xfs | FsType::Btrfs => taken.unwrap(),
        }
    }
}
