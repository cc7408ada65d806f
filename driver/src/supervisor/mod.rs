//! The supervisor in a controller: the runner over the agents' backends, with Kubernetes' adapter.

mod metrics;

use crate::config::Config;
use ::agent::{Agents, Beat, LifeState, News};
use failover::{AgentState, Clock, Heartbeat, Mailbox, Runner, Storage, Told};
use kubernetes::orchestrator::KubernetesOrchestrator;
use metrics::SupervisorMetrics;
use nix::time::{ClockId, clock_gettime};
use rpc::Metrics;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use volume::{Backends, NodeId, Result};

/// Runs until it is dropped.
pub struct Supervisor {
    /// Ends when the lease is given back.
    election: JoinHandle<()>,
    runner: AbortHandle,
}

/// The API server has this long to take the lease back.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);

/// Starts it where the configuration says so.
pub fn start(
    config: &Config,
    agents: Option<&Arc<Agents>>,
    metrics: &Metrics,
    stopping: watch::Receiver<bool>,
) -> Result<Option<Supervisor>> {
    let (Some(settings), Some(names), Some(agents)) = (&config.failover, &config.kubernetes, agents) else {
        return Ok(None);
    };
    let client = kubernetes::connect()?;
    let clock: Clock = Arc::new(boot_ms);
    let replica = settings.replica.clone();
    let adapter = Arc::new(KubernetesOrchestrator::new(client, names.clone(), replica, Arc::clone(&clock)));
    let storage = Storage::new(Arc::clone(agents) as Arc<dyn Backends>, format!("supervisor:{}", settings.replica));
    let gauges = SupervisorMetrics::new(metrics);
    let listener = gauges.listener();
    let (runner, mailbox) = Runner::new(settings.config.clone(), clock, storage, Arc::clone(&adapter), listener);
    gauges.collect(metrics, runner.board(), agents);
    let heard = mailbox.clone();
    agents.on_news(move |node, news| hear(&heard, node, news));
    let runner = tokio::spawn(runner.run()).abort_handle();
    let election = adapter.start(&mailbox, stopping);
    tracing::info!(replica = settings.replica, "nodes are supervised by whichever replica leads");
    Ok(Some(Supervisor { election, runner }))
}

impl Supervisor {
    /// After the process was asked to stop: until another replica can lead.
    pub async fn stop(mut self) {
        let _ = tokio::time::timeout(RELEASE_LIMIT, &mut self.election).await;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.runner.abort();
        self.election.abort();
    }
}

fn hear(mailbox: &Mailbox, node: &NodeId, news: News) {
    let node = node.clone();
    let told = match news {
        News::Connected => Told::Connection { node, is_up: true },
        News::Lost { .. } => Told::Connection { node, is_up: false },
        News::Refused => Told::Refused { node },
        News::Heartbeat(Beat { incarnation: Some(incarnation), sequence, state, sees_storage, .. }) => {
            let state = match state {
                LifeState::Running => AgentState::Running,
                LifeState::CleaningUp => AgentState::CleaningUp,
                LifeState::Clean => AgentState::Clean,
            };
            Told::Heartbeat(Heartbeat { node, incarnation, sequence, state, sees_storage })
        }
        // It does not know yet who it is.
        News::Heartbeat(_) => return,
    };
    mailbox.tell_lossy(told);
}

/// Also counts the time that the machine was suspended.
fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
