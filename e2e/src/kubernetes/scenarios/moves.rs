//! Pods that go elsewhere in peace.

use crate::failure::{Result, ensure};
use crate::kubernetes::cluster::has_condition;
use crate::kubernetes::space::{Space, Volume, claim, name_of, pod_spec};
use serde_json::{Value, json};
use std::time::Instant;

/// A Deployment's pod is deleted while its node takes no new ones.
pub(super) fn reschedule(space: &Space) -> Result<()> {
    space.create_claim(&claim("data", "hawser", "ReadWriteOnce", "1Gi"))?;
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "app"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "app"}},
            "template": {"metadata": {"labels": {"app": "app"}}, "spec": pod_spec(&[Volume::at("data", "/data")])},
        },
    });
    let collection = format!("/apis/apps/v1/namespaces/{}/deployments", space.name);
    space.cluster.create(&collection, &deployment)?;
    let (first, node) = running_pod(space, None)?;
    space.write(&first, "/data/file", "moved")?;
    cordon(space, &node, true)?;
    let began = Instant::now();
    space.cluster.delete(&space.path("pods", &first))?;
    let moved = running_pod(space, Some(&first));
    cordon(space, &node, false)?;
    let (second, other) = moved?;
    space.time("from the deletion to running elsewhere", began.elapsed());
    ensure(other != node, || format!("it is on {other} again"))?;
    space.ensure_content(&second, "/data/file", "moved")
}

/// Name and node of the ready pod that is not `other`.
fn running_pod(space: &Space, other: Option<&str>) -> Result<(String, String)> {
    let list = format!("/api/v1/namespaces/{}/pods", space.name);
    space.look("a pod of the deployment running", || {
        let pods = space.cluster.list(&list)?;
        let is_wanted = |pod: &&Value| has_condition(pod, "Ready") && other.is_none_or(|other| name_of(pod) != other);
        let found = pods.iter().find(is_wanted);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(found
            .map(|pod| (name_of(pod).to_owned(), text(&pod["spec"]["nodeName"])))
            .ok_or_else(|| pods.iter().map(|pod| pod["status"]["phase"].to_string()).collect::<Vec<_>>().join(", ")))
    })
}

fn cordon(space: &Space, node: &str, is_closed: bool) -> Result<()> {
    let change = json!({"spec": {"unschedulable": is_closed}});
    space.cluster.patch(&format!("/api/v1/nodes/{node}"), &change).map(drop)
}

/// Three pods with a volume each; all are deleted, and each finds its own again.
pub(super) fn stateful_set(space: &Space) -> Result<()> {
    let pods = ["db-0", "db-1", "db-2"];
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "db"},
        "spec": {
            "replicas": pods.len(),
            "serviceName": "db",
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": stateful_pod(),
            },
            "volumeClaimTemplates": [claim("data", "hawser-wait", "ReadWriteOnce", "1Gi")],
        },
    });
    let began = Instant::now();
    space.cluster.create(&format!("/apis/apps/v1/namespaces/{}/statefulsets", space.name), &set)?;
    for pod in pods {
        space.wait_running(pod)?;
    }
    space.time("three pods running", began.elapsed());
    for pod in pods {
        space.write(pod, "/data/name", pod)?;
        space.cluster.delete(&space.path("pods", pod))?;
    }
    for pod in pods {
        space.look(&format!("{pod} again"), || {
            let object = space.cluster.find(&space.path("pods", pod))?;
            let is_new = object.is_some_and(|object| object["metadata"]["deletionTimestamp"].is_null());
            Ok(if is_new { Ok(()) } else { Err("the old one is there".to_owned()) })
        })?;
        space.wait_running(pod)?;
        space.ensure_content(pod, "/data/name", pod)?;
    }
    Ok(())
}

fn stateful_pod() -> Value {
    let mut spec = pod_spec(&[Volume::at("data", "/data")]);
    // The set adds the volume of each pod.
    spec["volumes"] = json!([]);
    spec
}
