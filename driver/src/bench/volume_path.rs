//! One volume on its way up and down, and how far it may have come: what is begun is undone, done or not.

use super::steps::Step;
use super::target::Target;
use crate::cli::BenchArgs;
use crate::client::{Client, at_least, capability_of};
use csi_proto::csi;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tonic::Status;

pub struct VolumePath {
    pub name: String,
    pub staging: PathBuf,
    pub target: PathBuf,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default, Clone)]
pub struct Progress {
    /// How many of the driver's steps up were begun and not undone.
    pub begun: usize,
    /// Once CreateVolume has answered.
    pub id: Option<String>,
    pub volume_context: BTreeMap<String, String>,
    pub publish_context: BTreeMap<String, String>,
    /// What refused to be undone, and why.
    pub stuck: Option<String>,
}

impl VolumePath {
    pub fn new(name: String, staging_dir: &Path, target_dir: &Path) -> Self {
        let staging = staging_dir.join(&name);
        let target = target_dir.join(&name).join("target");
        Self { name, staging, target, progress: Mutex::new(Progress::default()) }
    }

    /// Never held across a call.
    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the orchestrator makes: the staging directory, and the parent of the target (CSI, NodeStageVolume and
    /// NodePublishVolume).
    pub fn make_directories(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.staging)?;
        self.target.parent().map_or(Ok(()), std::fs::create_dir_all)
    }

    /// Only what is empty, so that nothing below a mount is touched. Some drivers leave the target to the orchestrator.
    pub fn remove_directories(&self) -> Result<(), String> {
        let parent = self.target.parent().unwrap_or(&self.target);
        for path in [&self.target, parent, self.staging.as_path()] {
            match std::fs::remove_dir(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("{}: {error}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// One call; its answer is kept for those that follow.
    pub async fn call(
        &self,
        step: Step,
        args: &BenchArgs,
        target: &Target,
        controller: &Client,
        node: &Client,
    ) -> Result<(), Status> {
        let known = self.progress().clone();
        let volume_id = known.id.unwrap_or_default();
        let capability = Some(capability_of(args.block, &args.fs));
        // Where nothing is staged the field stays empty (CSI, NodePublishVolume).
        let staging = if target.has(Step::NodeStage) { shown(&self.staging) } else { String::new() };
        let (node_id, target_path) = (target.node_id.clone(), shown(&self.target));
        let (volume_context, publish_context) = (known.volume_context, known.publish_context);
        match step {
            Step::Create => return self.create(args, target, controller).await,
            Step::ControllerPublish => {
                let request = csi::ControllerPublishVolumeRequest {
                    volume_id,
                    node_id,
                    volume_capability: capability,
                    volume_context,
                    ..Default::default()
                };
                let answer = controller.controller().controller_publish_volume(request).await?.into_inner();
                self.progress().publish_context = answer.publish_context;
            }
            Step::NodeStage => {
                let request = csi::NodeStageVolumeRequest {
                    volume_id,
                    publish_context,
                    staging_target_path: staging,
                    volume_capability: capability,
                    volume_context,
                    ..Default::default()
                };
                node.node().node_stage_volume(request).await?;
            }
            Step::NodePublish => {
                let request = csi::NodePublishVolumeRequest {
                    volume_id,
                    publish_context,
                    staging_target_path: staging,
                    target_path,
                    volume_capability: capability,
                    volume_context,
                    ..Default::default()
                };
                node.node().node_publish_volume(request).await?;
            }
            Step::NodeUnpublish => {
                node.node().node_unpublish_volume(csi::NodeUnpublishVolumeRequest { volume_id, target_path }).await?;
            }
            Step::NodeUnstage => {
                let request = csi::NodeUnstageVolumeRequest { volume_id, staging_target_path: staging };
                node.node().node_unstage_volume(request).await?;
            }
            Step::ControllerUnpublish => {
                let request = csi::ControllerUnpublishVolumeRequest { volume_id, node_id, ..Default::default() };
                controller.controller().controller_unpublish_volume(request).await?;
            }
            Step::Delete => {
                let request = csi::DeleteVolumeRequest { volume_id, ..Default::default() };
                controller.controller().delete_volume(request).await?;
            }
        }
        Ok(())
    }

    async fn create(&self, args: &BenchArgs, target: &Target, controller: &Client) -> Result<(), Status> {
        let request = csi::CreateVolumeRequest {
            name: self.name.clone(),
            capacity_range: at_least(args.size_bytes),
            volume_capabilities: vec![capability_of(args.block, &args.fs)],
            parameters: args.parameters.iter().cloned().collect(),
            accessibility_requirements: target.topology.clone().map(|topology| csi::TopologyRequirement {
                requisite: vec![topology.clone()],
                preferred: vec![topology],
            }),
            ..Default::default()
        };
        let answer = controller.controller().create_volume(request).await?.into_inner();
        let made = answer.volume.ok_or_else(|| Status::internal("CreateVolume answers without a volume"))?;
        let mut progress = self.progress();
        (progress.id, progress.volume_context) = (Some(made.volume_id), made.volume_context);
        Ok(())
    }
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
