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
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    Enforced,
    /// The administrator asserts a power-off that did not happen: nothing is cut off.
    Off,
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
                    Trial::run(hawser, PoolFs::Xfs, access, writers, thaw, Fence::Enforced)?.ensure_verified()
                });
            }
        }
        report.test(&format!("failover-control-{access:?}-without-fence-is-caught"), || {
            let caught = Trial::run(hawser, PoolFs::Xfs, access, 32, Thaw::BeforeMove, Fence::Off)
                .and_then(|t| t.ensure_verified());
            ensure(caught.is_err(), || "a failover without a fence passed".to_owned())
        });
    }
    // Raw block is refused on ext4, which has no reflink.
    for (pool, access) in [(PoolFs::Btrfs, Access::Ext4), (PoolFs::Btrfs, Access::Block), (PoolFs::Ext4, Access::Ext4)]
    {
        for thaw in [Thaw::BeforeMove, Thaw::AfterMove] {
            report.test(&format!("failover-{access:?}-on-{pool:?}-32-writers-thaw-{thaw:?}"), || {
                Trial::run(hawser, pool, access, 32, thaw, Fence::Enforced)?.ensure_verified()
            });
        }
    }
    report.test("failover-control-tampered-ledger-is-caught", || tampered(hawser));
    Ok(())
}

/// What is left after a failover, for the checks.
struct Trial {
    lab: Lab,
    subject: Subject,
    nonce: Uuid,
    fence_ns: u64,
    fenced_epoch: String,
    writers: u32,
    // Running until the checks are done; in the order in which they are to end.
    _writer: Hawser,
    _recorder: Hawser,
    _old: Hawser,
    _new: Hawser,
}

impl Trial {
    fn run(hawser: &Path, pool: PoolFs, access: Access, writers: u32, thaw: Thaw, fence: Fence) -> Result<Self> {
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
        let fenced_epoch = granted.context.get("hawser.epoch").cloned().ok_or("the grant names no epoch")?;
        for call in [subject.stage(&lab, OLD), subject.publish(&lab, OLD)] {
            old.client.call_until_done(&call).context(|| format!("{call:?}"))?;
        }
        let nonce = Uuid::new_v4();
        let recorder = record(&lab)?;
        let writer = write(
            &lab,
            &subject,
            OLD,
            nonce,
            &fenced_epoch,
            writers,
            &["--mount-namespace-of", &old.id().to_string()],
        )?;
        wait_for_acks(&lab, 4 * writers as usize)?;
        writer.freeze()?;
        old.freeze()?;
        let arguments: &[&str] = if fence == Fence::Off { &["fence", OLD, "--powered-off"] } else { &["fence", OLD] };
        lab.run(&Options::node(NEW), arguments)?;
        let fence_ns = now_ns()?;
        let images = Images::of(&lab, &subject)?;
        if thaw == Thaw::BeforeMove {
            go_on(&old, &writer)?;
            if fence == Fence::Enforced {
                images.ensure_unchanged("after the thaw, before the move", |_| true)?;
            }
        }
        new.client.call_until_done(&subject.attach(NEW)).context(|| "the grant after the fence".to_owned())?;
        for call in [subject.stage(&lab, NEW), subject.publish(&lab, NEW)] {
            new.client.call_until_done(&call).context(|| format!("{call:?}"))?;
        }
        let epoch = (fenced_epoch.parse::<u64>().map_err(|error| error.to_string())? + 1).to_string();
        let mut second = write(&lab, &subject, NEW, nonce, &epoch, writers, &["--records", "4"])?;
        let ended = second.wait(WRITTEN_DEADLINE)?;
        ensure(ended.is_some_and(|status| status.success()), || {
            format!("the new holder's writers: {ended:?}: {}", second.last_lines())
        })?;
        if thaw == Thaw::AfterMove {
            go_on(&old, &writer)?;
            images.ensure_unchanged("after the move and the thaw", |name| name.starts_with("orphan"))?;
        }
        Ok(Self {
            lab,
            subject,
            nonce,
            fence_ns,
            fenced_epoch,
            writers,
            _writer: writer,
            _recorder: recorder,
            _old: old,
            _new: new,
        })
    }

    fn ensure_verified(&self) -> Result<()> {
        self.verify(&ledger(&self.lab))
    }

    fn verify(&self, ledger: &Path) -> Result<()> {
        let target = self.subject.target(&self.lab, NEW);
        let arguments = [
            "workload",
            "verify",
            "--target",
            &target,
            "--ledger",
            &ledger.to_string_lossy(),
            "--nonce",
            &self.nonce.to_string(),
            "--fenced-epoch",
            &self.fenced_epoch,
            "--fence-ns",
            &self.fence_ns.to_string(),
            "--at-least",
            &(8 * self.writers).to_string(),
        ];
        self.lab.run(&Options::node(NEW), &arguments).map(drop)
    }
}

/// The checker must refuse a ledger that was changed in any of these ways, and accept the same one unchanged.
fn tampered(hawser: &Path) -> Result<()> {
    let trial = Trial::run(hawser, PoolFs::Xfs, Access::Ext4, 4, Thaw::BeforeMove, Fence::Enforced)?;
    trial.ensure_verified().context(|| "unchanged".to_owned())?;
    let text = std::fs::read_to_string(ledger(&trial.lab))?;
    let lines: Vec<&str> = text.lines().collect();
    let line = lines.get(lines.len() / 2).copied().ok_or("the ledger is empty")?;
    let removed: Vec<&str> = lines.iter().copied().filter(|other| *other != line).collect();
    let forged = [
        ("an ack that never was", format!("{text}{}\n", line.replace("\"seq\":", "\"seq\":9"))),
        ("a line that is gone", removed.join("\n") + "\n"),
        (
            "another run's line",
            format!("{text}{}\n", line.replace(&trial.nonce.to_string(), &Uuid::new_v4().to_string())),
        ),
        ("a line cut off", text.trim_end().trim_end_matches('}').to_owned() + "\n"),
        ("the same line twice", format!("{text}{line}\n")),
        ("an empty ledger", String::new()),
    ];
    for (what, text) in forged {
        let path = trial.lab.path("run").join("forged");
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
    while !Path::new(&socket).exists() {
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

fn go_on(old: &Hawser, writer: &Hawser) -> Result<()> {
    writer.resume()?;
    old.resume()?;
    std::thread::sleep(AFTER_THAW);
    Ok(())
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
