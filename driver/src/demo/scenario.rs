//! The story: provision, attach, stage, publish, write; the node goes; fence, move, write on; verify; snapshot, clone, grow.

use super::cluster::Service;
use super::report::Report;
use super::scratch::Scratch;
use super::steps::Used;
use crate::cli::{DemoArgs, Fault};
use crate::client::{at_least, capability, refused};
use crate::commands::fence_node;
use crate::storage::Storage;
use crate::units::format_duration;
use crate::workload::{Recorder, now_ns};
use csi_proto::csi::volume_content_source::{SnapshotSource, Type as SourceType};
use csi_proto::csi::*;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Code;
use volume::{Error, ErrorKind, FenceHow, NodeId, Result, VolumeId};

const SIZE: u64 = 256 << 20;
const GROWN: u64 = 512 << 20;

pub async fn play(args: &DemoArgs, scratch: &Scratch, report: &mut Report) -> Result<()> {
    let mut play = Play::begin(args, scratch, report).await?;
    let (volume, first) = play.first_node().await?;
    let moved = if args.without_fence {
        play.go_on_unfenced(&volume, first).await?
    } else {
        play.fail_over(&volume, first).await?
    };
    if !play.verify_everything(&volume, &moved).await? {
        return Ok(());
    }
    play.first_node_returns(&volume, &moved).await?;
    play.snapshot_clone_grow(&volume).await?;
    play.tidy_up(&volume).await
}

pub struct Play<'a> {
    pub args: &'a DemoArgs,
    pub scratch: &'a Scratch,
    pub report: &'a mut Report,
    pub storage: Arc<Storage>,
    pub controller: Service,
    pub nodes: [Service; 2],
    pub recorder: Recorder,
}

/// What the failover left to check.
struct Moved {
    fenced_epoch: u64,
    fence_ns: u64,
    first_writer: u32,
    second_writer: Option<u32>,
    /// Which of the nodes has the volume now.
    node: usize,
}

impl<'a> Play<'a> {
    async fn begin(args: &'a DemoArgs, scratch: &'a Scratch, report: &'a mut Report) -> Result<Self> {
        report.chapter("Starting: one controller, two nodes with mounts of their own, one shared pool");
        let began = Instant::now();
        // Before the nodes: they take the pool's mount along into their namespaces.
        let storage = Storage::open_for_commands(&scratch.load_config()?, host::Effects::default())?;
        report.step("pool", "open", began.elapsed(), &scratch.pool().display().to_string());
        let recorder = Recorder::start(&scratch.path("recorder.sock"), &scratch.path("ledger"))?;
        let began = Instant::now();
        let processes = &scratch.processes;
        let (controller, first, second) = tokio::try_join!(
            processes.serve(scratch, "controller", &["--mode=controller"]),
            processes.serve_node(scratch, "node-1"),
            processes.serve_node(scratch, "node-2"),
        )?;
        report.step("all", "ready", began.elapsed(), "");
        Ok(Self { args, scratch, report, storage: Arc::new(storage), controller, nodes: [first, second], recorder })
    }

    /// From nothing to a workload that writes on the first node: the volume and the writer's process.
    async fn first_node(&mut self) -> Result<(Used, u32)> {
        self.report.chapter("A volume for a workload on node-1");
        let request = CreateVolumeRequest {
            name: format!("demo {}", self.scratch.nonce),
            capacity_range: at_least(SIZE),
            volume_capabilities: vec![capability(self.args.block)],
            ..Default::default()
        };
        let volume = self.create(request, "data").await?;
        self.attach_and_publish(&volume, 0).await?;
        let writer = self.start_writer(&volume, 0, 1)?;
        self.expect_acks(1, u64::from(self.args.writers) * 20, "writer-1").await?;
        self.report.aside(&format!(
            "{} writers go on; each record is 4 KiB, checksummed, durable before it is acknowledged",
            self.args.writers
        ));
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok((volume, writer))
    }

    async fn fail_over(&mut self, volume: &Used, first_writer: u32) -> Result<Moved> {
        let fenced_epoch = self.epoch(volume)?;
        let fault_ns = self.strike(fenced_epoch)?;
        self.expect_refusal(volume).await?;

        let fence_ns = self.fence().await?;
        self.attach_and_publish(volume, 1).await?;
        let epoch = self.epoch(volume)?;
        self.report.check(&format!("the epoch grew from {fenced_epoch} to {epoch}"), epoch > fenced_epoch);
        let second_writer = self.start_writer(volume, 1, epoch)?;
        let first_ns = self.expect_acks(epoch, 1, "writer-2").await?;
        self.report.time("from the fault to the fence's return", Duration::from_nanos(fence_ns - fault_ns));
        let first_write = Duration::from_nanos(first_ns.saturating_sub(fault_ns));
        self.report.time("from the fault to the first durable write on node-2", first_write);
        self.report.aside(&format!("node-2 writes, {} after the fault", format_duration(first_write)));
        self.expect_acks(epoch, u64::from(self.args.writers) * 5, "writer-2").await?;
        Ok(Moved { fenced_epoch, fence_ns, first_writer, second_writer: Some(second_writer), node: 1 })
    }

    /// The negative control: as if a fence had returned that did nothing. What is checked afterwards must not hold.
    async fn go_on_unfenced(&mut self, volume: &Used, first_writer: u32) -> Result<Moved> {
        let fenced_epoch = self.epoch(volume)?;
        self.strike(fenced_epoch)?;
        self.report.aside("no fence");
        Ok(Moved { fenced_epoch, fence_ns: now_ns(), first_writer, second_writer: None, node: 0 })
    }

    /// Kills or freezes the first node; when.
    fn strike(&mut self, epoch: u64) -> Result<u64> {
        let (signal, what) = match self.args.fault {
            Fault::Kill => (Signal::SIGKILL, "killed"),
            Fault::Freeze => (Signal::SIGSTOP, "frozen"),
        };
        self.report.chapter(&format!("node-1 is {what}: its driver and its workload"));
        let fault_ns = now_ns();
        self.scratch.processes.signal(self.nodes[0].pid, signal)?;
        self.report.aside(&format!("{} acknowledged records up to here", self.recorder.count(Some(epoch))));
        Ok(fault_ns)
    }

    /// Before the fence, nobody else may have the volume.
    async fn expect_refusal(&mut self, volume: &Used) -> Result<()> {
        let began = Instant::now();
        let asked =
            self.controller.client.controller().controller_publish_volume(self.publish_request(volume, 1)).await;
        self.report.step("controller", "ControllerPublish to node-2", began.elapsed(), "before the fence");
        let (holds, message) = match &asked {
            Ok(_) => (false, "granted".to_owned()),
            Err(status) => (
                status.code() == Code::FailedPrecondition && status.message().contains("node-1"),
                format!("{:?}: {}", status.code(), status.message()),
            ),
        };
        self.report.check(&format!("refused, naming the holder ({message})"), holds);
        if asked.is_ok() {
            return Err(Error::new(ErrorKind::Internal, "the volume was granted to node-2 while node-1 held it"));
        }
        Ok(())
    }

    /// When the fence had returned.
    async fn fence(&mut self) -> Result<u64> {
        let node = NodeId::parse(&self.nodes[0].name)?;
        let storage = Arc::clone(&self.storage);
        let began = Instant::now();
        let fenced = tokio::task::spawn_blocking(move || fence_node(&storage, &node, "demo", FenceHow::Enforce)).await;
        let outcomes = fenced.map_err(|failed| Error::internal(format!("the fence did not end: {failed}")))??;
        let fence_ns = now_ns();
        self.report.step("cli", "fence node-1", began.elapsed(), "");
        for outcome in outcomes {
            let proof =
                outcome.proof.map_err(|error| error.context(format!("{} could not be fenced", outcome.volume)))?;
            self.report.aside(&format!("proof: {}", crate::commands::proof(&proof)));
        }
        Ok(fence_ns)
    }

    /// Every record that was ever acknowledged, and none from node-1 after the fence. False when that does not hold.
    async fn verify_everything(&mut self, volume: &Used, moved: &Moved) -> Result<bool> {
        if self.args.fault == Fault::Freeze {
            self.report.chapter("node-1 thaws and does not know that it was fenced");
            self.scratch.processes.signal(self.nodes[0].pid, Signal::SIGCONT)?;
            let deadline = Instant::now() + Duration::from_secs(3);
            while !self.scratch.processes.has_ended(moved.first_writer)? && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let ended = self.scratch.processes.has_ended(moved.first_writer)?;
            self.report.check("its workload's writes fail", ended);
        }
        self.report.chapter("Looking for every acknowledged record");
        for writer in [Some(moved.first_writer), moved.second_writer].into_iter().flatten() {
            self.scratch.processes.end_one(writer);
        }
        let fence = [format!("--fenced-epoch={}", moved.fenced_epoch), format!("--fence-ns={}", moved.fence_ns)];
        let found = self.verify(volume, moved.node, &fence).await?;
        let place = format!("on {}", self.nodes[moved.node].name);
        self.check_findings(&found, &place);
        let late = found["late"].as_u64();
        self.report.check("no write of node-1 that began after the fence was acknowledged", late == Some(0));
        Ok(found["pass"] == Value::Bool(true))
    }

    fn check_findings(&mut self, found: &Value, place: &str) {
        let number = |key: &str| found[key].as_u64().unwrap_or(u64::MAX);
        let (acked, lost) = (number("acked"), number("lost"));
        let whole = number("tampered") == 0 && number("foreign") == 0 && number("gaps") == 0;
        self.report.check(&format!("{acked} acknowledged records: {lost} lost {place}"), acked > 0 && lost == 0);
        self.report.check("the ledger is whole", whole);
        if number("in_flight") > 0 {
            self.report.aside(&format!(
                "{} writes were durable before the fence and reported after the thaw; they are there",
                number("in_flight")
            ));
        }
        for example in found["examples"].as_array().into_iter().flatten() {
            self.report.aside(example.as_str().unwrap_or_default());
        }
    }

    /// The fenced node takes away what it had, and only then may use volumes again.
    async fn first_node_returns(&mut self, volume: &Used, moved: &Moved) -> Result<()> {
        self.report.chapter("node-1 comes back");
        let name = self.nodes[0].name.clone();
        let began = Instant::now();
        if self.args.fault == Fault::Kill {
            // Its last processes are reaped first: they hold its old mounts.
            self.scratch.processes.end(self.nodes[0].pid);
            self.nodes[0] = self.scratch.processes.serve_node(self.scratch, &name).await?;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let live = loop {
            let nodes = self.storage.nodes()?;
            let live = nodes.iter().any(|(_, record)| record.identity.id.as_str() == name && !record.is_fenced());
            if live || Instant::now() > deadline {
                break live;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.report.step(&name, "clean up, new incarnation", began.elapsed(), "");
        self.report.check("node-1 is in again, as a new incarnation", live);
        let label = format!("@{}#", moved.fenced_epoch);
        let stale = self.scratch.loops()?.into_iter().filter(|device| device.label.contains(&label)).count();
        self.report.check("its old loop devices are gone", stale == 0);
        // Orchestrators let go of the volume there only now: the directory of its target goes, and nothing changes elsewhere.
        self.detach(volume, 0).await
    }

    async fn snapshot_clone_grow(&mut self, volume: &Used) -> Result<()> {
        self.report.chapter("Snapshot, clone, grow");
        let request = CreateSnapshotRequest {
            source_volume_id: volume.id.clone(),
            name: format!("demo snapshot {}", self.scratch.nonce),
            ..Default::default()
        };
        let mut asked = self.controller.client.controller();
        let snapshot = self.timed("controller", "CreateSnapshot", asked.create_snapshot(request)).await?;
        let snapshot = snapshot.snapshot.ok_or_else(|| Error::internal("CreateSnapshot answers without a snapshot"))?;
        let source = VolumeContentSource {
            r#type: Some(SourceType::Snapshot(SnapshotSource { snapshot_id: snapshot.snapshot_id.clone() })),
        };
        let request = CreateVolumeRequest {
            name: format!("demo clone {}", self.scratch.nonce),
            capacity_range: at_least(GROWN),
            volume_capabilities: vec![capability(self.args.block)],
            volume_content_source: Some(source),
            ..Default::default()
        };
        let clone = self.create(request, "clone").await?;
        self.attach_and_publish(&clone, 0).await?;
        let found = self.verify(&clone, 0, &[]).await?;
        self.check_findings(&found, "in the clone on node-1");
        self.check_size(&clone, 0, "the clone has its larger size").await?;
        self.detach(&clone, 0).await?;
        self.delete(&clone).await?;
        let request = DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
        let mut asked = self.controller.client.controller();
        self.timed("controller", "DeleteSnapshot", asked.delete_snapshot(request)).await?;
        self.grow(volume).await
    }

    async fn grow(&mut self, volume: &Used) -> Result<()> {
        let request = ControllerExpandVolumeRequest {
            volume_id: volume.id.clone(),
            capacity_range: at_least(GROWN),
            volume_capability: Some(capability(self.args.block)),
            ..Default::default()
        };
        let mut asked = self.controller.client.controller();
        self.timed("controller", "ControllerExpandVolume", asked.controller_expand_volume(request)).await?;
        let request = NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: self.target(volume, 1),
            staging_target_path: self.staging(volume, 1),
            capacity_range: at_least(GROWN),
            volume_capability: Some(capability(self.args.block)),
            ..Default::default()
        };
        let mut asked = self.nodes[1].client.node();
        let began = Instant::now();
        match asked.node_expand_volume(request).await {
            Ok(_) => self.report.step("node-2", "NodeExpandVolume", began.elapsed(), "online"),
            Err(status) if status.message().contains("CAP_SYS_RESOURCE") => {
                self.report
                    .skip("growing the mounted ext4: this machine lacks CAP_SYS_RESOURCE; it grows when staged next");
                self.detach(volume, 1).await?;
                self.attach_and_publish(volume, 1).await?;
            }
            Err(status) => return Err(refused("NodeExpandVolume", &status)),
        }
        self.check_size(volume, 1, "the volume has grown").await?;
        let found = self.verify(volume, 1, &[]).await?;
        self.check_findings(&found, "after growing");
        Ok(())
    }

    async fn check_size(&mut self, volume: &Used, node: usize, claim: &str) -> Result<()> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.id.clone(),
            volume_path: self.target(volume, node),
            staging_target_path: self.staging(volume, node),
        };
        let mut asked = self.nodes[node].client.node();
        let name = self.nodes[node].name.clone();
        let stats = self.timed(&name, "NodeGetVolumeStats", asked.node_get_volume_stats(request)).await?;
        let total = stats.usage.iter().map(|usage| usage.total).max().unwrap_or(0);
        // A file system needs some of the device for itself.
        let enough = u64::try_from(total).unwrap_or(0) >= GROWN / 10 * 9;
        self.report
            .check(&format!("{claim}: {}", crate::units::format_size(u64::try_from(total).unwrap_or(0))), enough);
        Ok(())
    }

    async fn tidy_up(&mut self, volume: &Used) -> Result<()> {
        self.report.chapter("Tidying up");
        self.detach(volume, 1).await?;
        let id = VolumeId::parse(&volume.id)?;
        for backend in self.storage.backends() {
            if let Some(fence) = backend.fence() {
                let removed = fence.remove_orphans(Some(&id))?;
                if !removed.is_empty() {
                    self.report.aside(&format!("removed what node-1 wrote last: {} orphan(s)", removed.len()));
                }
            }
        }
        self.delete(volume).await?;
        self.report.check("the pool is empty", self.storage.volumes()?.is_empty());
        self.report.check("no loop device is left by the driver", self.scratch.loops()?.is_empty());
        self.stop_services().await
    }
}
