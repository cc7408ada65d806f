//! The namespace of a run, with the lab that it is in.

use crate::failure::Result;
use crate::kubernetes::{Lab, NODES};
use crate::kubernetes::ground::Ground;
use crate::kubernetes::space::Space;
use serde_json::Value;
use std::ops::Deref;
use std::path::PathBuf;

pub(super) struct Room<'a> {
    pub(super) lab: &'a Lab,
    space: Space<'a>,
}

impl<'a> Room<'a> {
    pub(super) fn open(lab: &'a Lab, ground: &'a Ground<'a>, name: &str) -> Result<Self> {
        Ok(Self { lab, space: Space::open(ground, name)? })
    }

    /// Removes everything, the workloads first: a volume that is deleted while it is attached is tried again only seconds
    /// later.
    pub(super) fn close(self) -> Result<()> {
        let cluster = &self.lab.cluster;
        for kind in ["statefulsets", "deployments"] {
            cluster.delete(&format!("/apis/apps/v1/namespaces/{}/{kind}", self.name))?;
        }
        let volumes: Vec<Value> = self.volumes()?.iter().map(|volume| volume["metadata"]["name"].clone()).collect();
        self.look("its volumes detached", || {
            let mut left = cluster.list("/apis/storage.k8s.io/v1/volumeattachments")?;
            left.retain(|one| volumes.contains(&one["spec"]["source"]["persistentVolumeName"]));
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} attachments", left.len())) })
        })?;
        self.space.close()
    }

    /// Begins to remove everything, as far as that can be done.
    pub(super) fn abandon(self) {
        let _ = self.lab.cluster.delete(&format!("/api/v1/namespaces/{}", self.name));
    }
}

impl<'a> Deref for Room<'a> {
    type Target = Space<'a>;

    fn deref(&self) -> &Space<'a> {
        &self.space
    }
}

/// The pool that all nodes share.
pub(super) fn pool_of(lab: &Lab) -> PathBuf {
    lab.place.pool_of(NODES[0])
}
