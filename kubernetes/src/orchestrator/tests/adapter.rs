//! The adapter against an API server in this process.

use super::api::Api;
use crate::orchestrator::{KubernetesOrchestrator, cordon, read_history, uncordon};
use crate::tests::names;
use failover::{
    Config, EventReason, HistoryEntry, Mailbox, NodeStatus, NodeView, Orchestrator, Refusal, Runner, Stage, Storage,
};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use volume::{Backend, Incarnation, NodeId};

const NODE: &str = "/api/v1/nodes/n1";
const MAP: &str = "/api/v1/namespaces/ns/configmaps/hawser-failover";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/hawser-supervisor";

struct Replica {
    adapter: Arc<KubernetesOrchestrator>,
    board: watch::Receiver<failover::Board>,
    stop: watch::Sender<bool>,
    election: JoinHandle<()>,
    _runner: JoinHandle<()>,
    _mailbox: Mailbox,
}

impl Replica {
    fn start(api: &Arc<Api>, replica: &str) -> Self {
        let began = Instant::now();
        let clock: failover::Clock = Arc::new(move || 5_000 + u64::try_from(began.elapsed().as_millis()).unwrap());
        let clock_of_adapter = Arc::clone(&clock);
        let adapter = KubernetesOrchestrator::new(api.client(), names(), replica.to_owned(), clock_of_adapter);
        let adapter = Arc::new(adapter);
        let storage = Storage::new(Arc::new(Vec::<Arc<dyn Backend>>::new()), "supervisor:test".to_owned());
        let (runner, mailbox) = Runner::new(Config::default(), clock, storage, Arc::clone(&adapter), Box::new(|_| {}));
        let board = runner.board();
        let runner = tokio::spawn(runner.run());
        let (stop, stopping) = watch::channel(false);
        let election = adapter.start(&mailbox, stopping);
        Self { adapter, board, stop, election, _runner: runner, _mailbox: mailbox }
    }

    async fn leads(&mut self) {
        let leads = self.board.wait_for(|board| board.is_leader);
        tokio::time::timeout(Duration::from_secs(20), leads).await.expect("it never leads").unwrap();
    }
}

fn pod_path(name: &str) -> String {
    format!("/api/v1/namespaces/db/pods/{name}")
}

fn pod(name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "db", "uid": uid},
        "spec": {"nodeName": "n1", "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]},
    })
}

fn cluster() -> Arc<Api> {
    let api = Api::default();
    let theirs = json!([{"key": "example.com/theirs", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]);
    api.put(
        NODE,
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "uid-n1"}, "spec": {"taints": theirs},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }),
    );
    api.put(
        "/api/v1/persistentvolumes/v",
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"},
            "spec": {
                "csi": {"driver": "csi.hawser.dev", "volumeHandle": format!("pool.v{:032x}", 1)},
                "claimRef": {"namespace": "db", "name": "data", "uid": "uid-data"},
            },
        }),
    );
    api.put(&pod_path("a"), pod("a", "uid-a"));
    api.put(&pod_path("b"), pod("b", "uid-b"));
    api.put(MAP, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hawser-failover"}}));
    Arc::new(api)
}

fn n1() -> NodeId {
    NodeId::parse("n1").unwrap()
}

/// A look at the node, once everything was listed.
async fn listed(adapter: &KubernetesOrchestrator) -> NodeView {
    for _ in 0..200 {
        if adapter.look(&n1()).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    adapter.look(&n1()).await.unwrap()
}

/// What is written by tasks of their own.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..200 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn a_node_is_marked_emptied_and_let_in_again() {
    let api = cluster();
    let mut replica = Replica::start(&api, "one");
    replica.leads().await;
    let adapter = &replica.adapter;
    let view = listed(adapter).await;
    assert!(view.node.is_known && view.node.taint.is_none());
    let workloads: Vec<_> = view.workloads.into_iter().map(|workload| workload.id).collect();
    assert_eq!(workloads.iter().map(|id| id.0.as_str()).collect::<Vec<_>>(), ["uid-a", "uid-b"]);

    // Somebody else changes the node in between: nothing of theirs is lost.
    let incarnation = Incarnation::new_random();
    *api.interferes.lock().unwrap() = Some(NODE.to_owned());
    adapter.taint(&n1(), incarnation).await.unwrap();
    assert_eq!(api.writes_of("PATCH").len(), 2, "the first was refused");
    let taints = api.get(NODE)["spec"]["taints"].clone();
    assert_eq!(taints[0]["timeAdded"], json!("2026-01-01T00:00:00Z"));
    assert_eq!(
        taints[1],
        json!({"key": "node.kubernetes.io/out-of-service", "value": incarnation.to_string(), "effect": "NoSchedule"})
    );
    assert_eq!(adapter.look(&n1()).await.unwrap().node.taint, Some(incarnation), "at once, not when a watch tells it");

    // By now `b` is another pod, which runs elsewhere.
    api.put(&pod_path("b"), pod("b", "uid-next"));
    adapter.evict(&n1(), &workloads).await.unwrap();
    assert_eq!(api.get(&pod_path("a")), Value::Null);
    assert_eq!(api.get(&pod_path("b"))["metadata"]["uid"], json!("uid-next"));
    assert!(adapter.look(&n1()).await.unwrap().workloads.is_empty());
    adapter.evict(&n1(), &workloads).await.unwrap();

    adapter.untaint(&n1(), Incarnation::new_random()).await.unwrap();
    assert_eq!(adapter.look(&n1()).await.unwrap().node.taint, Some(incarnation), "a mark of another life stays");
    adapter.untaint(&n1(), incarnation).await.unwrap();
    assert_eq!(api.get(NODE)["spec"]["taints"].as_array().unwrap().len(), 1);
    let gone = NodeId::parse("gone").unwrap();
    adapter.taint(&gone, incarnation).await.unwrap();
    assert!(!adapter.look(&gone).await.unwrap().node.is_known);
}

/// Nobody can mark a node without an object, so what would keep its volumes attached there goes.
#[tokio::test]
async fn a_node_without_an_object_loses_its_attachments_with_its_pods() {
    let path = |name: &str| format!("/apis/storage.k8s.io/v1/volumeattachments/{name}");
    for has_object in [true, false] {
        let api = cluster();
        for (name, node, volume) in [("own", "n1", "v"), ("elsewhere", "n2", "v"), ("of-others", "n1", "theirs")] {
            let spec = json!({"attacher": "any", "nodeName": node, "source": {"persistentVolumeName": volume}});
            let meta = json!({"name": name, "uid": format!("uid-{name}")});
            let kind = "VolumeAttachment";
            let version = "storage.k8s.io/v1";
            api.put(&path(name), json!({"apiVersion": version, "kind": kind, "metadata": meta, "spec": spec}));
        }
        if !has_object {
            api.remove(NODE);
        }
        let mut replica = Replica::start(&api, "one");
        replica.leads().await;
        let view = listed(&replica.adapter).await;
        assert_eq!(view.node.is_known, has_object);
        let workloads: Vec<_> = view.workloads.into_iter().map(|workload| workload.id).collect();
        replica.adapter.evict(&n1(), &workloads).await.unwrap();
        assert_eq!(api.get(&pod_path("a")), Value::Null);
        assert_eq!(!api.get(&path("own")).is_null(), has_object, "where there is a mark, Kubernetes detaches");
        assert!(!api.get(&path("elsewhere")).is_null() && !api.get(&path("of-others")).is_null());
    }
}

#[tokio::test]
async fn events_reach_pods_and_claims_and_are_counted() {
    let api = cluster();
    let mut replica = Replica::start(&api, "one");
    replica.leads().await;
    for _ in 0..200 {
        if replica.adapter.look(&n1()).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for second in 1..=3 {
        let text = format!("not failed over: waited for {second} s");
        replica.adapter.event(Some(&n1()), EventReason::FailoverRefused, &text);
    }
    let of_node = || api.below("/apis/events.k8s.io/v1/namespaces/default/events/");
    until("three times", || of_node().first().is_some_and(|event| event["series"]["count"] == json!(3))).await;
    assert_eq!(of_node().len(), 1);
    let event = &of_node()[0];
    assert_eq!((&event["reason"], &event["type"]), (&json!("FailoverRefused"), &json!("Warning")));
    assert_eq!(event["regarding"]["uid"], json!("uid-n1"));
    until("pods and the claim", || {
        let events = api.below("/apis/events.k8s.io/v1/namespaces/db/events/");
        let kinds: Vec<_> = events.iter().map(|event| event["regarding"]["kind"].clone()).collect();
        kinds == [json!("Pod"), json!("Pod"), json!("PersistentVolumeClaim")]
            || kinds.len() == 3 && kinds.contains(&json!("PersistentVolumeClaim"))
    })
    .await;
}

#[tokio::test]
async fn the_history_is_kept() {
    let api = cluster();
    let adapter = KubernetesOrchestrator::new(api.client(), names(), "one".to_owned(), Arc::new(|| 5_000));
    let entry = |stage, took_ms| HistoryEntry { node: n1(), at_ms: 5_000, stage, took_ms, text: String::new() };
    adapter.record(&entry(Stage::Inspecting, 0));
    adapter.record(&entry(Stage::Fencing, 12));
    let refused = NodeStatus {
        node: n1(),
        suspected: None,
        stage: Some(Stage::Refused),
        since_ms: Some(100),
        refusal: Some(Refusal::NothingMoves("it holds none".to_owned())),
    };
    adapter.status(&[refused]);
    until("written", || !api.get(MAP)["data"]["status"].is_null()).await;
    // One that is damaged hides no other.
    let mut map = api.get(MAP);
    map["data"]["history"] = json!(format!("{{\n{}", map["data"]["history"].as_str().unwrap()));
    api.put(MAP, map);
    let report = read_history(api.client(), &names()).await.unwrap();
    let lines: Vec<_> = report.history.iter().map(|line| (line.stage.as_str(), line.took_ms)).collect();
    assert_eq!(lines, [("inspecting", 0), ("fencing", 12)]);
    let standing = &report.status.nodes[0];
    assert_eq!(standing.stage.as_deref(), Some("refused"));
    assert!(standing.refusal.as_ref().is_some_and(|words| words.contains("it holds none")));
}

#[tokio::test]
async fn one_replica_leads_and_the_next_one_follows_at_once_or_after_the_lease() {
    let api = cluster();
    let mut one = Replica::start(&api, "one");
    one.leads().await;
    assert_eq!(api.get(LEASE)["spec"]["holderIdentity"], json!("one"));
    let mut two = Replica::start(&api, "two");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(one.board.borrow().is_leader && !two.board.borrow().is_leader);

    // Asked to stop: the lease is given back.
    let began = Instant::now();
    one.stop.send(true).unwrap();
    two.leads().await;
    assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
    one.election.await.unwrap();

    // Killed: the lease ends by itself.
    let mut three = Replica::start(&api, "three");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    two.election.abort();
    three.leads().await;
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1_500) && took < Duration::from_secs(5), "{took:?}");
    // It ended before, which is shown at the next tick.
    let ended = tokio::time::timeout(Duration::from_millis(500), two.board.wait_for(|board| !board.is_leader));
    assert!(ended.await.is_ok(), "what nobody renews ends");
    assert_eq!(api.get(LEASE)["spec"]["leaseTransitions"], json!(2));
}

#[tokio::test]
async fn maintenance_is_an_annotation() {
    let api = cluster();
    cordon(&api.client(), "n1").await.unwrap();
    let node = api.get(NODE);
    assert_eq!(node["spec"]["unschedulable"], json!(true));
    assert!(node["metadata"]["annotations"]["hawser.dev/maintenance"].is_string());
    uncordon(&api.client(), "n1").await.unwrap();
    let node = api.get(NODE);
    assert!(node["spec"].get("unschedulable").is_none() && node["metadata"]["annotations"] == json!({}));
    assert!(cordon(&api.client(), "n9").await.unwrap_err().contains("not found"));
}
