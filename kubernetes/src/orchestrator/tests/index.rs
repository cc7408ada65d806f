//! The index of the cluster.

use crate::orchestrator::cluster::Cluster;
use crate::orchestrator::objects::{Node, PersistentVolume, Pod};
use serde_json::{Value, json};
use volume::{Incarnation, NodeId};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn node(name: &str, ready: &str, extra: Value) -> Node {
    let mut value = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": format!("uid-{name}")},
        "spec": {"podCIDR": "10.0.0.0/24"},
        "status": {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]},
    });
    let fields = extra.as_object().cloned().unwrap_or_default();
    fields.into_iter().for_each(|(key, field)| value[key] = field);
    object(value)
}

fn pod(name: &str, node: Option<&str>, claim: Option<&str>) -> Pod {
    let volumes = match claim {
        Some(claim) => {
            json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}, {"name": "t", "emptyDir": {}}])
        }
        None => json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]),
    };
    object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "db", "uid": format!("uid-{name}")},
        "spec": {"nodeName": node, "volumes": volumes, "containers": [{"name": "c"}]},
        "status": {"phase": "Running"},
    }))
}

fn volume(name: &str, driver: &str, claim: &str) -> PersistentVolume {
    let handle = format!("pool.v{:032x}", name.len());
    object(json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "csi": {"driver": driver, "volumeHandle": handle},
            "claimRef": {"namespace": "db", "name": claim, "uid": "uid-claim"},
        },
    }))
}

fn workloads(cluster: &Cluster, node: &str) -> Vec<String> {
    let workloads = cluster.workloads(&NodeId::parse(node).unwrap()).unwrap();
    workloads.into_iter().map(|workload| workload.id.0).collect()
}

fn listed() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.list_nodes(&[node("n1", "True", json!({}))]);
    cluster.list_volumes(&[
        volume("v", "csi.hawser.dev", "ours"),
        volume("vv", "csi.hawser.dev", "temporary-scratch"),
        volume("vvv", "csi.other.example", "theirs"),
    ]);
    cluster.list_pods(&[
        pod("a", Some("n1"), Some("ours")),
        pod("b", Some("n1"), Some("theirs")),
        pod("c", Some("n2"), Some("ours")),
        pod("d", None, Some("ours")),
        pod("temporary", Some("n1"), None),
    ]);
    cluster
}

#[test]
fn nothing_is_known_before_all_has_been_listed() {
    let mut cluster = Cluster::default();
    let n1 = NodeId::parse("n1").unwrap();
    cluster.list_nodes(&[]);
    cluster.list_pods(&[]);
    assert!(cluster.workloads(&n1).is_err());
    cluster.list_volumes(&[]);
    assert!(cluster.workloads(&n1).unwrap().is_empty());
}

#[test]
fn a_nodes_workloads_are_its_pods_with_our_volumes() {
    let mut cluster = listed();
    assert_eq!(workloads(&cluster, "n1"), ["uid-a", "uid-temporary"]);
    assert_eq!(workloads(&cluster, "n2"), ["uid-c"]);
    let finished = json!({"phase": "Succeeded"});
    let mut value = serde_json::to_value(pod("temporary", Some("n1"), None)).unwrap();
    value["status"] = finished;
    cluster.apply_pod(&object(value));
    assert_eq!(workloads(&cluster, "n1"), ["uid-a"]);
    cluster.delete_volume("v");
    assert_eq!(workloads(&cluster, "n1"), Vec::<String>::new());
}

#[test]
fn what_we_deleted_does_not_come_back_with_a_late_message() {
    let mut cluster = listed();
    cluster.deleted_pod("uid-a");
    cluster.apply_pod(&pod("a", Some("n1"), Some("ours")));
    assert_eq!(workloads(&cluster, "n1"), ["uid-temporary"]);
    cluster.delete_pod("uid-a");
    let mut again = pod("a", Some("n1"), Some("ours"));
    again.metadata.uid = Some("uid-next".to_owned());
    cluster.apply_pod(&again);
    assert!(workloads(&cluster, "n1").contains(&"uid-next".to_owned()), "a pod of the same name is another one");
}

#[test]
fn a_pod_that_only_finalizers_hold_counts_as_gone_and_one_that_is_terminating_does_not() {
    let mut cluster = listed();
    for (grace, expected) in [(30, true), (0, false)] {
        let mut value = serde_json::to_value(pod("a", Some("n1"), Some("ours"))).unwrap();
        value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        cluster.apply_pod(&object(value));
        assert_eq!(workloads(&cluster, "n1").contains(&"uid-a".to_owned()), expected, "{grace}");
    }
}

#[test]
fn a_nodes_state_is_told() {
    let mut cluster = listed();
    let (id, state) = cluster.apply_node(&node("n1", "Unknown", json!({}))).unwrap();
    assert!(id.as_str() == "n1" && !state.is_ready && !state.in_maintenance && state.taint.is_none());
    let incarnation = Incarnation::new_random();
    let key = "node.kubernetes.io/out-of-service";
    let marked = json!({
        "spec": {"taints": [{"key": key, "value": "nodeshutdown", "effect": "NoExecute"},
            {"key": key, "value": incarnation.to_string(), "effect": "NoSchedule"}]},
        "metadata": {"name": "n1", "uid": "uid-n1", "annotations": {"hawser.dev/maintenance": "true"}},
    });
    let (_, state) = cluster.apply_node(&node("n1", "True", marked)).unwrap();
    assert!(state.is_ready && state.in_maintenance);
    assert_eq!(state.taint, Some(incarnation));
    let gone = cluster.list_nodes(&[]);
    assert!(
        matches!(gone.as_slice(), [(id, state)] if id.as_str() == "n1" && !state.is_ready && state.taint.is_none())
    );
}
