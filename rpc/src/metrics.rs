//! Prometheus metrics of the calls; others add theirs to the same registry.

use crate::Rpc;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::Code;

#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    calls: Family<Answered, Counter>,
    in_flight: Gauge,
    durations: Family<Called, Histogram, fn() -> Histogram>,
    steps: Family<Stepped, Histogram, fn() -> Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    rpc: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    rpc: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stepped {
    rpc: &'static str,
    step: &'static str,
}

/// From what a cached answer takes to what a call's deadline allows.
const BUCKETS_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            calls: Family::default(),
            in_flight: Gauge::default(),
            durations: Family::new_with_constructor(histogram),
            steps: Family::new_with_constructor(histogram),
            registry: Arc::default(),
        };
        registry.register("hawser_rpcs", "Calls answered, by call and gRPC code", metrics.calls.clone());
        registry.register(
            "hawser_rpcs_in_flight",
            "Calls whose work is running, also after their client went away",
            metrics.in_flight.clone(),
        );
        registry.register_with_unit(
            "hawser_rpc_duration",
            "From the start to the end of a call's work",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register_with_unit(
            "hawser_rpc_step_duration",
            "Of one step of a call's work",
            Unit::Seconds,
            metrics.steps.clone(),
        );
        Self { registry: Arc::new(Mutex::new(registry)), ..metrics }
    }

    /// Adds metrics of others: gauges, or a collector that reads its values when it is asked.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Everything in the OpenMetrics text format, for
    /// `Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8`.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String fails only if a metric's own encoding does; what was written until then is still true.
        let _ = text::encode(&mut text, &registry);
        text
    }

    /// How many works are running.
    pub(crate) fn in_flight(&self) -> &Gauge {
        &self.in_flight
    }

    pub(crate) fn answered(&self, rpc: Rpc, code: Code) {
        self.calls.get_or_create(&Answered { rpc: rpc.as_str(), code: code_name(code) }).inc();
    }

    pub(crate) fn worked(&self, rpc: Rpc, total: Duration, steps: &[(&'static str, Duration)]) {
        self.durations.get_or_create(&Called { rpc: rpc.as_str() }).observe(total.as_secs_f64());
        for (step, time) in steps {
            self.steps.get_or_create(&Stepped { rpc: rpc.as_str(), step }).observe(time.as_secs_f64());
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// As gRPC's documentation writes it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_format() {
        let metrics = Metrics::new();
        metrics.answered(Rpc::CreateVolume, Code::Aborted);
        metrics.worked(Rpc::CreateVolume, Duration::from_millis(7), &[("lock", Duration::from_millis(2))]);
        let volumes = Gauge::<i64>::default();
        metrics.register(|registry| registry.register("hawser_volumes", "Volumes", volumes.clone()));
        volumes.set(3);
        let text = metrics.encode();
        for line in [
            r#"hawser_rpcs_total{rpc="CreateVolume",code="ABORTED"} 1"#,
            r#"hawser_rpc_duration_seconds_count{rpc="CreateVolume"} 1"#,
            r#"hawser_rpc_step_duration_seconds_bucket{le="0.0025",rpc="CreateVolume",step="lock"} 1"#,
            "hawser_rpcs_in_flight 0",
            "hawser_volumes 3",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
