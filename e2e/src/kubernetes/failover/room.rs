//! The namespace of a run, with the lab that it is in.

use crate::failure::{Result, ensure};
use crate::kubernetes::ground::Ground;
use crate::kubernetes::space::Space;
use crate::kubernetes::{Lab, NODES};
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

    /// Removes everything, and looks whether the pool has let go of it. In this order, since what goes all at once waits
    /// for each other: a volume that is deleted while it is attached, and a namespace with claims in it, are looked at
    /// again only seconds later.
    pub(super) fn close(self) -> Result<()> {
        let cluster = &self.lab.cluster;
        let volumes = self.volumes()?;
        let names: Vec<&Value> = volumes.iter().map(|volume| &volume["metadata"]["name"]).collect();
        let handles = volumes.iter().filter_map(|volume| volume["spec"]["csi"]["volumeHandle"].as_str());
        let directories: Vec<PathBuf> = handles.map(|id| pool_of(self.lab).join("volumes").join(id)).collect();
        for kind in ["statefulsets", "deployments"] {
            cluster.delete(&format!("/apis/apps/v1/namespaces/{}/{kind}", self.name))?;
        }
        self.look("its pods gone", || {
            let left = cluster.list(&format!("/api/v1/namespaces/{}/pods", self.name))?;
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} pods", left.len())) })
        })?;
        self.look("its volumes detached", || {
            let mut left = cluster.list("/apis/storage.k8s.io/v1/volumeattachments")?;
            left.retain(|one| names.contains(&&one["spec"]["source"]["persistentVolumeName"]));
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} attachments", left.len())) })
        })?;
        cluster.delete(&format!("/api/v1/namespaces/{}/persistentvolumeclaims", self.name))?;
        self.look("its volumes deleted", || {
            let left = self.volumes()?;
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} volumes", left.len())) })
        })?;
        let left: Vec<&PathBuf> = directories.iter().filter(|directory| directory.exists()).collect();
        ensure(left.is_empty(), || format!("the pool still has {left:?}"))?;
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
