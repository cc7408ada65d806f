//! The watches that keep [`Cluster`] up to date. Each lists once, then follows; after an error it begins again with growing
//! pauses.

use super::Known;
use super::objects::{Node, PersistentVolume, Pod, resource};
use crate::trouble::Trouble;
use failover::{Mailbox, Told};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

/// What happened to objects of one sort.
enum Change<K> {
    All(Vec<K>),
    Applied(K),
    Deleted(K),
}

/// A connection that died without a word is noticed soon after this; what was known until then would be old. Going on costs one
/// request, and no list.
const WATCH_SECONDS: u32 = 30;
/// More than come while one is taken in.
const BACKLOG: usize = 256;

/// Follows all three until it is dropped, and tells `mailbox` how nodes are.
pub(super) fn start(tasks: &mut JoinSet<()>, client: &Client, known: &Arc<Known>, mailbox: Mailbox) {
    let mut nodes = follow(tasks, Api::<Node>::all_with(client.clone(), &resource("Node", "nodes")), "nodes");
    let mut pods = follow(tasks, Api::<Pod>::all_with(client.clone(), &resource("Pod", "pods")), "pods");
    let volumes = Api::<PersistentVolume>::all_with(client.clone(), &resource("PersistentVolume", "persistentvolumes"));
    let mut volumes = follow(tasks, volumes, "persistentvolumes");
    let cluster = Arc::clone(known);
    tasks.spawn(async move {
        while let Some(change) = nodes.recv().await {
            let changed = match change {
                Change::All(nodes) => cluster.cluster().list_nodes(&nodes),
                Change::Applied(node) => cluster.cluster().apply_node(&node).into_iter().collect(),
                Change::Deleted(node) => {
                    let name = node.metadata.name.unwrap_or_default();
                    cluster.cluster().delete_node(&name).into_iter().collect()
                }
            };
            for (node, state) in changed {
                if !mailbox.tell(Told::Node { node, state }).await {
                    return;
                }
            }
        }
    });
    let cluster = Arc::clone(known);
    tasks.spawn(async move {
        while let Some(change) = pods.recv().await {
            match change {
                Change::All(pods) => cluster.cluster().list_pods(&pods),
                Change::Applied(pod) => cluster.cluster().apply_pod(&pod),
                Change::Deleted(pod) => cluster.cluster().delete_pod(&pod.metadata.uid.unwrap_or_default()),
            }
        }
    });
    let cluster = Arc::clone(known);
    tasks.spawn(async move {
        while let Some(change) = volumes.recv().await {
            match change {
                Change::All(volumes) => cluster.cluster().list_volumes(&volumes),
                Change::Applied(volume) => cluster.cluster().apply_volume(&volume),
                Change::Deleted(volume) => cluster.cluster().delete_volume(&volume.metadata.name.unwrap_or_default()),
            }
        }
    });
}

fn follow<K>(tasks: &mut JoinSet<()>, api: Api<K>, what: &'static str) -> mpsc::Receiver<Change<K>>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let (send, receive) = mpsc::channel(BACKLOG);
    tasks.spawn(async move {
        let mut stream =
            pin!(kube::runtime::watcher(api, watcher::Config::default().timeout(WATCH_SECONDS)).default_backoff());
        let mut listed = Vec::new();
        let mut trouble = Trouble::new(what);
        while let Some(event) = stream.next().await {
            let Some(event) = trouble.heard(event) else { continue };
            let change = match event {
                Event::Init => {
                    listed.clear();
                    continue;
                }
                Event::InitApply(object) => {
                    listed.push(object);
                    continue;
                }
                Event::InitDone => Change::All(std::mem::take(&mut listed)),
                Event::Apply(object) => Change::Applied(object),
                Event::Delete(object) => Change::Deleted(object),
            };
            if send.send(change).await.is_err() {
                return;
            }
        }
    });
    receive
}
