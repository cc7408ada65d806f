//! The history and the present state of failovers, kept in a ConfigMap: whoever may read it needs no hawser to do so.

use super::words;
use crate::names::Names;
use failover::{Clock, HistoryEntry, NodeStatus};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::sync::mpsc;

/// The newest are kept; a failover has about eight.
const MAX_LINES: usize = 200;
const HISTORY: &str = "history";
const STATUS: &str = "status";
/// What comes together is written together.
const GATHER: Duration = Duration::from_millis(200);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// One step of a failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// RFC 3339.
    pub at: String,
    pub node: String,
    /// The stage that begins, and how long the one before took.
    pub stage: String,
    pub took_ms: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// Which replica led.
    pub by: String,
}

/// How things stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Which replica led, and since when it is like this.
    pub by: String,
    pub at: String,
    /// Only those of which there is something to say.
    pub nodes: Vec<NodeStanding>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStanding {
    pub node: String,
    /// Why it counts as lost.
    pub suspected: Option<String>,
    pub stage: Option<String>,
    /// Since when it is at this stage; RFC 3339.
    pub since: Option<String>,
    /// What stands in the way.
    pub refusal: Option<String>,
}

/// The history, oldest first, and the present state.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    pub history: Vec<Line>,
    pub status: Standing,
}

/// To the task that writes them.
#[derive(Clone)]
pub(super) struct Keeper {
    send: mpsc::UnboundedSender<News>,
    by: String,
    clock: Clock,
}

enum News {
    Line(Line),
    Standing(Standing),
}

/// Reads the ConfigMap; an empty one is a history without lines.
pub async fn read(client: Client, names: &Names) -> Result<Report, String> {
    let (namespace, name) = (&names.namespace, names.failovers());
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let found = api.get_opt(&name).await.map_err(|error| words(&error))?;
    let Some(map) = found else {
        return Err(format!(
            "there is no ConfigMap {namespace}/{name}; check --namespace and --name, or the installation"
        ));
    };
    Ok(report(&map.data.unwrap_or_default()))
}

impl Keeper {
    /// With the writer, which ends when all keepers are dropped.
    pub(super) fn new(
        client: Client,
        names: &Names,
        by: String,
        clock: Clock,
    ) -> (Self, impl Future<Output = ()> + use<>) {
        let (send, receive) = mpsc::unbounded_channel();
        let api = Api::namespaced(client, &names.namespace);
        (Self { send, by, clock }, write(api, names.failovers(), receive))
    }

    pub(super) fn line(&self, entry: &HistoryEntry) {
        let line = Line {
            at: self.time_of(entry.at_ms),
            node: entry.node.to_string(),
            stage: snake_case(&entry.stage),
            took_ms: entry.took_ms,
            text: entry.text.clone(),
            by: self.by.clone(),
        };
        let _ = self.send.send(News::Line(line));
    }

    pub(super) fn standing(&self, nodes: &[NodeStatus]) {
        let now_ms = (self.clock)();
        let standing = |status: &NodeStatus| NodeStanding {
            node: status.node.to_string(),
            suspected: status.suspected.map(|cause| cause.to_string()),
            stage: status.stage.as_ref().map(snake_case),
            since: status.since_ms.map(|since| self.time_of(now_ms.saturating_sub(since))),
            refusal: status.refusal.as_ref().map(ToString::to_string),
        };
        let nodes = nodes.iter().map(standing).collect();
        let _ = self.send.send(News::Standing(Standing { by: self.by.clone(), at: self.time_of(now_ms), nodes }));
    }

    /// The time of day of an instant of the runner's clock.
    fn time_of(&self, at_ms: u64) -> String {
        let ago = Duration::from_millis((self.clock)().saturating_sub(at_ms));
        let at = Timestamp::now().checked_sub(ago).unwrap_or_else(|_| Timestamp::now());
        format!("{at:.3}")
    }
}

async fn write(api: Api<ConfigMap>, name: String, mut news: mpsc::UnboundedReceiver<News>) {
    let mut lines = Vec::new();
    let mut standing = None;
    let mut written = Standing::default();
    let mut pause = FIRST_PAUSE;
    let mut problem = String::new();
    while let Some(first) = news.recv().await {
        take(first, &mut lines, &mut standing);
        // Until it is written; what comes meanwhile is written along.
        loop {
            tokio::time::sleep(GATHER).await;
            while let Ok(more) = news.try_recv() {
                take(more, &mut lines, &mut standing);
            }
            standing = standing.filter(|standing| !is_like(standing, &written));
            if lines.is_empty() && standing.is_none() {
                break;
            }
            match publish(&api, &name, &lines, standing.as_ref()).await {
                Ok(()) => {
                    lines.clear();
                    written = standing.take().unwrap_or(written);
                    pause = FIRST_PAUSE;
                    problem.clear();
                    break;
                }
                Err(error) => {
                    if error != problem {
                        tracing::warn!(
                            error,
                            config_map = name,
                            "the history of failovers cannot be written; trying again"
                        );
                        problem = error;
                    }
                    let surplus = lines.len().saturating_sub(MAX_LINES);
                    lines.drain(..surplus);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

fn take(news: News, lines: &mut Vec<Line>, standing: &mut Option<Standing>) {
    match news {
        News::Line(line) => lines.push(line),
        News::Standing(newest) => *standing = Some(newest),
    }
}

/// Whether it says the same, whenever it was said.
fn is_like(one: &Standing, other: &Standing) -> bool {
    let words = |standing: &Standing| -> Vec<_> {
        let of =
            |node: &NodeStanding| (node.node.clone(), node.suspected.clone(), node.stage.clone(), node.refusal.clone());
        standing.nodes.iter().map(of).collect()
    };
    one.by == other.by && words(one) == words(other)
}

/// A compare-and-swap: another replica's lines are not lost.
async fn publish(api: &Api<ConfigMap>, name: &str, lines: &[Line], standing: Option<&Standing>) -> Result<(), String> {
    let found = api.get_opt(name).await.map_err(|error| words(&error))?;
    let mut map = found.ok_or_else(|| format!("there is no ConfigMap {name}; the chart makes it"))?;
    let data = map.data.get_or_insert_default();
    if !lines.is_empty() {
        let before = data.get(HISTORY).map(String::as_str).unwrap_or_default();
        data.insert(HISTORY.to_owned(), with_lines(before, lines));
    }
    if let Some(standing) = standing {
        data.insert(STATUS.to_owned(), serde_json::to_string(standing).unwrap_or_default());
    }
    api.replace(name, &PostParams::default(), &map).await.map(drop).map_err(|error| words(&error))
}

/// One JSON object a line, the newest last.
fn with_lines(before: &str, lines: &[Line]) -> String {
    let new = lines.iter().filter_map(|line| serde_json::to_string(line).ok());
    let mut all: VecDeque<String> = before.lines().map(str::to_owned).chain(new).collect();
    while all.len() > MAX_LINES {
        all.pop_front();
    }
    all.into_iter().map(|line| line + "\n").collect()
}

fn report(data: &BTreeMap<String, String>) -> Report {
    let text = |key: &str| data.get(key).map(String::as_str).unwrap_or_default();
    Report {
        // A line of another version is passed over rather than hiding all others.
        history: text(HISTORY).lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
        status: serde_json::from_str(text(STATUS)).unwrap_or_default(),
    }
}

fn snake_case<T: Serialize>(word: &T) -> String {
    serde_json::to_value(word).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept() {
        let line = |n: usize| Line {
            at: format!("{n}"),
            node: "n1".to_owned(),
            stage: "fencing".to_owned(),
            took_ms: 7,
            text: "with\na line".to_owned(),
            by: "a".to_owned(),
        };
        let mut text = String::new();
        for n in 0..MAX_LINES + 10 {
            text = with_lines(&text, &[line(n)]);
        }
        text.push_str("damaged\n");
        let data = BTreeMap::from([(HISTORY.to_owned(), text)]);
        let report = report(&data);
        assert_eq!(report.history.len(), MAX_LINES);
        assert_eq!(report.history.last(), Some(&line(MAX_LINES + 9)));
        assert_eq!(report.status, Standing::default());
    }
}
