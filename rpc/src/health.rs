//! Health in CSI's messages.

use csi_proto::csi;
use csi_proto::csi::node_get_storage_health_response::StorageBackendHealth;
use csi_proto::csi::volume_health::VolumeHealthEntry;
use volume::{HealthProblem, Severity, VolumeHealth};

/// CSI 1.13, VolumeHealth: one entry for each status and reason, the first one told.
pub fn volume(health: VolumeHealth) -> csi::VolumeHealth {
    let mut health_statuses: Vec<VolumeHealthEntry> = Vec::with_capacity(health.problems.len());
    for problem in health.problems {
        let status = i32::from(status(problem.severity));
        if !health_statuses.iter().any(|one| one.status == status && one.reason == problem.reason) {
            let (reason, message) = (problem.reason.to_owned(), problem.message);
            health_statuses.push(VolumeHealthEntry { status, reason, message });
        }
    }
    csi::VolumeHealth { volume_id: health.volume.to_string(), health_statuses }
}

/// CSI 1.13, StorageBackendHealth. `problems` has each severity and reason once.
pub fn storage(problems: Vec<HealthProblem>) -> csi::NodeGetStorageHealthResponse {
    let entry = |problem: HealthProblem| StorageBackendHealth {
        status: i32::from(match problem.severity {
            Severity::Degraded => csi::StorageHealthErrorType::StorageDegraded,
            Severity::Inaccessible | Severity::DataLoss => csi::StorageHealthErrorType::StorageUnreachable,
        }),
        reason: problem.reason.to_owned(),
        message: problem.message,
        volume_capability: None,
    };
    csi::NodeGetStorageHealthResponse { backend_health: problems.into_iter().map(entry).collect() }
}

fn status(severity: Severity) -> csi::VolumeHealthErrorType {
    match severity {
        Severity::Degraded => csi::VolumeHealthErrorType::Degraded,
        Severity::Inaccessible => csi::VolumeHealthErrorType::Inaccessible,
        Severity::DataLoss => csi::VolumeHealthErrorType::DataLoss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use volume::VolumeId;

    #[test]
    fn each_status_and_reason_once() {
        let problem = |severity, reason, message| HealthProblem::new(severity, reason, message);
        let problems = vec![
            problem(Severity::DataLoss, "ImageMissing", "gone"),
            problem(Severity::Degraded, "PoolFull", "first"),
            problem(Severity::Degraded, "PoolFull", "second"),
            problem(Severity::Inaccessible, "PoolFull", "worse"),
        ];
        let id = VolumeId::parse("pool.v00000000000000000000000000000000").unwrap();
        let told = volume(VolumeHealth { volume: id.clone(), problems });
        assert_eq!(told.volume_id, id.as_str());
        let entries: Vec<_> =
            told.health_statuses.iter().map(|one| (one.status, one.reason.as_str(), one.message.as_str())).collect();
        assert_eq!(entries, [(3, "ImageMissing", "gone"), (1, "PoolFull", "first"), (2, "PoolFull", "worse")]);
    }
}
