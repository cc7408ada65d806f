//! What is wrong with volumes and storage, in words for the person who must act. Healthy is the empty list.

use crate::{Page, PageRequest, Result, VolumeId};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthProblem {
    pub severity: Severity,
    /// One word in CamelCase that programs can match; the known ones are listed in docs/operations.md.
    pub reason: &'static str,
    /// What was found and what to do.
    pub message: String,
}

/// CSI 1.13, VolumeHealthErrorType.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Severity {
    /// It works, and needs attention.
    Degraded,
    /// It cannot be read or written now; the data may be whole.
    Inaccessible,
    DataLoss,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeHealth {
    pub volume: VolumeId,
    /// Empty: healthy.
    pub problems: Vec<HealthProblem>,
}

impl HealthProblem {
    pub fn new(severity: Severity, reason: &'static str, message: impl Into<String>) -> Self {
        Self { severity, reason, message: message.into() }
    }
}

impl VolumeHealth {
    pub fn is_healthy(&self) -> bool {
        self.problems.is_empty()
    }

    pub fn worst(&self) -> Option<Severity> {
        self.problems.iter().map(|problem| problem.severity).max()
    }
}

/// What the storage itself knows of its volumes, seen from the controller.
pub trait Health: Send + Sync {
    /// `NotFound` when there is no such volume; a volume whose record is damaged is there, with that as its problem.
    fn volume_health(&self, id: &VolumeId) -> Result<VolumeHealth>;

    /// Only volumes with problems, in the order of ids.
    fn list_unhealthy(&self, page: &PageRequest) -> Result<Page<VolumeHealth>>;
}
