//! Gauges of the storage: volumes, attachments, fences, bytes. Read when somebody asks, and never for long: a pool that
//! hangs leaves the last values, and `hawser_storage_observed` at 0.

use crate::storage::Storage;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use rpc::Metrics;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use volume::{Backend, CapacityQuery, Health, PageRequest, Result, Severity};

const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub struct Gauges {
    storage: Arc<Storage>,
    families: Families,
    /// Held by the thread that reads the storage: one that hangs is one, however often it is asked.
    running: Arc<Mutex<()>>,
}

#[derive(Clone, Default)]
struct Families {
    volumes: Family<OfKind, Gauge>,
    attachments: Family<OfNode, Gauge>,
    nodes: Family<OfState, Gauge>,
    fenced: Family<OfBackend, Gauge>,
    unhealthy: Family<OfSeverity, Gauge>,
    orphan_bytes: Family<OfBackend, Gauge>,
    available_bytes: Family<OfBackend, Gauge>,
    total_bytes: Family<OfBackend, Gauge>,
    provisioned_bytes: Family<OfBackend, Gauge>,
    connected: Family<OfBackend, Gauge>,
    observed: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBackend {
    backend: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    backend: String,
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct OfNode {
    backend: String,
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    backend: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSeverity {
    backend: String,
    severity: &'static str,
}

impl Gauges {
    pub fn new(storage: Arc<Storage>, metrics: &Metrics) -> Self {
        let families = Families::default();
        metrics.register(|registry| {
            let f = &families;
            registry.register("hawser_volumes", "Volumes, by kind", f.volumes.clone());
            registry.register("hawser_attachments", "Volumes that a node holds", f.attachments.clone());
            registry.register("hawser_nodes", "Nodes that registered, by state", f.nodes.clone());
            registry.register("hawser_fenced_attachments", "Grants of holders that are cut off", f.fenced.clone());
            registry.register("hawser_unhealthy_volumes", "Volumes by the worst that is wrong", f.unhealthy.clone());
            registry.register("hawser_orphan_bytes", "Kept of what fenced nodes wrote last", f.orphan_bytes.clone());
            registry.register("hawser_available_bytes", "What new volumes can take", f.available_bytes.clone());
            registry.register("hawser_total_bytes", "Size of the storage", f.total_bytes.clone());
            registry.register("hawser_provisioned_bytes", "Sizes of all volumes", f.provisioned_bytes.clone());
            registry.register("hawser_connected_volumes", "Volumes connected to this node", f.connected.clone());
            registry.register("hawser_storage_observed", "1 if these gauges are of now", f.observed.clone());
        });
        Self { storage, families, running: Arc::default() }
    }

    /// Reads the storage anew, or gives up at the deadline.
    pub async fn collect(&self) {
        let gauges = self.clone();
        let collected = tokio::time::timeout(DEADLINE, async move {
            let running = gauges.running.clone().lock_owned().await;
            tokio::task::spawn_blocking(move || {
                let _running = running;
                gauges.read()
            })
            .await
        })
        .await;
        let problem = match collected {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(error.chain()),
            Ok(Err(failed)) => Some(failed.to_string()),
            Err(_) => Some(format!("the storage does not answer within {} s", DEADLINE.as_secs())),
        };
        self.families.observed.set(i64::from(problem.is_none()));
        if let Some(error) = problem {
            tracing::warn!(error, "cannot read the storage for metrics");
        }
    }

    fn read(&self) -> Result<()> {
        self.families.volumes.clear();
        self.families.attachments.clear();
        self.families.nodes.clear();
        for entry in &self.storage.entries {
            self.read_backend(&*entry.backend)?;
            let of = OfBackend { backend: entry.backend.name().to_string() };
            // A volume that was fenced here can have several connections.
            let volumes: BTreeSet<_> = entry.connector.observe_all()?.into_iter().map(|(id, _)| id).collect();
            set(&self.families.connected.get_or_create(&of), volumes.len() as u64);
        }
        Ok(())
    }

    fn read_backend(&self, backend: &dyn Backend) -> Result<()> {
        let f = &self.families;
        let name = backend.name().to_string();
        let of = OfBackend { backend: name.clone() };
        let volumes = backend.list_volumes(&PageRequest::default())?.entries;
        let mut held: BTreeMap<OfNode, u64> = BTreeMap::new();
        let mut fenced = 0;
        for volume in &volumes {
            f.volumes.get_or_create(&OfKind { backend: name.clone(), kind: crate::commands::kind(volume.kind) }).inc();
            if let Some(attachment) = &volume.attachment {
                let node = attachment.holder.node.to_string();
                *held.entry(OfNode { backend: name.clone(), node }).or_default() += 1;
                fenced += u64::from(attachment.proof.is_some());
            }
        }
        for (of, count) in &held {
            set(&f.attachments.get_or_create(of), *count);
        }
        set(&f.fenced.get_or_create(&of), fenced);
        set(&f.provisioned_bytes.get_or_create(&of), volumes.iter().map(|volume| volume.size_bytes).sum());
        set(&f.available_bytes.get_or_create(&of), backend.capacity(&CapacityQuery::default())?.available_bytes);
        if let Some(health) = backend.health() {
            self.count_unhealthy(&name, health)?;
        }
        if let Some(bytes) = backend.total_bytes()? {
            set(&f.total_bytes.get_or_create(&of), bytes);
        }
        if let Some(attach) = backend.attach() {
            for node in attach.nodes()? {
                let state = if node.is_fenced() { "fenced" } else { "live" };
                f.nodes.get_or_create(&OfState { backend: name.clone(), state }).inc();
            }
        }
        if let Some(fence) = backend.fence() {
            let bytes = fence.orphans()?.iter().map(|orphan| orphan.allocated_bytes).sum();
            set(&f.orphan_bytes.get_or_create(&of), bytes);
        }
        Ok(())
    }

    /// All three are there, so that an alert on one has something to compare.
    fn count_unhealthy(&self, backend: &str, health: &dyn Health) -> Result<()> {
        let found = health.list_unhealthy(&PageRequest::default())?.entries;
        for severity in [Severity::Degraded, Severity::Inaccessible, Severity::DataLoss] {
            let label = match severity {
                Severity::Degraded => "degraded",
                Severity::Inaccessible => "inaccessible",
                Severity::DataLoss => "data_loss",
            };
            let count = found.iter().filter(|health| health.worst() == Some(severity)).count();
            let of = OfSeverity { backend: backend.to_owned(), severity: label };
            set(&self.families.unhealthy.get_or_create(&of), count as u64);
        }
        Ok(())
    }
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}
