//! VolumeAttachments to a node whose object is gone.
//!
//! The mark is on the node's object, so nothing tells the attach/detach controller that such a node is out of service: it takes
//! the volumes as mounted there, by the status that the object had last, for six minutes, and attaches one that is for a
//! single node nowhere else meanwhile (`reconciler.reconcile` and `nodeDelete`, Kubernetes 1.36). A volume whose
//! VolumeAttachment is gone counts as detached at its next look at all of them, once a minute by default.

use super::objects::VolumeAttachment;
use super::{delete, words};
use k8s_openapi::api::storage::v1;
use kube::api::{ApiResource, ListParams};
use kube::{Api, Client};
use std::collections::HashSet;

/// Of these PersistentVolumes. They have to be fenced: whoever detaches them does not ask the node.
pub(super) async fn delete_of(client: &Client, node: &str, volumes: &HashSet<String>) -> Result<(), String> {
    let api: Api<VolumeAttachment> = Api::all_with(client.clone(), &ApiResource::erase::<v1::VolumeAttachment>(&()));
    let all = api.list(&ListParams::default()).await.map_err(|error| words(&error))?;
    let is_wanted = |one: &&VolumeAttachment| {
        let volume = one.spec.source.persistent_volume_name.as_ref();
        one.spec.node_name == node && volume.is_some_and(|name| volumes.contains(name))
    };
    for one in all.items.iter().filter(is_wanted) {
        let (name, uid) = (one.metadata.name.as_deref(), one.metadata.uid.as_deref());
        let (name, uid) = (name.unwrap_or_default(), uid.unwrap_or_default());
        delete(&api, name, uid).await.map_err(|why| format!("volumeattachment {name}: {why}"))?;
    }
    Ok(())
}
