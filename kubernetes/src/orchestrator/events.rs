//! Events on Nodes, Pods and claims. What is said again within a while is counted on the event that is there.

use super::words;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use std::collections::HashMap;
use tokio::sync::mpsc;

const CONTROLLER: &str = "csi.hawser.dev/supervisor";
/// A series ends when it was not heard of for so long; the API server keeps an event for an hour.
const SERIES: SignedDuration = SignedDuration::from_mins(30);
const MAX_NOTE_BYTES: usize = 1_000;
/// Of one occasion; a node may run hundreds of pods.
pub(super) const MAX_OBJECTS: usize = 40;
const BACKLOG: usize = 1_024;

/// One thing that is said of one object.
#[derive(Debug, Clone)]
pub(super) struct Notice {
    pub(super) about: ObjectReference,
    pub(super) reason: String,
    pub(super) is_warning: bool,
    pub(super) note: String,
}

/// To the task that writes them. When it does not keep up, events are lost and nothing else.
#[derive(Clone)]
pub(super) struct Recorder(mpsc::Sender<Notice>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: Option<String>,
    name: Option<String>,
    reason: String,
    /// Without numbers, which differ each time.
    note: String,
}

struct Said {
    namespace: String,
    name: String,
    count: i32,
    last: Timestamp,
}

impl Recorder {
    /// With the writer, which ends when all recorders are dropped.
    pub(super) fn new(client: Client, instance: String) -> (Self, impl Future<Output = ()>) {
        let (send, receive) = mpsc::channel(BACKLOG);
        (Self(send), write(client, instance, receive))
    }

    pub(super) fn say(&self, notice: Notice) {
        drop(self.0.try_send(notice));
    }
}

async fn write(client: Client, instance: String, mut notices: mpsc::Receiver<Notice>) {
    let mut said: HashMap<Key, Said> = HashMap::new();
    let mut problem = String::new();
    while let Some(notice) = notices.recv().await {
        let now = Timestamp::now();
        said.retain(|_, said| now.duration_since(said.last) < SERIES);
        let key = Key {
            uid: notice.about.uid.clone(),
            name: notice.about.name.clone(),
            reason: notice.reason.clone(),
            note: notice.note.chars().filter(|c| !c.is_ascii_digit()).collect(),
        };
        let written = match said.get_mut(&key) {
            Some(said) => again(&client, said, now).await,
            None => {
                first(&client, &instance, &notice, now).await.map(|said_now| drop(said.insert(key.clone(), said_now)))
            }
        };
        if let Err(error) = written {
            // Deleted meanwhile, perhaps: the next one begins anew.
            said.remove(&key);
            if error != problem {
                tracing::warn!(error, reason = notice.reason, "an event could not be written");
                problem = error;
            }
        }
    }
}

async fn first(client: &Client, instance: &str, notice: &Notice, now: Timestamp) -> Result<Said, String> {
    // Where events of what has no namespace are looked for.
    let namespace = notice.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let name = format!("{}.{:x}", notice.about.name.as_deref().unwrap_or("hawser"), now.as_nanosecond());
    let mut event = Event {
        action: Some("Failover".to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(cut(&notice.note)),
        reason: Some(notice.reason.clone()),
        regarding: Some(notice.about.clone()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(if notice.is_warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    };
    (event.metadata.namespace, event.metadata.name) = (Some(namespace.clone()), Some(name.clone()));
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    api.create(&PostParams::default(), &event).await.map_err(|error| words(&error))?;
    Ok(Said { namespace, name, count: 1, last: now })
}

async fn again(client: &Client, said: &mut Said, now: Timestamp) -> Result<(), String> {
    let api: Api<Event> = Api::namespaced(client.clone(), &said.namespace);
    let series = EventSeries { count: said.count + 1, last_observed_time: MicroTime(now) };
    let patch = Patch::Merge(json!({"series": series}));
    api.patch(&said.name, &PatchParams::default(), &patch).await.map_err(|error| words(&error))?;
    (said.count, said.last) = (said.count + 1, now);
    Ok(())
}

fn cut(note: &str) -> String {
    match note.char_indices().map(|(at, _)| at).take_while(|at| *at <= MAX_NOTE_BYTES).last() {
        Some(at) if note.len() > MAX_NOTE_BYTES => format!("{}...", &note[..at]),
        _ => note.to_owned(),
    }
}
