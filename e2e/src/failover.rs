//! The oracles of a failover: every acknowledged write is found by the new holder, none is acknowledged that began after
//! the fence returned, and what the fenced node wrote to does not change any more. Controls show that each is caught.

use crate::calls::{Access, MIB, Subject};
use crate::failure::{Context, Result, ensure};
use crate::lab::{Hawser, Lab, Options, PoolFs, entries};
use crate::missing_privilege;
use crate::report::Report;
use crate::scenario::make_directories;
use nix::time::{ClockId, clock_gettime};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Code;
use uuid::Uuid;

const OLD: &str = "n1";
const NEW: &str = "n2";
/// Long after everything that was queued when the node was frozen has been written or refused.
const AFTER_THAW: Duration = Duration::from_millis(1500);
const WRITTEN_DEADLINE: Duration = Duration::from_secs(30);

/// When the frozen node goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thaw {
    BeforeMove,
    AfterMove,
}

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("failover", &reason);
        return Ok(());
    }
    for access in [Access::Ext4, Access::Block] {
        for writers in [1, 32, 128] {
            for thaw in [Thaw::BeforeMove, Thaw::AfterMove] {
                report.test(&format!("failover-{access:?}-{writers}-writers-thaw-{thaw:?}"), || {
                    Trial::run(hawser, PoolFs::Xfs, access, writers, thaw)?.ensure_verified()
                });
            }
        }
        report.test(&format!("failover-control-{access:?}-without-fence-is-caught"), || unfenced(hawser, access));
    }
    // Raw block is refused on ext4, which has no reflink.
    for (pool, access) in [(PoolFs::Btrfs, Access::Ext4), (PoolFs::Btrfs, Access::Block), (PoolFs::Ext4, Access::Ext4)]
    {
        for thaw in [Thaw::BeforeMove, Thaw::AfterMove] {
            report.test(&format!("failover-{access:?}-on-{pool:?}-32-writers-thaw-{thaw:?}"), || {
                Trial::run(hawser, pool, access, 32, thaw)?.ensure_verified()
            });
        }
    }
    report.test("failover-control-tampered-ledger-is-caught", || tampered(hawser));
    Ok(())
}

/// An old node that writes and is frozen, and a new node that is to take over.
struct Frozen {
    lab: Lab,
    subject: Subject,
    nonce: Uuid,
    epoch: String,
    writers: u32,
    // Running until the checks are done; in the order in which they are to end.
    writer: Hawser,
    _recorder: Hawser,
    old: Hawser,
    new: Hawser,
}

/// What is left after a failover, for the checks.
struct Trial {
    frozen: Frozen,
    fence_ns: u64,
}

impl Frozen {
    fn begin(hawser: &Path, pool: PoolFs, access: Access, writers: u32) -> Result<Self> {
        let lab = Lab::new(hawser, pool, 2048)?;
        let subject = Subject { size_bytes: 64 * MIB, ..Subject::new("moving", access) };
        for node in [OLD, NEW] {
            make_directories(&lab, &subject, node)?;
        }
        let new = lab.start(&Options::node(NEW))?;
        let mut old = lab.spawn_command(&Options::node(OLD), &["serve", "--private-mounts"])?;
        old.wait_ready()?;
        new.client.call_until_done(&subject.create())?;
        let granted = new.client.call_until_done(&subject.attach(OLD))?;
        let epoch = granted.context.get("hawser.epoch").cloned().ok_or("the grant names no epoch")?;
        for call in [subject.stage(&lab, OLD), subject.publish(&lab, OLD)] {
            old.client.call_until_done(&call).context(|| format!("{call:?}"))?;
        }
        let nonce = Uuid::new_v4();
        let recorder = record(&lab)?;
        let namespace = ["--mount-namespace-of", &old.id().to_string()];
        let writer = write(&lab, &subject, OLD, nonce, &epoch, writers, &namespace)?;
        wait_for_acks(&lab, 4 * writers as usize)?;
        writer.freeze()?;
        old.freeze()?;
        Ok(Self { lab, subject, nonce, epoch, writers, writer, _recorder: recorder, old, new })
    }

    fn go_on(&self) -> Result<()> {
        self.writer.resume()?;
        self.old.resume()?;
        std::thread::sleep(AFTER_THAW);
        Ok(())
    }

    /// Checks the volume at `target` against the ledger.
    fn verify(&self, target: &str, ledger: &Path, fence_ns: u64, more: &[&str]) -> Result<()> {
        let (ledger, nonce) = (ledger.to_string_lossy(), self.nonce.to_string());
        let (fence_ns, at_least) = (fence_ns.to_string(), (4 * self.writers).to_string());
        let mut arguments = vec!["workload", "verify", "--target", target, "--ledger", &ledger, "--nonce", &nonce];
        arguments.extend(["--fenced-epoch", &self.epoch, "--fence-ns", &fence_ns, "--at-least", &at_least]);
        arguments.extend(more);
        self.lab.run(&Options::node(NEW), &arguments).map(drop)
    }
}

/// As if a fence had returned that did nothing: each oracle must see it. Nor does anybody get the volume without one.
fn unfenced(hawser: &Path, access: Access) -> Result<()> {
    let frozen = Frozen::begin(hawser, PoolFs::Xfs, access, 32)?;
    let refused = frozen.new.client.call_until_done(&frozen.subject.attach(NEW));
    ensure(refused.as_ref().is_err_and(|status| status.code() == Code::FailedPrecondition), || {
        format!("a grant without a fence: {refused:?}")
    })?;
    let (fence_ns, images) = (now_ns()?, Images::of(&frozen.lab, &frozen.subject)?);
    frozen.go_on()?;
    // Still, that the ledger can be compared with the volume.
    frozen.writer.freeze()?;
    let changed = images.ensure_unchanged("after the thaw", |_| true);
    ensure(changed.is_err(), || "no image changed, although its node went on writing".to_owned())?;
    let target = frozen.subject.target(&frozen.lab, OLD);
    let namespace = ["--mount-namespace-of", &frozen.old.id().to_string()];
    match frozen.verify(&target, &ledger(&frozen.lab), fence_ns, &namespace) {
        Ok(()) => Err("writes after a fence that did nothing were not noticed".into()),
        Err(failure) => ensure(failure.to_string().contains("late"), || format!("not for late writes: {failure}")),
    }
}

impl Trial {
    fn run(hawser: &Path, pool: PoolFs, access: Access, writers: u32, thaw: Thaw) -> Result<Self> {
        let frozen = Frozen::begin(hawser, pool, access, writers)?;
        let (lab, subject, new) = (&frozen.lab, &frozen.subject, &frozen.new);
        lab.run(&Options::node(NEW), &["fence", OLD])?;
        let fence_ns = now_ns()?;
        let images = Images::of(lab, subject)?;
        if thaw == Thaw::BeforeMove {
            frozen.go_on()?;
            images.ensure_unchanged("after the thaw, before the move", |_| true)?;
        }
        new.client.call_until_done(&subject.attach(NEW)).context(|| "the grant after the fence".to_owned())?;
        for call in [subject.stage(lab, NEW), subject.publish(lab, NEW)] {
            new.client.call_until_done(&call).context(|| format!("{call:?}"))?;
        }
        let epoch = (frozen.epoch.parse::<u64>().map_err(|error| error.to_string())? + 1).to_string();
        let mut second = write(lab, subject, NEW, frozen.nonce, &epoch, writers, &["--records", "4"])?;
        let ended = second.wait(WRITTEN_DEADLINE)?;
        ensure(ended.is_some_and(|status| status.success()), || {
            format!("the new holder's writers: {ended:?}: {}", second.last_lines())
        })?;
        if thaw == Thaw::AfterMove {
            frozen.go_on()?;
            images.ensure_unchanged("after the move and the thaw", |name| name.starts_with("orphan"))?;
        }
        Ok(Self { frozen, fence_ns })
    }

    fn ensure_verified(&self) -> Result<()> {
        self.verify(&ledger(&self.frozen.lab))
    }

    fn verify(&self, ledger: &Path) -> Result<()> {
        let target = self.frozen.subject.target(&self.frozen.lab, NEW);
        self.frozen.verify(&target, ledger, self.fence_ns, &[])
    }
}

/// The checker must refuse a ledger that was changed in any of these ways, and accept the same one unchanged.
fn tampered(hawser: &Path) -> Result<()> {
    let trial = Trial::run(hawser, PoolFs::Xfs, Access::Ext4, 4, Thaw::BeforeMove)?;
    trial.ensure_verified().context(|| "unchanged".to_owned())?;
    let text = std::fs::read_to_string(ledger(&trial.frozen.lab))?;
    let lines: Vec<&str> = text.lines().collect();
    // Its writer has later ones: that the last line of a writer is missing, nobody can know.
    let line = lines.first().copied().ok_or("the ledger is empty")?;
    let removed: Vec<&str> = lines.iter().copied().filter(|other| *other != line).collect();
    let forged = [
        ("an ack that never was", format!("{text}{}\n", line.replace("\"seq\":", "\"seq\":9"))),
        ("a line that is gone", removed.join("\n") + "\n"),
        (
            "another run's line",
            format!("{text}{}\n", line.replace(&trial.frozen.nonce.to_string(), &Uuid::new_v4().to_string())),
        ),
        ("a line cut off", text.trim_end().trim_end_matches('}').to_owned() + "\n"),
        ("the same line twice", format!("{text}{line}\n")),
        ("an empty ledger", String::new()),
    ];
    for (what, text) in forged {
        let path = trial.frozen.lab.path("run").join("forged");
        std::fs::write(&path, text)?;
        ensure(trial.verify(&path).is_err(), || format!("{what} was not noticed"))?;
    }
    Ok(())
}

/// The volume's images by name, with what is in them.
struct Images {
    directory: PathBuf,
    hashes: Vec<(String, u64)>,
}

impl Images {
    fn of(lab: &Lab, subject: &Subject) -> Result<Self> {
        let directory = lab.pool().join("volumes").join(subject.id());
        let mut hashes = Vec::new();
        for path in entries(&directory) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with("image") || name.starts_with("orphan") {
                hashes.push((name, hash(&path)?));
            }
        }
        ensure(!hashes.is_empty(), || format!("no image in {}", directory.display()))?;
        Ok(Self { directory, hashes })
    }

    fn ensure_unchanged(&self, when: &str, concerns: impl Fn(&str) -> bool) -> Result<()> {
        for (name, before) in self.hashes.iter().filter(|(name, _)| concerns(name)) {
            let now = hash(&self.directory.join(name))?;
            ensure(now == *before, || format!("{name} changed {when}"))?;
        }
        Ok(())
    }
}

fn hash(path: &Path) -> Result<u64> {
    let mut file = std::fs::File::open(path).context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.write(&buffer[..n]),
        }
    }
}

fn record(lab: &Lab) -> Result<Hawser> {
    let socket = recorder_socket(lab).to_string_lossy().into_owned();
    let ledger = ledger(lab).to_string_lossy().into_owned();
    let arguments = ["workload", "record", "--socket", &socket, "--ledger", &ledger];
    let recorder = lab.spawn_command(&Options::node("recorder"), &arguments)?;
    let end = Instant::now() + WRITTEN_DEADLINE;
    // The socket is there before it listens.
    while UnixStream::connect(&socket).is_err() {
        ensure(Instant::now() < end, || format!("the recorder does not listen: {}", recorder.last_lines()))?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(recorder)
}

fn write(
    lab: &Lab,
    subject: &Subject,
    node: &str,
    nonce: Uuid,
    epoch: &str,
    writers: u32,
    more: &[&str],
) -> Result<Hawser> {
    let target = subject.target(lab, node);
    let recorder = recorder_socket(lab).to_string_lossy().into_owned();
    let (nonce, writers) = (nonce.to_string(), writers.to_string());
    let mut arguments = vec!["workload", "write", "--target", &target, "--recorder", &recorder, "--nonce", &nonce];
    // Eight regions of these must fit a raw volume.
    arguments.extend(["--epoch", epoch, "--writers", &writers, "--slots", "1024"]);
    arguments.extend(more);
    lab.spawn_command(&Options::node(&format!("writer-{node}")), &arguments)
}

fn wait_for_acks(lab: &Lab, count: usize) -> Result<()> {
    let end = Instant::now() + WRITTEN_DEADLINE;
    loop {
        let acks = std::fs::read_to_string(ledger(lab)).unwrap_or_default().lines().count();
        if acks >= count {
            return Ok(());
        }
        ensure(Instant::now() < end, || format!("only {acks} of {count} records were acknowledged in time"))?;
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ledger(lab: &Lab) -> PathBuf {
    lab.path("run").join("ledger")
}

fn recorder_socket(lab: &Lab) -> PathBuf {
    lab.path("run").join("recorder.sock")
}

/// The clock that the writers' acks carry.
fn now_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|errno| errno.to_string())?;
    let number = |part: i64| u64::try_from(part).map_err(|error| error.to_string());
    Ok(number(now.tv_sec())? * 1_000_000_000 + number(now.tv_nsec())?)
}
