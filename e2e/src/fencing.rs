//! Fences that are interrupted, overtaken, or run while the node is in the middle of a call.

use crate::calls::{Access, Subject};
use crate::client::Call;
use crate::failure::{Context, Result, ensure};
use crate::lab::{Hawser, Lab, Options, PoolFs};
use crate::missing_privilege;
use crate::report::Report;
use crate::scenario::{give_back, make_directories};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

const OLD: &str = "n1";
const NEW: &str = "n2";
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("fence-sweep", &reason);
        return Ok(());
    }
    for access in [Access::Ext4, Access::Block] {
        let name = format!("fence-{access:?}");
        if !report.wants_some(&name) {
            continue;
        }
        let effects = match learn_fence(hawser, access) {
            Ok(effects) => effects,
            Err(failure) => {
                report.failed(&format!("{name}-undisturbed"), &failure.to_string());
                continue;
            }
        };
        for effect in 1..=effects {
            report.test(&format!("{name}-killed-after-{effect}"), || killed(hawser, access, effect));
            report.test(&format!("{name}-stopped-after-{effect}"), || overtaken(hawser, access, effect));
        }
        let effects = match learn_stage(hawser, access) {
            Ok(effects) => effects,
            Err(failure) => {
                report.failed(&format!("{name}-stage-undisturbed"), &failure.to_string());
                continue;
            }
        };
        for effect in effects.0 + 1..=effects.1 {
            report.test(&format!("{name}-while-staging-stopped-after-{effect}"), || staging(hawser, access, effect));
        }
    }
    Ok(())
}

/// Two nodes on one pool, and a volume that the old one uses.
struct Cluster {
    lab: Lab,
    old: Option<Hawser>,
    new: Hawser,
    subject: Subject,
}

impl Cluster {
    fn new(hawser: &Path, access: Access) -> Result<Self> {
        let lab = Lab::new(hawser, PoolFs::Xfs, 2048)?;
        let old = lab.start(&Options::node(OLD))?;
        let new = lab.start(&Options::node(NEW))?;
        let subject = Subject::new("contended", access);
        for node in [OLD, NEW] {
            make_directories(&lab, &subject, node)?;
        }
        new.client.call_until_done(&subject.create())?;
        new.client.call_until_done(&subject.attach(OLD))?;
        Ok(Self { lab, old: Some(old), new, subject })
    }

    fn use_on(&self, server: &Hawser, node: &str) -> Result<()> {
        for call in [self.subject.stage(&self.lab, node), self.subject.publish(&self.lab, node)] {
            server.client.call_until_done(&call).context(|| format!("{call:?}"))?;
        }
        Ok(())
    }

    fn take_over(&self) -> Result<()> {
        self.new
            .client
            .call_until_done(&self.subject.attach(NEW))
            .context(|| "the grant after the fence".to_owned())?;
        self.use_on(&self.new, NEW)
    }

    /// The new holder is recorded, and its writes become durable.
    fn ensure_new_holds(&self, text: &str) -> Result<()> {
        let volumes = self.new.client.volumes()?;
        ensure(volumes.iter().all(|(_, _, nodes)| nodes == &[NEW]), || format!("recorded: {volumes:?}"))?;
        let target = PathBuf::from(self.subject.target(&self.lab, NEW));
        let is_mounted = self.lab.mounts()?.iter().any(|mount| mount.path == target);
        ensure(is_mounted, || format!("nothing is mounted at {}", target.display()))?;
        self.write(&target, text).context(|| "the new holder cannot write".to_owned())
    }

    /// If the old node still has something at its path, nothing written to it becomes durable.
    fn ensure_old_cannot_write(&self) -> Result<()> {
        let target = PathBuf::from(self.subject.target(&self.lab, OLD));
        let staging = PathBuf::from(self.subject.staging(&self.lab, OLD));
        let mounts = self.lab.mounts()?;
        for path in [target, staging].iter().filter(|path| mounts.iter().any(|mount| mount.path == **path)) {
            let written = self.write(path, "late");
            ensure(written.is_err(), || format!("a late write to {} was acknowledged", path.display()))?;
        }
        Ok(())
    }

    fn write(&self, mounted_at: &Path, text: &str) -> Result<()> {
        match self.subject.access {
            Access::Block => durable_write(mounted_at, text, true),
            Access::Ext4 | Access::Xfs | Access::Directory => durable_write(&mounted_at.join("file"), text, false),
        }
    }

    fn fence(&self) -> Result<()> {
        self.lab.run(&Options::node(NEW), &["fence", OLD]).map(drop)
    }

    fn give_back(&mut self) -> Result<()> {
        // The old node comes back, cleans up after its fence, and lets go of what it had.
        if let Some(old) = self.old.take() {
            drop(old);
        }
        let old = self.lab.start(&Options::node(OLD)).context(|| "the fenced node coming back".to_owned())?;
        give_back(&self.lab, &old.client, &self.subject, OLD)?;
        give_back(&self.lab, &self.new.client, &self.subject, NEW)?;
        self.new.client.call_until_done(&self.subject.delete())?;
        old.stop()?;
        self.lab.ensure_clean()
    }
}

fn learn_fence(hawser: &Path, access: Access) -> Result<u64> {
    let mut cluster = Cluster::new(hawser, access)?;
    cluster.use_on(cluster.old.as_ref().ok_or("no old node")?, OLD)?;
    let log = cluster.lab.path("effects.log");
    let output = cluster
        .lab
        .command(&Options::node(NEW))
        .args(["fence", OLD])
        .env("HAWSER_TEST_EFFECT", format!("log:{}", log.display()))
        .output()?;
    ensure(output.status.success(), || format!("hawser fence: {}", String::from_utf8_lossy(&output.stderr)))?;
    let effects = std::fs::read_to_string(&log).unwrap_or_default().lines().count() as u64;
    cluster.take_over()?;
    cluster.ensure_old_cannot_write()?;
    cluster.ensure_new_holds("undisturbed")?;
    cluster.give_back()?;
    ensure(effects > 0, || "the fence announced no effect".to_owned())?;
    Ok(effects)
}

/// The fencer is killed; before the fence is repeated nobody gets the volume without proof, afterwards all is well.
fn killed(hawser: &Path, access: Access, effect: u64) -> Result<()> {
    let mut cluster = Cluster::new(hawser, access)?;
    cluster.use_on(cluster.old.as_ref().ok_or("no old node")?, OLD)?;
    let options = Options::node(NEW).effect(format!("kill:{effect}"));
    let mut fencer = cluster.lab.spawn_command(&options, &["fence", OLD])?;
    ensure(fencer.wait(PATIENCE)?.is_some(), || "the fencer did not end".to_owned())?;
    if cluster.new.client.call_until_done(&cluster.subject.attach(NEW)).is_ok() {
        // Granted without a second fence: then the first one must have been complete.
        cluster.ensure_old_cannot_write()?;
    }
    cluster.fence().context(|| "the fence repeated".to_owned())?;
    cluster.take_over()?;
    cluster.ensure_old_cannot_write()?;
    cluster.ensure_new_holds("after a killed fencer")?;
    cluster.give_back()
}

/// The fencer is stopped, a second one does the work and the volume moves; then the first goes on. It must not hit the
/// new holder.
fn overtaken(hawser: &Path, access: Access, effect: u64) -> Result<()> {
    let mut cluster = Cluster::new(hawser, access)?;
    cluster.use_on(cluster.old.as_ref().ok_or("no old node")?, OLD)?;
    let options = Options::node(NEW).effect(format!("stop:{effect}"));
    let mut fencer = cluster.lab.spawn_command(&options, &["fence", OLD])?;
    ensure(fencer.wait_stopped(PATIENCE), || format!("the fencer was to stop after effect {effect}, and did not"))?;
    cluster.fence().context(|| "the second fencer".to_owned())?;
    cluster.take_over()?;
    cluster.ensure_new_holds("before the first fencer goes on")?;
    fencer.resume()?;
    ensure(fencer.wait(PATIENCE)?.is_some(), || "the resumed fencer did not end".to_owned())?;
    cluster.ensure_old_cannot_write()?;
    cluster.ensure_new_holds("after the first fencer went on")?;
    cluster.give_back()
}

fn learn_stage(hawser: &Path, access: Access) -> Result<(u64, u64)> {
    let mut cluster = Cluster::new(hawser, access)?;
    drop(cluster.old.take());
    let log = cluster.lab.path("effects.log");
    let old = cluster.lab.start(&Options::node(OLD).effect(format!("log:{}", log.display())))?;
    let effects = || std::fs::read_to_string(&log).unwrap_or_default().lines().count() as u64;
    let start = effects();
    old.client.call(&cluster.subject.stage(&cluster.lab, OLD))?;
    ensure(effects() > start, || "staging announced no effect".to_owned())?;
    Ok((start, effects()))
}

/// The node is stopped in the middle of NodeStage, fenced, the volume moves; then the node goes on.
fn staging(hawser: &Path, access: Access, effect: u64) -> Result<()> {
    let mut cluster = Cluster::new(hawser, access)?;
    drop(cluster.old.take());
    let mut old = cluster.lab.start(&Options::node(OLD).effect(format!("stop:{effect}")))?;
    let call: Call = cluster.subject.stage(&cluster.lab, OLD);
    let pending = old.client.call_later(&call);
    ensure(old.wait_stopped(PATIENCE), || format!("the node was to stop after effect {effect}, and did not"))?;
    cluster.fence().context(|| "the fence while the node stages".to_owned())?;
    cluster.take_over()?;
    cluster.ensure_new_holds("before the old node goes on")?;
    old.resume()?;
    let answer = pending.answer();
    cluster.ensure_old_cannot_write().context(|| format!("the old node answered {answer:?}"))?;
    cluster.ensure_new_holds("after the old node went on")?;
    cluster.old = Some(old);
    cluster.give_back()
}

/// Only into what is there, so that no write passes beside an absent mount.
fn durable_write(file: &Path, text: &str, is_device: bool) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create(!is_device).truncate(false).open(file)?;
    file.write_all(format!("{text:4096}").as_bytes())?;
    file.sync_all()?;
    Ok(())
}
