//! What of failovers is measured.

use agent::Agents;
use failover::{Board, EventReason, Listener, Output, Stage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;
use rpc::Metrics;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::watch;
use volume::NodeId;

#[derive(Clone)]
pub(super) struct SupervisorMetrics {
    failovers: Family<OfResult, Counter>,
    phases: Family<OfPhase, Histogram, fn() -> Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    phase: String,
}

/// From one call to a machine that is away for hours.
const BUCKETS_SECONDS: [f64; 13] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3_600.0];

impl SupervisorMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let own = Self { failovers: Family::default(), phases: Family::new_with_constructor(histogram) };
        metrics.register(|registry| {
            registry.register(
                "hawser_failovers",
                "Failovers that this replica led to their end",
                own.failovers.clone(),
            );
            registry.register_with_unit(
                "hawser_failover_phase",
                "How long a phase of a failover took",
                Unit::Seconds,
                own.phases.clone(),
            );
        });
        own
    }

    /// Of everything the core says.
    pub(super) fn listener(&self) -> Listener {
        let own = self.clone();
        let stages: Mutex<HashMap<NodeId, Stage>> = Mutex::default();
        Box::new(move |output| match output {
            Output::Record(entry) => {
                let mut stages = stages.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(before) = stages.insert(entry.node.clone(), entry.stage)
                    && entry.stage != Stage::Inspecting
                {
                    let phase = OfPhase { phase: word(&before) };
                    own.phases.get_or_create(&phase).observe(entry.took_ms as f64 / 1_000.0);
                }
                if entry.stage == Stage::Closed {
                    stages.remove(&entry.node);
                }
            }
            Output::Event { reason: EventReason::FailoverCompleted, .. } => own.count("completed"),
            Output::Event { reason: EventReason::VolumesNotReattached, .. } => own.count("not_reattached"),
            Output::Suspect { node, cause } => tracing::warn!(%node, %cause, "the node is suspected"),
            Output::Clear { node } => tracing::info!(%node, "the node is not suspected any more"),
            Output::Refuse { node, why } => tracing::warn!(%node, %why, "not failed over"),
            Output::Event { node: Some(node), reason, text } => tracing::warn!(%node, ?reason, text, "failover"),
            Output::Event { node: None, reason, text } => tracing::warn!(?reason, text, "failover"),
            Output::Act { .. } => {}
        })
    }

    /// What is read when somebody asks.
    pub(super) fn collect(&self, metrics: &Metrics, board: watch::Receiver<Board>, agents: &Arc<Agents>) {
        let now = Now { board, agents: Arc::downgrade(agents) };
        metrics.register(|registry| registry.register_collector(Box::new(now)));
    }

    fn count(&self, result: &'static str) {
        self.failovers.get_or_create(&OfResult { result }).inc();
    }
}

#[derive(Debug)]
struct Now {
    board: watch::Receiver<Board>,
    agents: Weak<Agents>,
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let board = self.board.borrow().clone();
        let leads = ConstGauge::new(i64::from(board.is_leader));
        let help = "1 if this replica leads";
        leads.encode(encoder.encode_descriptor("hawser_supervisor_is_leader", help, None, leads.metric_type())?)?;

        let mut refused: BTreeMap<String, i64> = BTreeMap::new();
        for refusal in board.nodes.iter().filter_map(|node| node.refusal.as_ref()) {
            *refused.entry(word(refusal)).or_default() += 1;
        }
        let kind = ConstGauge::new(0i64).metric_type();
        let help = "Lost nodes that are not failed over now, by what stands in the way";
        let mut family = encoder.encode_descriptor("hawser_failover_refused", help, None, kind)?;
        for (reason, count) in &refused {
            ConstGauge::new(*count).encode(family.encode_family(&[("reason", reason.as_str())])?)?;
        }

        let Some(agents) = self.agents.upgrade() else { return Ok(()) };
        let help = "Since the last heartbeat of the node's agent";
        let mut family = encoder.encode_descriptor("hawser_node_heartbeat_age", help, Some(&Unit::Seconds), kind)?;
        for state in agents.nodes() {
            if let Some(heard) = state.heard {
                let age = ConstGauge::new(heard.elapsed().as_secs_f64());
                age.encode(family.encode_family(&[("node", state.node.as_str())])?)?;
            }
        }
        Ok(())
    }
}

/// `no_proof` of what is written as `"no_proof"` or `{"no_proof": ...}`.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        Ok(Value::Object(fields)) => fields.into_iter().next().map(|(word, _)| word).unwrap_or_default(),
        _ => String::new(),
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS_SECONDS)
}
