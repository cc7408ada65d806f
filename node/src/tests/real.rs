//! The node over the real kernel and the file pool: every kind on every pool, writes that come back, a crash after every
//! effect, growth, and nothing left behind.

use super::{Volume, at, capability, lock};
use crate::publish::PublishRequest;
use crate::stage::StageRequest;
use crate::{NodeConfig, NodeService};
use conformance::scratch::ScratchPool;
use host::{Effects, Host, LinuxHost};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pool::{Pool, PoolConfig};
use rpc::{Metrics, Profile, Runtime, Trace};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, set_hook, take_hook};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;
use volume::{
    AccessMode, Attach, AttachRequest, Attacher, Backend, BackendName, Expand, Fence, FenceHow, FsType, LockTable,
    NodeId, Parameters, Result, SizeRange, TopologyRequirement, VolumeId, VolumeKind, VolumeName, VolumeSpec,
};

const KINDS: [VolumeKind; 5] = [
    VolumeKind::FileSystem(FsType::Ext4),
    VolumeKind::FileSystem(FsType::Xfs),
    VolumeKind::FileSystem(FsType::Btrfs),
    VolumeKind::Block,
    VolumeKind::Directory,
];
const NODE: &str = "n1";
const MIB: u64 = 1 << 20;

/// What a crash throws.
struct Crash;

/// A pool and a node with their directories. The last field is dropped last.
struct Real {
    pool: Arc<Pool>,
    service: NodeService,
    /// Effects until a crash; 0: none.
    left: Arc<AtomicU64>,
    scratch: ScratchPool,
}

impl Real {
    fn new(fs: FsType) -> Result<Self, String> {
        private_mounts().map_err(|errno| format!("no mount namespace of its own: {errno}"))?;
        let scratch = ScratchPool::new(fs, 4 << 30)?;
        for directory in ["state", "staging", "targets"] {
            std::fs::create_dir(scratch.path().join(directory)).unwrap();
        }
        let (pool, service, left) = open(&scratch);
        let real = Self { pool, service, left, scratch };
        real.service.register().unwrap();
        Ok(real)
    }

    /// As after a crash of the process.
    fn restart(&mut self) {
        (self.pool, self.service, self.left) = open(&self.scratch);
        self.service.register().unwrap();
        let report = self.service.reconcile().unwrap();
        assert!(report.leftovers.is_empty(), "{report:?}");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn attached(&self, name: &str, kind: VolumeKind) -> Result<Volume> {
        let name = VolumeName::parse(name).unwrap();
        let id = VolumeId::of_name(self.pool.name(), &name);
        let size = SizeRange { required_bytes: Some(512 * MIB), limit_bytes: None };
        let topology = TopologyRequirement::default();
        let parameters = Parameters::default();
        let spec = VolumeSpec {
            id: id.clone(),
            name,
            size,
            kind,
            source: None,
            parameters,
            mutable: Default::default(),
            topology,
        };
        self.pool.ensure_volume(&lock(&id), &spec)?;
        let node = NodeId::parse(NODE).unwrap();
        let request = AttachRequest { volume: &id, node: &node, read_only: false };
        let context = Some(Attach::attach(self.pool.as_ref(), &lock(&id), &request)?);
        Ok(Volume { id, context, capability: capability(kind), is_read_only: false })
    }

    fn stage(&self, volume: &Volume) -> Result<()> {
        let request = StageRequest {
            volume: volume.id.clone(),
            context: volume.context.clone(),
            staging_target_path: at(&self.text("staging/a")),
            capability: volume.capability.clone(),
            parameters: None,
        };
        self.service.node.stage(&lock(&volume.id), &request, &mut Trace::new())
    }

    fn publish(&self, volume: &Volume) -> Result<()> {
        let request = PublishRequest {
            volume: volume.id.clone(),
            context: volume.context.clone(),
            staging_target_path: Some(at(&self.text("staging/a"))),
            target_path: at(&self.text("targets/a")),
            capability: volume.capability.clone(),
            is_read_only: volume.is_read_only,
            parameters: None,
        };
        self.service.node.publish(&lock(&volume.id), &request, &mut Trace::new())
    }

    fn unpublish(&self, id: &VolumeId) -> Result<()> {
        self.service.node.unpublish(&lock(id), id, &at(&self.text("targets/a")), &mut Trace::new())
    }

    fn unstage(&self, id: &VolumeId) -> Result<()> {
        self.service.node.unstage(&lock(id), id, &at(&self.text("staging/a")), &mut Trace::new())
    }

    /// Where a workload of this kind writes.
    fn file(&self, kind: VolumeKind) -> PathBuf {
        if kind == VolumeKind::Block { self.path("targets/a") } else { self.path("targets/a/file") }
    }

    /// What is mounted or connected of volumes, and what is in the directories.
    fn state(&self) -> Vec<String> {
        let root = self.scratch.path().to_str().unwrap().to_owned();
        let host = LinuxHost::new(Effects::default());
        let mut lines = Vec::new();
        for entry in host.mounts().unwrap() {
            if let Ok(below) = entry.mounted_at.strip_prefix(&root)
                && !below.as_os_str().is_empty()
            {
                lines.push(format!("{} {} {}", below.display(), entry.fs_type, entry.read_only));
            }
        }
        let connected = volume::Connector::observe_all(self.pool.as_ref()).unwrap();
        lines.extend(connected.into_iter().map(|(id, _)| format!("connected {id}")));
        for directory in ["targets", "staging", "state/journal"] {
            for entry in std::fs::read_dir(self.path(directory)).unwrap() {
                lines.push(format!("{directory}/{}", entry.unwrap().file_name().display()));
            }
        }
        lines.sort();
        lines
    }
}

/// Other tests on this machine make mount namespaces too, and each would have a copy of our mounts for a while.
fn private_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

/// A test that failed leaves mounts, which would keep the scratch file system busy.
impl Drop for Real {
    fn drop(&mut self) {
        let host = LinuxHost::new(Effects::default());
        let is_below = |path: &std::path::Path| path.starts_with(self.scratch.path()) && path != self.scratch.path();
        for entry in host.mounts().unwrap_or_default().into_iter().rev() {
            if is_below(&entry.mounted_at)
                && let Err(error) = host.unmount(&entry.mounted_at)
            {
                eprintln!("{} stays mounted: {}", entry.mounted_at.display(), error.chain());
            }
        }
    }
}

fn open(scratch: &ScratchPool) -> (Arc<Pool>, NodeService, Arc<AtomicU64>) {
    let left = Arc::new(AtomicU64::new(0));
    let armed = left.clone();
    let effects = Effects::with_action(move |_, _| {
        if armed.load(Ordering::SeqCst) > 0 && armed.fetch_sub(1, Ordering::SeqCst) == 1 {
            panic_any(Crash);
        }
    });
    let host = Arc::new(LinuxHost::new(effects.clone()));
    let (name, node_id) = (BackendName::parse("pool").unwrap(), NodeId::parse(NODE).unwrap());
    let config =
        PoolConfig { node: Some(node_id.clone()), ..PoolConfig::new(name.clone(), scratch.path().join("pool")) };
    let pool = Arc::new(Pool::open(config, host.clone(), effects.clone()).unwrap());
    let service = NodeService::new(NodeConfig {
        node_id,
        connectors: vec![(name, pool.clone())],
        host,
        locks: LockTable::default(),
        profile: Profile::Kubernetes,
        attacher: Attacher::Controller,
        state_dir: scratch.path().join("state"),
        effects,
        io_limit_cgroups: Vec::new(),
        runtime: Runtime::new(Metrics::new(), Duration::from_secs(60)),
        step_deadline: Duration::from_secs(60),
    })
    .unwrap();
    (pool, service, left)
}

fn on_each_pool(test: &str, body: impl Fn(FsType, Real)) {
    for fs in FsType::ALL {
        match Real::new(fs) {
            Ok(real) => body(fs, real),
            Err(reason) => println!("SKIPPED: {test} on {fs}: {reason}"),
        }
    }
}

#[test]
fn volumes_are_written_given_back_and_found_again() {
    on_each_pool("volumes_are_written_given_back_and_found_again", |fs, real| {
        let clean = real.state();
        for kind in KINDS {
            let Ok(volume) = real.attached(&kind.to_string(), kind) else {
                // A pool without reflink takes no raw volumes, since it could not fence them.
                assert!(kind == VolumeKind::Block && fs == FsType::Ext4, "{kind} on {fs}");
                continue;
            };
            let step = |result: Result<()>| result.unwrap_or_else(|e| panic!("{kind} on {fs}: {}", e.chain()));
            for round in 0..2 {
                step(real.stage(&volume));
                step(real.stage(&volume));
                step(real.publish(&volume));
                step(real.publish(&volume));
                let found = std::fs::read(real.file(kind)).unwrap_or_default();
                if round == 0 {
                    std::fs::write(real.file(kind), vec![7; 4096]).unwrap();
                } else {
                    assert_eq!(&found[..4096], [7; 4096], "{kind} on {fs}");
                }
                let path = at(&real.text("targets/a"));
                real.service.node.volume_stats(&volume.id, &path, &mut Trace::new()).unwrap();
                if kind != VolumeKind::Directory {
                    assert!(real.unstage(&volume.id).is_err(), "{kind} on {fs} is published");
                }
                step(real.unpublish(&volume.id));
                step(real.unpublish(&volume.id));
                step(real.unstage(&volume.id));
                step(real.unstage(&volume.id));
                let _ = std::fs::remove_dir(real.path("staging/a"));
                assert_eq!(real.state(), clean, "{kind} on {fs}");
            }
        }
    });
}

#[test]
fn read_only_volumes_are_read_only() {
    on_each_pool("read_only_volumes_are_read_only", |fs, real| {
        for kind in KINDS {
            let Ok(volume) = real.attached(&kind.to_string(), kind) else { continue };
            let volume = match kind {
                VolumeKind::Directory => Volume { is_read_only: true, ..volume },
                _ => volume.mode(AccessMode::SingleNodeReaderOnly),
            };
            for _ in 0..2 {
                real.stage(&volume).unwrap();
                real.publish(&volume).unwrap();
            }
            assert!(std::fs::write(real.file(kind), "no").is_err(), "{kind} on {fs}");
            real.unpublish(&volume.id).unwrap();
            real.unstage(&volume.id).unwrap();
        }
    });
}

#[test]
fn a_crash_after_every_effect() {
    silence_crashes();
    type Call = fn(&Real, &Volume) -> Result<()>;
    const CALLS: [Call; 4] = [
        |real, volume| real.stage(volume),
        |real, volume| real.publish(volume),
        |real, volume| real.unpublish(&volume.id),
        |real, volume| real.unstage(&volume.id),
    ];
    let mut real = match Real::new(FsType::Xfs) {
        Ok(real) => real,
        Err(reason) => return println!("SKIPPED: a_crash_after_every_effect: {reason}"),
    };
    let clean = real.state();
    for kind in [VolumeKind::FileSystem(FsType::Ext4), VolumeKind::Block, VolumeKind::Directory] {
        let volume = real.attached(&kind.to_string(), kind).unwrap();
        for (index, call) in CALLS.into_iter().enumerate() {
            let mut expected = None;
            // 0 is the undisturbed run.
            for effect in 0.. {
                let what = format!("call {index} of {kind}, crash after effect {effect}");
                CALLS[..index].iter().for_each(|before| before(&real, &volume).unwrap());
                real.left.store(effect, Ordering::SeqCst);
                let run = catch_unwind(AssertUnwindSafe(|| call(&real, &volume)));
                let is_crash = run.is_err();
                if is_crash {
                    real.restart();
                    call(&real, &volume).unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
                }
                real.left.store(0, Ordering::SeqCst);
                let state = real.state();
                assert_eq!(*expected.get_or_insert_with(|| state.clone()), state, "{what}");
                real.unpublish(&volume.id).unwrap();
                real.unstage(&volume.id).unwrap();
                let _ = std::fs::remove_dir(real.path("staging/a"));
                assert_eq!(real.state(), clean, "{what}");
                if effect > 0 && !is_crash {
                    break;
                }
            }
        }
    }
}

#[test]
fn growth_while_mounted_and_when_staged() {
    on_each_pool("growth_while_mounted_and_when_staged", |fs, real| {
        for kind in KINDS.into_iter().filter(|kind| matches!(kind, VolumeKind::FileSystem(_))) {
            let volume = real.attached(&kind.to_string(), kind).unwrap();
            let total = || LinuxHost::new(Effects::default()).stats(&real.path("staging/a")).unwrap().total_bytes;
            real.stage(&volume).unwrap();
            let before = total();
            let size = SizeRange { required_bytes: Some(1024 * MIB), limit_bytes: None };
            Expand::expand(real.pool.as_ref(), &lock(&volume.id), &volume.id, size).unwrap();
            let request = crate::expand::ExpandRequest {
                volume: volume.id.clone(),
                volume_path: at(&real.text("staging/a")),
                staging_target_path: None,
                size,
                capability: None,
            };
            match real.service.node.expand(&lock(&volume.id), &request, &mut Trace::new()) {
                Ok(bytes) => assert_eq!(bytes, 1024 * MIB),
                // Without CAP_SYS_RESOURCE it grows when it is staged again.
                Err(error) => assert!(error.chain().contains("CAP_SYS_RESOURCE"), "{}", error.chain()),
            }
            real.unstage(&volume.id).unwrap();
            real.stage(&volume).unwrap();
            assert!(total() > before + 400 * MIB, "{kind} on {fs}: {before} bytes, then {}", total());
            real.unstage(&volume.id).unwrap();
        }
    });
}

#[test]
fn a_fenced_node_comes_back_clean() {
    on_each_pool("a_fenced_node_comes_back_clean", |fs, real| {
        for kind in KINDS {
            let Ok(volume) = real.attached(&kind.to_string(), kind) else { continue };
            real.stage(&volume).unwrap();
            real.publish(&volume).unwrap();
            let earlier = real.service.identity().unwrap();
            let report =
                Fence::fence(real.pool.as_ref(), &NodeId::parse(NODE).unwrap(), None, "test", FenceHow::Enforce)
                    .unwrap();
            assert!(report.volumes.iter().all(|one| one.proof.is_ok()), "{kind} on {fs}: {report:?}");
            if kind != VolumeKind::Directory {
                assert!(real.publish(&volume).is_err(), "{kind} on {fs}");
            }
            real.service.register().unwrap_or_else(|error| panic!("{kind} on {fs}: {}", error.chain()));
            assert_ne!(real.service.identity().unwrap().incarnation, earlier.incarnation);
            let left: Vec<_> = real.state().into_iter().filter(|line| !line.starts_with("staging/a")).collect();
            assert!(left.iter().all(|line| line == "targets/a"), "{kind} on {fs}: {left:?}");
            let again = real.attached(&kind.to_string(), kind).unwrap();
            real.stage(&again).unwrap();
            real.publish(&again).unwrap();
            real.unpublish(&again.id).unwrap();
            real.unstage(&again.id).unwrap();
        }
    });
}

/// As on a node with thousands of pods, whose paths have what the kernel escapes, and more mounts come and go meanwhile.
#[test]
fn a_crowded_mount_table() {
    let real = match Real::new(FsType::Xfs) {
        Ok(real) => real,
        Err(reason) => return println!("SKIPPED: a_crowded_mount_table: {reason}"),
    };
    let crowd = tempfile::tempdir().unwrap();
    let none = None::<&str>;
    mount(Some("none"), crowd.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let odd = crowd.path().join("a b\tc\nd\\e#f\\040[0],ro - ext4");
    std::fs::create_dir(&odd).unwrap();
    for n in 0..5_000 {
        // Stacked ones are as many lines of the table.
        let target = if n % 2 == 0 { odd.clone() } else { crowd.path().join(format!("pod {n}")) };
        std::fs::create_dir_all(&target).unwrap();
        mount(Some(&odd), &target, none, MsFlags::MS_BIND, none).unwrap();
    }
    let mounts = LinuxHost::new(Effects::default()).mounts().unwrap();
    assert!(mounts.len() > 5_000 && mounts.iter().any(|entry| entry.mounted_at == odd), "{}", mounts.len());
    let clean = real.state();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            // It ends also when the other thread panics.
            for _ in 0..5_000 {
                mount(Some(&odd), &odd, none, MsFlags::MS_BIND, none).unwrap();
                nix::mount::umount2(&odd, nix::mount::MntFlags::MNT_DETACH).unwrap();
                std::thread::sleep(Duration::from_millis(1));
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        for kind in [VolumeKind::FileSystem(FsType::Ext4), VolumeKind::Block] {
            let volume = real.attached(&kind.to_string(), kind).unwrap();
            real.stage(&volume).unwrap();
            real.publish(&volume).unwrap();
            std::fs::write(real.file(kind), vec![7; 4096]).unwrap();
            real.unpublish(&volume.id).unwrap();
            real.unstage(&volume.id).unwrap();
            let _ = std::fs::remove_dir(real.path("staging/a"));
        }
        stop.store(true, Ordering::SeqCst);
        churn.join().unwrap();
    });
    assert_eq!(real.state(), clean);
    nix::mount::umount2(crowd.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

/// The crashes that are asked for say nothing on stderr.
fn silence_crashes() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !panic.payload().is::<Crash>() {
                usual(panic);
            }
        }));
    });
}
