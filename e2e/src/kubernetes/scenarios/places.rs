//! Where volumes may be: topology and capacity.

use crate::failure::{Result, ensure};
use crate::kubernetes::ground::DRIVER;
use crate::kubernetes::space::{Space, Volume, claim, pod};
use serde_json::{Value, json};
use std::time::Instant;

const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
/// Waits for the first pod, which is when the scheduler asks for capacity.
const WAITING: &str = "hawser-wait";

/// A class that allows the place where the pool is, and one that allows none that there is.
pub(super) fn topology(space: &Space) -> Result<()> {
    let (key, value) = topology_of(space, space.node(0))?;
    let names = ["here", "nowhere"].map(|name| format!("{}-{name}", space.name));
    for (name, value) in names.iter().zip([value.as_str(), "nowhere"]) {
        let class = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": DRIVER,
            "volumeBindingMode": "WaitForFirstConsumer",
            "allowedTopologies": [{"matchLabelExpressions": [{"key": key, "values": [value]}]}],
        });
        space.cluster.create(CLASSES, &class)?;
    }
    let seen = allowed_and_not(space, &names, &key, &value);
    names.iter().try_for_each(|name| space.cluster.delete(&format!("{CLASSES}/{name}")))?;
    seen
}

fn allowed_and_not(space: &Space, [here, nowhere]: &[String; 2], key: &str, value: &str) -> Result<()> {
    space.start(&claim("data", here, "ReadWriteOnce", "64Mi"), &pod("app", &[Volume::at("data", "/data")]))?;
    let volumes = space.volumes()?;
    let terms = &volumes[0]["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    let wanted = json!([{"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}]);
    ensure(*terms == wanted, || format!("the volume's nodes are {terms}, not {wanted}"))?;
    space.create_claim(&claim("none", nowhere, "ReadWriteOnce", "64Mi"))?;
    space.create_pod(&pod("homeless", &[Volume::at("none", "/data")]))?;
    wait_unschedulable(space, "homeless", "available persistent volumes to bind")
}

/// Of the driver on this node: the key of its topology, and the value that the node's label has.
fn topology_of(space: &Space, node: &str) -> Result<(String, String)> {
    let drivers = space.cluster.get(&format!("/apis/storage.k8s.io/v1/csinodes/{node}"))?["spec"]["drivers"].clone();
    let own = drivers.as_array().and_then(|all| all.iter().find(|driver| driver["name"] == DRIVER));
    let key = own.and_then(|driver| driver["topologyKeys"][0].as_str());
    let key = key.ok_or_else(|| format!("{node} tells no topology of {DRIVER}: {drivers}"))?;
    let labels = space.cluster.get(&format!("/api/v1/nodes/{node}"))?["metadata"]["labels"].clone();
    let value = labels[key].as_str().ok_or_else(|| format!("{node} has no label {key}: {labels}"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The scheduler knows how much room there is: a pod whose volume does not fit is not sent to any node, and one whose
/// volume fits is.
pub(super) fn capacity(space: &Space) -> Result<()> {
    let began = Instant::now();
    let told = space.look("the pool's capacity told", || {
        // Where the provisioner runs; of any of the classes that it serves.
        let objects = space.cluster.list("/apis/storage.k8s.io/v1/csistoragecapacities")?;
        let of_class: Vec<&Value> = objects.iter().filter(|object| object["storageClassName"] == WAITING).collect();
        let told = of_class.iter().filter(|object| object["capacity"].is_string()).count();
        Ok(if told > 0 { Ok(told) } else { Err(format!("{} objects, {} of the class", objects.len(), of_class.len())) })
    })?;
    space.time("capacity told", began.elapsed());
    ensure(told > 0, || "no capacity is told".to_owned())?;
    space.create_claim(&claim("large", WAITING, "ReadWriteOnce", "900Ti"))?;
    space.create_pod(&pod("large", &[Volume::at("large", "/data")]))?;
    wait_unschedulable(space, "large", "did not have enough free storage")?;
    ensure_no_node_chosen(space, "large")?;
    space.start(&claim("small", WAITING, "ReadWriteOnce", "1Gi"), &pod("small", &[Volume::at("small", "/data")]))
}

/// Nobody chose a node for the claim, so the driver was not asked.
pub(super) fn ensure_no_node_chosen(space: &Space, claim: &str) -> Result<()> {
    let annotations =
        space.cluster.get(&space.path("persistentvolumeclaims", claim))?["metadata"]["annotations"].clone();
    let chosen = &annotations["volume.kubernetes.io/selected-node"];
    ensure(chosen.is_null(), || format!("a node was chosen for what fits nowhere: {annotations}"))
}

pub(super) fn wait_unschedulable(space: &Space, pod: &str, why: &str) -> Result<()> {
    space.look(&format!("the scheduler refuses the pod {pod}"), || {
        let conditions = space.cluster.get(&space.path("pods", pod))?["status"]["conditions"].to_string();
        Ok(if conditions.contains(why) { Ok(()) } else { Err(conditions) })
    })
}
