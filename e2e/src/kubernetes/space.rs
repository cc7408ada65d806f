//! A namespace of one scenario, and the objects in it.

use super::Lab;
use super::cluster::{Cluster, has_condition};
use super::ground::Ground;
use super::images::BUSYBOX_IMAGE;
use super::process::Seen;
use crate::failure::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What the scenario is still waiting for is in its error; a machine that is busy with other things is slow.
pub(super) const LIMIT: Duration = Duration::from_secs(180);

/// Of the namespaces of scenarios.
const LABEL: &str = "hawser.dev/e2e";

pub(super) struct Space<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) ground: &'a Ground<'a>,
    /// Of its namespace.
    pub(super) name: String,
}

/// A volume in a pod.
pub(super) struct Volume<'a> {
    pub(super) claim: &'a str,
    /// Where it is mounted, or the path of the device.
    pub(super) at: &'a str,
    pub(super) is_block: bool,
}

impl<'a> Volume<'a> {
    pub(super) fn at(claim: &'a str, at: &'a str) -> Self {
        Self { claim, at, is_block: false }
    }
}

pub(super) fn claim(name: &str, class: &str, access: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": class,
            "accessModes": [access],
            "resources": {"requests": {"storage": size}},
        },
    })
}

/// A pod that sleeps.
pub(super) fn pod(name: &str, volumes: &[Volume]) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec(volumes)})
}

pub(super) fn pod_spec(volumes: &[Volume]) -> Value {
    let of = |block: bool, path: &str| -> Vec<Value> {
        let chosen = volumes.iter().filter(|volume| volume.is_block == block);
        chosen.map(|volume| json!({"name": volume.claim, path: volume.at})).collect()
    };
    let sources = volumes
        .iter()
        .map(|volume| json!({"name": volume.claim, "persistentVolumeClaim": {"claimName": volume.claim}}));
    json!({
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main",
            "image": BUSYBOX_IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"],
            "volumeMounts": of(false, "mountPath"),
            "volumeDevices": of(true, "devicePath"),
        }],
        "volumes": sources.collect::<Vec<_>>(),
    })
}

/// The pod on this node, by the scheduler. A node's label of its host's name may be another than its own.
pub(super) fn on_node(mut pod: Value, node: &str) -> Value {
    let is_it = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    pod["spec"]["affinity"]["nodeAffinity"] = json!({
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [is_it]}]}
    });
    pod
}

impl<'a> Space<'a> {
    pub(super) fn open(ground: &'a Ground<'a>, scenario: &str) -> Result<Self> {
        let space = Self { cluster: ground.cluster, ground, name: ground.namespace(scenario) };
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space.name, "labels": {LABEL: "scenario"}}});
        space.cluster.create("/api/v1/namespaces", &object)?;
        // No pod is admitted before.
        space.cluster.wait("the namespace's service account", LIMIT, || {
            let account = space.cluster.find(&space.path("serviceaccounts", "default"))?;
            Ok(account.map(drop).ok_or_else(|| "it is not there".to_owned()))
        })?;
        Ok(space)
    }

    /// Of scenarios that need it, a mistake in the list of scenarios where it is missing.
    pub(super) fn lab(&self) -> Result<&'a Lab> {
        self.ground.lab.ok_or_else(|| "this is not the lab".into())
    }

    pub(super) fn node(&self, index: usize) -> &'a str {
        &self.ground.nodes[index % self.ground.nodes.len()]
    }

    pub(super) fn last_node(&self) -> &'a str {
        self.node(self.ground.nodes.len().saturating_sub(1))
    }

    /// Of objects of the core API.
    pub(super) fn path(&self, kind: &str, name: &str) -> String {
        format!("/api/v1/namespaces/{}/{kind}/{name}", self.name)
    }

    pub(super) fn create(&self, kind: &str, object: &Value) -> Result<()> {
        self.cluster.create(&format!("/api/v1/namespaces/{}/{kind}", self.name), object).map(drop)
    }

    pub(super) fn create_claim(&self, claim: &Value) -> Result<()> {
        self.create("persistentvolumeclaims", claim)
    }

    pub(super) fn create_pod(&self, pod: &Value) -> Result<()> {
        self.create("pods", pod)
    }

    /// Creates a claim and a pod that mounts it at /data, and waits for both.
    pub(super) fn start(&self, claim: &Value, pod: &Value) -> Result<()> {
        let began = Instant::now();
        self.create_claim(claim)?;
        self.create_pod(pod)?;
        self.wait_bound(name_of(claim))?;
        let bound = began.elapsed();
        self.wait_running(name_of(pod))?;
        self.time("claim bound", bound);
        self.time("pod running", began.elapsed());
        Ok(())
    }

    pub(super) fn time(&self, what: &str, took: Duration) {
        println!("time: {}: {what}: {:.2} s", self.name, took.as_secs_f64());
    }

    /// The name of its volume.
    pub(super) fn wait_bound(&self, claim: &str) -> Result<String> {
        self.look(&format!("claim {claim} bound"), || {
            let object = self.cluster.get(&self.path("persistentvolumeclaims", claim))?;
            Ok(match (&object["status"]["phase"], object["spec"]["volumeName"].as_str()) {
                (phase, Some(volume)) if phase == "Bound" => Ok(volume.to_owned()),
                (phase, _) => Err(phase.to_string()),
            })
        })
    }

    /// Ready, that is: its container runs. The node where it is.
    pub(super) fn wait_running(&self, pod: &str) -> Result<String> {
        self.look(&format!("pod {pod} running"), || {
            let object = self.cluster.find(&self.path("pods", pod))?;
            Ok(match object {
                Some(object) if has_condition(&object, "Ready") => {
                    Ok(object["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())
                }
                Some(object) => Err(object["status"]["phase"].to_string()),
                None => Err("there is none".to_owned()),
            })
        })
    }

    pub(super) fn look<T>(&self, what: &str, look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
        let found = self.cluster.wait(what, LIMIT, look);
        found.map_err(|failure| format!("{failure}; {}", self.cluster.warnings(&self.name)).into())
    }

    /// Runs a line of shell in a pod.
    pub(super) fn sh(&self, pod: &str, line: &str) -> Result<String> {
        let said = self.cluster.exec(&self.name, pod, &["sh", "-c", line])?;
        Ok(said.trim().to_owned())
    }

    /// Writes a file in a pod, to the disk.
    pub(super) fn write(&self, pod: &str, path: &str, text: &str) -> Result<()> {
        self.sh(pod, &format!("echo {text} > {path} && sync")).map(drop)
    }

    pub(super) fn ensure_content(&self, pod: &str, path: &str, text: &str) -> Result<()> {
        let found = self.sh(pod, &format!("cat {path}"))?;
        ensure(found == text, || format!("{path} in {pod} says {found:?}, not {text:?}"))
    }

    pub(super) fn delete_pod(&self, pod: &str) -> Result<()> {
        self.cluster.delete(&self.path("pods", pod))?;
        self.cluster.wait_gone(&self.path("pods", pod), LIMIT)
    }

    /// Removes everything in it, and waits until its volumes are gone from the cluster and, in the lab, from the pool.
    pub(super) fn close(self) -> Result<()> {
        let began = Instant::now();
        let volumes = self.volumes()?;
        let handles = volumes.iter().filter_map(|volume| volume["spec"]["csi"]["volumeHandle"].as_str());
        let pools = self.ground.lab.map(|lab| lab.place.pool_directories()).unwrap_or_default();
        let directories: Vec<_> =
            handles.flat_map(|id| pools.iter().map(move |pool| pool.join("volumes").join(id))).collect();
        self.empty()?;
        self.delete_namespace()?;
        self.look("its volumes deleted", || {
            let left = self.volumes()?;
            Ok(if left.is_empty() { Ok(()) } else { Err(json!(left).to_string()) })
        })?;
        self.time("removed", began.elapsed());
        let left: Vec<_> = directories.iter().filter(|directory| directory.exists()).collect();
        ensure(left.is_empty(), || format!("the pool still has {left:?}"))
    }

    /// What a failed scenario left on a cluster that is not the lab's; without waiting.
    pub(super) fn abandon(&self) {
        if self.ground.lab.is_none() {
            let _ = self.delete_namespace();
        }
    }

    /// Its end is waited for once, when all scenarios are through: it takes 5 s, whatever is in it.
    fn delete_namespace(&self) -> Result<()> {
        self.cluster.delete(&format!("/api/v1/namespaces/{}", self.name))
    }

    /// Pods and claims, and what would make them again. The namespace's own end would take 8 s more: it comes back only
    /// then to claims that a pod still has.
    pub(super) fn empty(&self) -> Result<()> {
        let of_apps = format!("/apis/apps/v1/namespaces/{}", self.name);
        for kind in ["deployments", "statefulsets"] {
            self.cluster.delete(&format!("{of_apps}/{kind}"))?;
        }
        for kind in ["pods", "persistentvolumeclaims"] {
            let all = format!("/api/v1/namespaces/{}/{kind}", self.name);
            self.cluster.delete(&all)?;
            self.look(&format!("its {kind} gone"), || {
                let left = self.cluster.list(&all)?;
                // What a controller made meanwhile.
                if left.iter().any(|object| object["metadata"]["deletionTimestamp"].is_null()) {
                    self.cluster.delete(&all)?;
                }
                let names = || left.iter().map(name_of).collect::<Vec<_>>().join(", ");
                Ok(if left.is_empty() { Ok(()) } else { Err(names()) })
            })?;
        }
        Ok(())
    }

    /// The persistent volumes of its claims.
    pub(super) fn volumes(&self) -> Result<Vec<Value>> {
        let all = self.cluster.list("/api/v1/persistentvolumes").context(|| "its volumes".to_owned())?;
        Ok(all.into_iter().filter(|volume| volume["spec"]["claimRef"]["namespace"] == *self.name).collect())
    }
}

/// Waits for the end of the namespaces of all scenarios, and so of whatever else was in them.
pub(super) fn wait_namespaces_gone(cluster: &Cluster) -> Result<()> {
    cluster.wait("the namespaces of all scenarios gone", LIMIT, || {
        let left = cluster.list(&format!("/api/v1/namespaces?labelSelector={}", LABEL.replace('/', "%2F")))?;
        let seen =
            || left.iter().map(|one| format!("{} {}", name_of(one), one["status"])).collect::<Vec<_>>().join(", ");
        Ok(if left.is_empty() { Ok(()) } else { Err(seen()) })
    })
}

pub(super) fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
