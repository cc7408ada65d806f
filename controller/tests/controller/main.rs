//! The Controller service as orchestrators call it, over backends made for these tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod cancel;
mod capabilities;
mod create;
mod groups;
mod health;
mod lists;
mod metadata;
mod modify;
mod places;
mod publish;
mod shelf;
mod snapshots;

use controller::ControllerService;
use csi_proto::csi::controller_server::Controller;
use csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi_proto::csi::*;
use rpc::{Metrics, Profile, Runtime};
use shelf::Shelf;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Request, Response, Status};
use volume::Backend;

/// Ids of the right form that name nothing, and ids of others.
const NO_VOLUME: &str = "shelf.v00000000000000000000000000000000";
const NO_SNAPSHOT: &str = "shelf.s00000000000000000000000000000000";
const NO_GROUP: &str = "shelf.g00000000000000000000000000000000";
const FOREIGN: [&str; 5] = ["vol-0123", "../../etc", "shelf.v12", "pvc/with/slashes", "\u{1F980}"];

/// The service over a shelf that can do everything and one, named `bare`, that can do little.
struct Subject {
    service: ControllerService,
    shelf: Arc<Shelf>,
}

fn subject() -> Subject {
    subject_for(Profile::Kubernetes)
}

fn subject_for(profile: Profile) -> Subject {
    let shelf = Shelf::new("shelf");
    for node in ["n1", "n2"] {
        shelf.add_node(node);
    }
    let backends: Vec<Arc<dyn Backend>> = vec![shelf.clone(), Shelf::bare("bare")];
    let runtime = Runtime::new(Metrics::new(), Duration::from_secs(30));
    Subject { service: ControllerService::new(backends, profile, runtime).unwrap(), shelf }
}

impl Subject {
    async fn create(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        Ok(self.service.create_volume(Request::new(request)).await?.into_inner().volume.unwrap())
    }

    async fn created(&self, name: &str) -> Volume {
        self.create(volume_request(name)).await.unwrap()
    }

    async fn publish(
        &self,
        volume_id: &str,
        node_id: &str,
        readonly: bool,
    ) -> Result<ControllerPublishVolumeResponse, Status> {
        let request = ControllerPublishVolumeRequest { readonly, ..publish_request(volume_id, node_id) };
        inner(self.service.controller_publish_volume(Request::new(request)).await)
    }

    async fn unpublish(&self, volume_id: &str, node_id: &str) -> Result<ControllerUnpublishVolumeResponse, Status> {
        let (volume_id, node_id) = (volume_id.to_owned(), node_id.to_owned());
        let request = ControllerUnpublishVolumeRequest { volume_id, node_id, secrets: BTreeMap::new() };
        inner(self.service.controller_unpublish_volume(Request::new(request)).await)
    }

    async fn delete(&self, volume_id: &str) -> Result<DeleteVolumeResponse, Status> {
        let request = DeleteVolumeRequest { volume_id: volume_id.to_owned(), ..Default::default() };
        inner(self.service.delete_volume(Request::new(request)).await)
    }

    /// The id that a snapshot of this name has.
    fn shelf_snapshot(&self, name: &str) -> String {
        volume::SnapshotId::of_name(self.shelf.name(), &volume::VolumeName::parse(name).unwrap()).to_string()
    }

    async fn snapshot(&self, name: &str, source: &str) -> Result<Snapshot, Status> {
        let (name, source_volume_id) = (name.to_owned(), source.to_owned());
        let request = CreateSnapshotRequest { name, source_volume_id, ..Default::default() };
        Ok(self.service.create_snapshot(Request::new(request)).await?.into_inner().snapshot.unwrap())
    }
}

fn inner<T>(answer: Result<Response<T>, Status>) -> Result<T, Status> {
    answer.map(Response::into_inner)
}

/// Asserts the code of a refusal and that its message says something; gives the message.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code) -> String {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().len() > 10, "a message that helps nobody: {}", status.message());
    status.message().to_owned()
}

fn mount(mode: i32) -> VolumeCapability {
    let access_type = Some(AccessType::Mount(MountVolume::default()));
    VolumeCapability { access_type, access_mode: Some(AccessMode { mode }) }
}

fn mount_of(fs_type: &str) -> VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.to_owned(), ..Default::default() };
    VolumeCapability { access_type: Some(AccessType::Mount(mount)), ..self::mount(1) }
}

fn block(mode: i32) -> VolumeCapability {
    VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..mount(mode) }
}

fn volume_request(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest { name: name.to_owned(), volume_capabilities: vec![mount(1)], ..Default::default() }
}

fn publish_request(volume_id: &str, node_id: &str) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume_id.to_owned(),
        node_id: node_id.to_owned(),
        volume_capability: Some(mount(1)),
        ..Default::default()
    }
}

fn text_map(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}
