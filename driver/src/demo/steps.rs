//! What an orchestrator does, step by step and timed; and the workload's writers and checkers.

use super::cluster::Processes;
use super::scenario::Play;
use crate::client::{Answer, capability, refused};
use csi_proto::csi::*;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use volume::{Error, ErrorKind, Result, VolumeId};

const SLOTS: u64 = 4096;

/// A volume on its way through the story.
pub struct Used {
    pub id: String,
    pub context: BTreeMap<String, String>,
    /// Of its directories below the nodes'.
    pub name: &'static str,
}

impl Play<'_> {
    pub async fn create(&mut self, request: CreateVolumeRequest, name: &'static str) -> Result<Used> {
        let mut asked = self.controller.client.controller();
        let made = self.timed("controller", &format!("CreateVolume {name}"), asked.create_volume(request)).await?;
        let made = made.volume.ok_or_else(|| Error::internal("CreateVolume answers without a volume"))?;
        self.scratch.watch(VolumeId::parse(&made.volume_id)?);
        Ok(Used { id: made.volume_id, context: made.volume_context, name })
    }

    pub async fn attach_and_publish(&mut self, volume: &Used, node: usize) -> Result<()> {
        let request = self.publish_request(volume, node);
        let mut asked = self.controller.client.controller();
        let published = self
            .timed("controller", &step("ControllerPublishVolume", volume), asked.controller_publish_volume(request))
            .await?;
        let (staging, target) = (self.staging(volume, node), self.target(volume, node));
        // As kubelet does: the staging directory is there, of the target only the parent.
        for directory in [Some(Path::new(&staging)), Path::new(&target).parent()].into_iter().flatten() {
            std::fs::create_dir_all(directory)
                .map_err(|error| Error::io(format!("cannot make {}", directory.display()), error))?;
        }
        let request = NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: published.publish_context.clone(),
            staging_target_path: staging.clone(),
            volume_capability: Some(capability(self.args.block)),
            volume_context: volume.context.clone(),
            ..Default::default()
        };
        let name = self.nodes[node].name.clone();
        let mut asked = self.nodes[node].client.node();
        self.timed(&name, &step("NodeStageVolume", volume), asked.node_stage_volume(request)).await?;
        let request = NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: published.publish_context,
            staging_target_path: staging,
            target_path: target,
            volume_capability: Some(capability(self.args.block)),
            volume_context: volume.context.clone(),
            ..Default::default()
        };
        let mut asked = self.nodes[node].client.node();
        self.timed(&name, &step("NodePublishVolume", volume), asked.node_publish_volume(request)).await?;
        Ok(())
    }

    pub async fn detach(&mut self, volume: &Used, node: usize) -> Result<()> {
        let name = self.nodes[node].name.clone();
        let request =
            NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), target_path: self.target(volume, node) };
        let mut asked = self.nodes[node].client.node();
        self.timed(&name, &step("NodeUnpublishVolume", volume), asked.node_unpublish_volume(request)).await?;
        let request =
            NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path: self.staging(volume, node) };
        let mut asked = self.nodes[node].client.node();
        self.timed(&name, &step("NodeUnstageVolume", volume), asked.node_unstage_volume(request)).await?;
        let request =
            ControllerUnpublishVolumeRequest { volume_id: volume.id.clone(), node_id: name, ..Default::default() };
        let mut asked = self.controller.client.controller();
        self.timed(
            "controller",
            &step("ControllerUnpublishVolume", volume),
            asked.controller_unpublish_volume(request),
        )
        .await?;
        Ok(())
    }

    pub async fn delete(&mut self, volume: &Used) -> Result<()> {
        let request = DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
        let mut asked = self.controller.client.controller();
        self.timed("controller", &step("DeleteVolume", volume), asked.delete_volume(request)).await?;
        Ok(())
    }

    pub fn publish_request(&self, volume: &Used, node: usize) -> ControllerPublishVolumeRequest {
        ControllerPublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: self.nodes[node].name.clone(),
            volume_capability: Some(capability(self.args.block)),
            volume_context: volume.context.clone(),
            ..Default::default()
        }
    }

    pub fn start_writer(&self, volume: &Used, node: usize, epoch: u64) -> Result<u32> {
        let arguments = vec![
            format!("--target={}", self.target(volume, node)),
            format!("--recorder={}", self.scratch.path("recorder.sock").display()),
            format!("--nonce={}", self.scratch.nonce),
            format!("--epoch={epoch}"),
            format!("--writers={}", self.args.writers),
            format!("--slots={SLOTS}"),
        ];
        self.scratch.processes.write(self.scratch, &self.nodes[node], &format!("writer-{}", node + 1), arguments)
    }

    pub async fn expect_acks(&self, epoch: u64, count: u64, writer: &str) -> Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(first_ns) = self.recorder.wait_for(epoch, count, Duration::ZERO) {
                return Ok(first_ns);
            }
            if Instant::now() > deadline {
                let log = self.scratch.end_of_log(writer);
                let message = format!("{writer} has not written {count} records in 30 s; its log ends with: {log}");
                return Err(Error::new(ErrorKind::Timeout, message));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn verify(&mut self, volume: &Used, node: usize, more: &[String]) -> Result<Value> {
        let mut arguments = vec![
            format!("--target={}", self.target(volume, node)),
            format!("--ledger={}", self.scratch.path("ledger").display()),
            format!("--nonce={}", self.scratch.nonce),
        ];
        arguments.extend_from_slice(more);
        let pid = self.nodes[node].pid;
        let began = Instant::now();
        let ran = tokio::task::spawn_blocking(move || Processes::verify(pid, arguments)).await;
        let found = ran.map_err(|failed| Error::internal(format!("the verifier did not end: {failed}")))??;
        let name = self.nodes[node].name.clone();
        self.report.step(&name, "verify", began.elapsed(), "");
        Ok(found)
    }

    pub fn epoch(&self, volume: &Used) -> Result<u64> {
        Ok(self.storage.find_volume(&volume.id)?.1.epoch.0)
    }

    pub fn staging(&self, volume: &Used, node: usize) -> String {
        self.scratch.path(&format!("{}.mounts/{}/staging", self.nodes[node].name, volume.name)).display().to_string()
    }

    pub fn target(&self, volume: &Used, node: usize) -> String {
        self.scratch.path(&format!("{}.mounts/{}/pod/target", self.nodes[node].name, volume.name)).display().to_string()
    }

    /// SIGTERM, and each ends by itself.
    pub async fn stop_services(&mut self) -> Result<()> {
        let processes = &self.scratch.processes;
        let pids = [self.nodes[0].pid, self.nodes[1].pid, self.controller.pid];
        for pid in pids {
            processes.signal(pid, Signal::SIGTERM)?;
        }
        let began = Instant::now();
        let mut ended = false;
        while !ended && began.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            ended = true;
            for pid in pids {
                ended &= processes.has_ended(pid)?;
            }
        }
        self.report.step("all", "stop", began.elapsed(), "");
        self.report.check("every service stops when asked", ended);
        Ok(())
    }

    pub async fn timed<T>(&mut self, who: &str, what: &str, call: impl Future<Output = Answer<T>>) -> Result<T> {
        let began = Instant::now();
        let answer = call.await.map_err(|status| refused(what, &status))?;
        self.report.step(who, what, began.elapsed(), "");
        Ok(answer.into_inner())
    }
}

fn step(call: &str, volume: &Used) -> String {
    format!("{call} {}", volume.name)
}
