//! One node with 1,000 volumes: what staging costs there, what the process takes, how long a restart is.

use super::baselines::{Places, template};
use super::{lab, ms, series, timed};
use crate::calls::{Access, Subject};
use crate::client::{Call, Client};
use crate::failure::{Context, Result, ensure};
use crate::lab::{Hawser, Lab, Options};
use crate::scenario::{NODE, make_directories, remove_directories};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

const SIZE_BYTES: u64 = 64 << 20;
const FEW: usize = 10;
/// Volumes brought up or taken down at a time.
const BATCH: usize = 8;
/// A driver that takes this long has a figure that nobody needs to know better.
const LONGEST_RESTART: Duration = Duration::from_secs(120);

/// Controller and node as two processes: what is measured is the node's.
struct Cluster {
    lab: Lab,
    controller: Hawser,
    node: Hawser,
    template: File,
    /// Volumes staged and published.
    present: Vec<Subject>,
}

#[derive(Default)]
struct Times {
    hawser: Vec<f64>,
    bare: Vec<f64>,
}

pub(super) fn measure(hawser: &Path, quick: bool) -> Result<()> {
    let (many, samples, restarts) = if quick { (50, 10, 2) } else { (1000, 200, 5) };
    let mut cluster = Cluster::start(hawser)?;
    // What it needs to start is given back a moment later.
    std::thread::sleep(Duration::from_millis(500));
    series("scale", "memory idle", "MiB", &[cluster.node_memory_mib()?]);
    // Half of the samples before, half after: what drifts meanwhile befalls both counts.
    let (mut at_few, mut at_many) = (Times::default(), Times::default());
    cluster.fill(FEW)?;
    cluster.sample("before", samples / 2, &mut at_few)?;
    cluster.fill(many)?;
    cluster.sample("many", samples, &mut at_many)?;
    series("scale", "memory many", "MiB", &[cluster.node_memory_mib()?]);
    let mut ready = Vec::new();
    for _ in 0..restarts {
        ready.push(cluster.restart_node()?);
    }
    series("scale", "restart many", "ms", &ready);
    series("scale", "memory many after restart", "MiB", &[cluster.node_memory_mib()?]);
    cluster.empty_to(FEW)?;
    cluster.sample("after", samples - samples / 2, &mut at_few)?;
    for (count, times) in [("few", &at_few), ("many", &at_many)] {
        series("scale", &format!("stage hawser {count}"), "ms", &times.hawser);
        series("scale", &format!("stage bare {count}"), "ms", &times.bare);
    }
    series("scale", "volumes few", "volumes", &[FEW as f64]);
    series("scale", "volumes many", "volumes", &[many as f64]);
    cluster.empty_to(0)?;
    cluster.node.stop()?;
    cluster.controller.stop()
}

impl Cluster {
    fn start(hawser: &Path) -> Result<Self> {
        let lab = lab(hawser, 64)?;
        let node = lab.start(&node_options())?;
        let controller = lab.start(&Options { mode: "controller", ..Options::node("controller") })?;
        let template = template(&lab, SIZE_BYTES)?;
        Ok(Self { lab, controller, node, template, present: Vec::new() })
    }

    fn volume(name: String) -> Subject {
        Subject { size_bytes: i64::try_from(SIZE_BYTES).unwrap_or(i64::MAX), ..Subject::new(name, Access::Ext4) }
    }

    fn fill(&mut self, count: usize) -> Result<()> {
        while self.present.len() < count {
            let first = self.present.len();
            let batch: Vec<Subject> =
                (first..count.min(first + BATCH)).map(|n| Self::volume(format!("v{n}"))).collect();
            for volume in &batch {
                make_directories(&self.lab, volume, NODE)?;
            }
            let (lab, controller, node) = (&self.lab, &self.controller.client, &self.node.client);
            on_all(controller, &batch, |volume| volume.create())?;
            on_all(controller, &batch, |volume| volume.attach(NODE))?;
            on_all(node, &batch, |volume| volume.stage(lab, NODE))?;
            on_all(node, &batch, |volume| volume.publish(lab, NODE))?;
            self.present.extend(batch);
        }
        let mounts = self.lab.mounts()?.len();
        ensure(mounts == 2 * count, || format!("{count} volumes have {mounts} mounts"))
    }

    fn empty_to(&mut self, count: usize) -> Result<()> {
        while self.present.len() > count {
            let batch = self.present.split_off(self.present.len().saturating_sub(BATCH).max(count));
            let (lab, controller, node) = (&self.lab, &self.controller.client, &self.node.client);
            on_all(node, &batch, |volume| volume.unpublish(lab, NODE))?;
            on_all(node, &batch, |volume| volume.unstage(lab, NODE))?;
            on_all(controller, &batch, |volume| volume.detach(NODE))?;
            on_all(controller, &batch, |volume| volume.delete())?;
            batch.iter().for_each(|volume| remove_directories(lab, volume, NODE));
        }
        Ok(())
    }

    /// Stages one volume more by the driver and one by bare calls, in turns, each for the first time.
    fn sample(&mut self, tag: &str, count: usize, times: &mut Times) -> Result<()> {
        for number in 0..count {
            let volume = Self::volume(format!("probe-{tag}-{number}"));
            make_directories(&self.lab, &volume, NODE)?;
            let mut places = Places::new(&self.lab, &format!("bare-{tag}-{number}"))?;
            places.create_bare(&self.template)?;
            self.controller.client.call(&volume.create())?;
            self.controller.client.call(&volume.attach(NODE))?;
            if number % 2 == 0 {
                times.hawser.push(self.stage(&volume)?);
            }
            times.bare.push(timed(|| places.stage_bare())?);
            if number % 2 == 1 {
                times.hawser.push(self.stage(&volume)?);
            }
            places.unstage_bare()?;
            places.delete_bare()?;
            places.remove_directories();
            self.node.client.call(&volume.unstage(&self.lab, NODE))?;
            self.controller.client.call(&volume.detach(NODE))?;
            self.controller.client.call(&volume.delete())?;
            remove_directories(&self.lab, &volume, NODE);
        }
        Ok(())
    }

    fn stage(&self, volume: &Subject) -> Result<f64> {
        timed(|| self.node.client.call(&volume.stage(&self.lab, NODE)).map(drop).context(|| "staging".to_owned()))
    }

    /// From the start of the process until it answers Probe with ready.
    fn restart_node(&mut self) -> Result<f64> {
        // Killed, as a crash would; the socket that is left is replaced.
        self.node.kill()?;
        let began = Instant::now();
        self.node = self.lab.spawn(&node_options())?;
        while !self.node.client.probe().is_ok_and(|ready| ready) {
            let ended = self.node.wait(Duration::ZERO)?;
            ensure(ended.is_none() && began.elapsed() < LONGEST_RESTART, || {
                format!("the node is not ready after {:?}: {}", began.elapsed(), self.node.last_lines())
            })?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(ms(began.elapsed()))
    }

    /// VmRSS (proc_pid_status(5)).
    fn node_memory_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.node.id()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        Ok(kib.map(|kib: f64| kib / 1024.0).ok_or("the kernel does not tell VmRSS")?)
    }
}

fn node_options() -> Options {
    Options { mode: "node", ..Options::node(NODE) }
}

fn on_all(client: &Client, volumes: &[Subject], call: impl Fn(&Subject) -> Call) -> Result<()> {
    let calls: Vec<Call> = volumes.iter().map(call).collect();
    for (call, answer) in calls.iter().zip(client.call_all(&calls)) {
        answer.context(|| format!("{call:?}"))?;
    }
    Ok(())
}
