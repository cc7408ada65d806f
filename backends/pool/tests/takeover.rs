//! Crashes and pauses at every effect of a grant, a connection, a detach and a fence, while another node takes over.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Lab, device, open};
use conformance::backend::lock;
use host::Effects;
use pool::Pool;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;
use volume::{
    Attach, AttachRequest, ConnectRequest, Connector, ErrorKind, Fence, FenceHow, FsType, NodeIdentity, Result,
    VolumeId,
};

const ACTOR: &str = "test";
const MARK: &[u8; 4096] = &[0x5a; 4096];

/// One call of a node or a controller, on the pool that it is given.
type Call = fn(&Pool, &VolumeId, &NodeIdentity) -> Result<()>;

fn attach(pool: &Pool, id: &VolumeId, node: &NodeIdentity) -> Result<()> {
    let request = AttachRequest { volume: id, node: &node.id, read_only: false };
    Attach::attach(pool, &lock(id.as_str()), &request).map(drop)
}

fn detach(pool: &Pool, id: &VolumeId, node: &NodeIdentity) -> Result<()> {
    pool.detach(&lock(id.as_str()), id, Some(&node.id))
}

fn connect(pool: &Pool, id: &VolumeId, node: &NodeIdentity) -> Result<()> {
    let request = ConnectRequest { volume: id, node, read_only: false, context: None };
    pool.connect(&lock(id.as_str()), &request).map(drop)
}

fn fence(pool: &Pool, id: &VolumeId, node: &NodeIdentity) -> Result<()> {
    let report = Fence::fence(pool, &node.id, None, ACTOR, FenceHow::Enforce)?;
    report.volumes.into_iter().filter(|outcome| outcome.volume == *id).try_for_each(|outcome| outcome.proof.map(drop))
}

/// A volume that n1 holds and has connected, with a mark that it wrote.
fn held(lab: &Lab, name: &str) -> (VolumeId, NodeIdentity) {
    let s = &lab.subject;
    let volume = s.create(name);
    let n1 = s.register(&format!("n1-{name}"));
    let context = s.attach(&volume.id, &n1).unwrap();
    let path = device(s.connect(&volume.id, &n1, Some(&context)).unwrap());
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(MARK, 32 << 20).unwrap();
    file.sync_all().unwrap();
    (volume.id, n1)
}

/// n2 has the volume, its device works, and nobody else can write to the image.
fn assert_taken_over(lab: &Lab, id: &VolumeId, n2: &NodeIdentity, at: &str) {
    let held = lab.subject.find(id).attachment.unwrap_or_else(|| panic!("{at}: nobody holds it"));
    assert_eq!((&held.holder.node, held.proof), (&n2.id, None), "{at}");
    let image = lab.image(id);
    let open: Vec<_> = lab.loops_of(&image).into_iter().filter(|d| d.size_limit_bytes == 0).collect();
    assert_eq!(open.len(), 1, "{at}: {open:?}");
    assert!(open[0].label.contains(&format!("@{}#", held.epoch)), "{at}: {open:?}");
    let mut mark = [0u8; 4096];
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&open[0].path).unwrap();
    file.read_exact_at(&mut mark, 32 << 20).unwrap();
    file.write_all_at(&[7; 4096], 33 << 20).unwrap_or_else(|e| panic!("{at}: the successor cannot write: {e}"));
    file.sync_all().unwrap_or_else(|e| panic!("{at}: the successor cannot write: {e}"));
    assert!(lab.files(id, "orphan.").len() <= 1, "{at}: forked twice");
}

fn clean_up(lab: &Lab, id: &VolumeId, nodes: [&NodeIdentity; 2]) {
    for node in nodes {
        lab.subject.disconnect(id, node);
    }
    lab.subject.detach(id, Some(nodes[1])).unwrap();
    lab.subject.delete(id).unwrap();
}

#[test]
fn a_fence_that_crashed_after_any_effect_is_finished_by_the_next() {
    for fs in FsType::ALL {
        let Some(lab) = Lab::new("a_fence_that_crashed", fs) else { return };
        for crash_at in 1.. {
            let (id, n1) = held(&lab, &format!("v{crash_at}"));
            let armed = Arc::new(AtomicBool::new(false));
            let crashed = Arc::new(AtomicBool::new(false));
            let crash = Arc::clone(&crashed);
            let crashing = after(crash_at, &armed, move || {
                crash.store(true, Ordering::SeqCst);
                resume_unwind(Box::new("crash"));
            });
            let crashing = open(&lab.directory, crashing);
            armed.store(true, Ordering::SeqCst);
            // A crash on a thread of its own shows up as an error.
            let _ = catch_unwind(AssertUnwindSafe(|| fence(&crashing, &id, &n1)));
            let finished = !crashed.load(Ordering::SeqCst);
            let at = format!("{fs}, ended after effect {crash_at}");
            let n2 = lab.subject.register("n2");
            match lab.subject.attach(&id, &n2) {
                Ok(_) => assert!(lab.subject.find(&id).epoch.0 == 2, "{at}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Held, "{at}: {}", error.chain());
                    fence(&open(&lab.directory, Effects::default()), &id, &n1).unwrap();
                    lab.subject.attach(&id, &n2).unwrap();
                }
            }
            lab.subject.connect(&id, &n2, None).unwrap();
            fence(&open(&lab.directory, Effects::default()), &id, &n1).unwrap();
            lab.subject.backend.fence().unwrap().remove_orphans(None).unwrap();
            let mut mark = [0u8; 4096];
            std::fs::File::open(lab.image(&id)).unwrap().read_exact_at(&mut mark, 32 << 20).unwrap();
            assert_eq!(&mark, MARK, "{at}: what was acknowledged is lost");
            assert_taken_over(&lab, &id, &n2, &at);
            clean_up(&lab, &id, [&n1, &n2]);
            if finished {
                assert!(crash_at > 5, "{fs}: a fence has only {crash_at} effects");
                break;
            }
        }
    }
}

/// The actor sleeps after an effect; n1 is fenced and n2 takes the volume and connects it; the actor goes on.
#[test]
fn an_actor_that_slept_through_a_takeover_changes_nothing() {
    let calls: [(&str, Call, &[Call]); 5] = [
        ("attach", attach, &[]),
        ("connect", connect, &[attach]),
        ("detach", detach, &[attach]),
        ("refused-detach", detach, &[attach, connect]),
        ("fence", fence, &[attach, connect]),
    ];
    for fs in [FsType::Ext4, FsType::Xfs] {
        let Some(lab) = Lab::new("an_actor_that_slept", fs) else { return };
        for (name, call, before) in calls {
            for pause_at in 1.. {
                let at = format!("{fs}, {name} asleep after effect {pause_at}");
                let s = &lab.subject;
                let (id, n1) = (s.create(&format!("{name}{pause_at}")).id, s.register("n1"));
                let quiet = open(&lab.directory, Effects::default());
                for step in before {
                    step(&quiet, &id, &n1).unwrap();
                }
                let (armed, sleep) = (Arc::new(AtomicBool::new(false)), Sleep::new());
                let actor = open(&lab.directory, after(pause_at, &armed, sleep.point()));
                armed.store(true, Ordering::SeqCst);
                let (slept, n2) = std::thread::scope(|scope| {
                    let ended = scope.spawn(|| {
                        let ended = call(&actor, &id, &n1);
                        sleep.ended();
                        ended
                    });
                    let slept = sleep.wait();
                    fence(&quiet, &id, &n1).unwrap_or_else(|e| panic!("{at}: {}", e.chain()));
                    let n2 = s.register("n2");
                    s.attach(&id, &n2).unwrap_or_else(|e| panic!("{at}: {}", e.chain()));
                    s.connect(&id, &n2, None).unwrap_or_else(|e| panic!("{at}: {}", e.chain()));
                    sleep.wake();
                    let ended = ended.join().unwrap();
                    if slept && name == "connect" {
                        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Held, "{at}");
                    }
                    (slept, n2)
                });
                assert_taken_over(&lab, &id, &n2, &at);
                clean_up(&lab, &id, [&n1, &n2]);
                if !slept {
                    break;
                }
            }
        }
    }
}

#[test]
fn fencers_and_connections_race() {
    for fs in [FsType::Ext4, FsType::Xfs] {
        let Some(lab) = Lab::new("fencers_and_connections_race", fs) else { return };
        for round in 0..25 {
            let s = &lab.subject;
            let (id, n1, n2) = (s.create(&format!("v{round}")).id, s.register("n1"), s.register("n2"));
            s.attach(&id, &n1).unwrap();
            let start = Barrier::new(4);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        let pool = open(&lab.directory, Effects::default());
                        start.wait();
                        fence(&pool, &id, &n1).unwrap();
                    });
                }
                scope.spawn(|| {
                    let pool = open(&lab.directory, Effects::default());
                    start.wait();
                    if round % 2 == 0 {
                        std::thread::sleep(Duration::from_micros(300 * round));
                    }
                    if let Err(error) = connect(&pool, &id, &n1) {
                        assert!(matches!(error.kind(), ErrorKind::Held), "{}", error.chain());
                    }
                });
                scope.spawn(|| {
                    start.wait();
                    while let Err(error) = s.attach(&id, &n2) {
                        assert!(matches!(error.kind(), ErrorKind::Held | ErrorKind::Busy), "{}", error.chain());
                    }
                });
            });
            s.connect(&id, &n2, None).unwrap();
            assert_taken_over(&lab, &id, &n2, &format!("{fs}, round {round}"));
            clean_up(&lab, &id, [&n1, &n2]);
        }
    }
}

/// Runs `act` after the nth effect since it was armed.
fn after(n: u64, armed: &Arc<AtomicBool>, act: impl Fn() + Send + Sync + 'static) -> Effects {
    let (armed, seen) = (Arc::clone(armed), AtomicU64::new(0));
    Effects::with_action(move |_, _| {
        if armed.load(Ordering::SeqCst) && seen.fetch_add(1, Ordering::SeqCst) + 1 == n {
            act();
        }
    })
}

/// A place where one thread sleeps until another wakes it.
struct Sleep {
    told: Sender<bool>,
    tells: Mutex<Receiver<bool>>,
    wakes: Sender<()>,
    woken: Arc<Mutex<Receiver<()>>>,
}

impl Sleep {
    fn new() -> Self {
        let ((told, tells), (wakes, woken)) = (channel(), channel());
        Self { told, tells: Mutex::new(tells), wakes, woken: Arc::new(Mutex::new(woken)) }
    }

    fn point(&self) -> impl Fn() + Send + Sync + 'static {
        let (told, woken) = (self.told.clone(), Arc::clone(&self.woken));
        move || {
            told.send(true).unwrap();
            woken.lock().unwrap().recv().unwrap();
        }
    }

    fn ended(&self) {
        self.told.send(false).unwrap();
    }

    /// Whether the thread sleeps; it ended otherwise.
    fn wait(&self) -> bool {
        self.tells.lock().unwrap().recv().unwrap()
    }

    fn wake(&self) {
        self.wakes.send(()).unwrap();
    }
}
