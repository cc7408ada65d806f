//! NodeGetVolumeHealth and NodeGetStorageHealth: what is wrong as seen from this node. Reasons are listed in
//! docs/operations.md.
//!
//! Whatever asks a pool or a device may hang, so it is a look ([`crate::looks`]): the call is answered all the same.

use crate::looks::Looks;
use crate::node::{Life, Node, check_granted};
use crate::observe::{View, describe};
use crate::target::NodePath;
use host::MountState;
use rpc::Trace;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use volume::{Connected, Connector, Error, ErrorKind, HealthProblem, Result, Severity, VolumeHealth, VolumeId};

/// How long each look is waited for; a call makes three at most.
const PATIENCE: Duration = Duration::from_secs(3);
/// A fence leaves less than this of a loop.
const LEAST_VISIBLE_BYTES: u64 = 4096;
const HUNG: &str = "PoolHung";
const UNREACHABLE: &str = "PoolUnreachable";
const FENCED: &str = "NodeFenced";
const AGAIN: &str = "see the kernel's log; it is checked when the volume is staged again";

/// NodeGetVolumeHealthRequest, parsed.
#[derive(Debug, Clone)]
pub(crate) struct HealthRequest {
    pub(crate) volume: VolumeId,
    pub(crate) volume_publish_path: Option<NodePath>,
    pub(crate) staging_target_path: Option<NodePath>,
}

pub(crate) fn looks() -> Looks {
    Looks::new(PATIENCE)
}

/// What tables and records say of a volume.
struct Observed {
    problems: Vec<HealthProblem>,
    device: Option<PathBuf>,
    /// Where its file system or directory is mounted.
    places: Vec<PathBuf>,
}

impl Node {
    /// CSI 1.13: also for a volume that is not staged here; `NotFound` only when there is no such volume.
    pub(crate) fn volume_health(self: &Arc<Self>, request: &HealthRequest, trace: &mut Trace) -> Result<VolumeHealth> {
        let id = &request.volume;
        self.connector(id)?;
        trace.step("storage");
        let mut health = VolumeHealth { volume: id.clone(), problems: Vec::new() };
        let storage = self.backend_health(id.backend());
        if storage.iter().any(|problem| problem.reason == HUNG) {
            health.problems = storage;
            return Ok(health);
        }
        let unreachable = storage.into_iter().find(|problem| problem.reason == UNREACHABLE);
        trace.step("observe");
        let (node, asked, reads_records) = (Arc::clone(self), request.clone(), unreachable.is_none());
        let looked = self.looks.look(&format!("volume {id}"), move || node.observe_health(&asked, reads_records))?;
        let Some(observed) = looked else {
            health.problems.push(self.hung(HUNG, "what is recorded of the volume and mounted of it"));
            return Ok(health);
        };
        health.problems = observed.problems;
        trace.step("device");
        let is_used = observed.device.is_some() || !observed.places.is_empty();
        let (node, device, places) = (Arc::clone(self), observed.device, observed.places);
        let found =
            self.looks.look(&format!("device of {id}"), move || Ok(node.try_out(device.as_deref(), &places)))?;
        let found = found.unwrap_or_else(|| vec![self.hung("DeviceHung", "a small read from the volume")]);
        if let Some(problem) = unreachable {
            // What is open goes on without the pool's directory, and nothing else does.
            let goes_on = is_used && found.is_empty();
            let severity = if goes_on { Severity::Degraded } else { Severity::Inaccessible };
            health.problems.push(HealthProblem { severity, ..problem });
        }
        health.problems.extend(found);
        Ok(health)
    }

    /// Of all backends, and of what this process may do. CSI wants each status and reason once.
    pub(crate) fn storage_health(self: &Arc<Self>, trace: &mut Trace) -> Vec<HealthProblem> {
        let mut problems = self.host.missing_privileges();
        let of_life = match &*self.life() {
            Life::Live(_) => None,
            Life::Starting(reason) => Some(("NodeNotRegistered", reason.clone())),
            Life::Fenced { reason, .. } => Some((FENCED, reason.clone())),
        };
        problems.extend(of_life.map(|(reason, said)| {
            let message = format!("nothing is staged or published on node {}: {said}", self.id);
            HealthProblem::new(Severity::Inaccessible, reason, message)
        }));
        trace.step("storage");
        for name in self.connectors.keys() {
            for problem in self.backend_health(name) {
                let message = format!("backend {name}: {}", problem.message);
                let is_same =
                    |one: &&mut HealthProblem| (one.severity, one.reason) == (problem.severity, problem.reason);
                match problems.iter_mut().find(is_same) {
                    Some(one) => one.message = format!("{}; {message}", one.message),
                    None => problems.push(HealthProblem { message, ..problem }),
                }
            }
        }
        problems
    }

    fn backend_health(&self, name: &str) -> Vec<HealthProblem> {
        let Some(connector) = self.connectors.get(name).cloned() else { return Vec::new() };
        match self.looks.look(&format!("storage {name}"), move || connector.storage_health()) {
            Ok(Some(problems)) => problems,
            Ok(None) => vec![self.hung(HUNG, "a look at the storage")],
            Err(error) => vec![HealthProblem::new(Severity::Inaccessible, UNREACHABLE, error.chain())],
        }
    }

    fn observe_health(&self, request: &HealthRequest, reads_records: bool) -> Result<Observed> {
        let id = &request.volume;
        let connector = self.connector(id)?;
        let mut problems = if reads_records { connector.volume_health(id)?.problems } else { Vec::new() };
        let view = match View::read(self, connector, id) {
            Err(_) if !reads_records => return Ok(Observed { problems, device: None, places: Vec::new() }),
            view => view?,
        };
        let device = match &view.connected {
            Some(Connected::Device { path, .. }) => Some(path.clone()),
            Some(Connected::Directory { .. }) | None => None,
        };
        if let Some(connected) = view.connected.as_ref().filter(|_| device.is_some()) {
            problems.extend(self.lost_grant(connector, id, connected, reads_records));
            problems.extend(self.cut_off(connected)?);
        }
        for path in [&request.volume_publish_path, &request.staging_target_path].into_iter().flatten() {
            let path = path.resolve(self.host.as_ref())?;
            if let Some(entry) = view.top(&path).filter(|_| !view.is_ours_at(&path)) {
                let message = format!("{} is mounted at {}, not the volume", describe(entry), path.display());
                problems.push(HealthProblem::new(Severity::Inaccessible, "ForeignMount", message));
            }
        }
        let places = view.file_system_places().into_iter().map(Path::to_owned).collect();
        Ok(Observed { problems, device, places })
    }

    /// The volume is connected, and its record gives it to somebody else or to nobody.
    fn lost_grant(
        &self,
        connector: &dyn Connector,
        id: &VolumeId,
        connected: &Connected,
        reads_records: bool,
    ) -> Option<HealthProblem> {
        let identity = match &*self.life() {
            Life::Live(identity) => identity.clone(),
            Life::Starting(_) => return None,
            Life::Fenced { reason, .. } => {
                return Some(HealthProblem::new(Severity::Inaccessible, FENCED, reason.clone()));
            }
        };
        // A record that cannot be read is a problem of its own.
        let volume = reads_records.then(|| connector.volume(id)).and_then(Result::ok)?;
        let lost = check_granted(&volume, &identity, Some(connected), None).err()?;
        Some(HealthProblem::new(Severity::Inaccessible, "AttachmentLost", lost.chain()))
    }

    fn cut_off(&self, connected: &Connected) -> Result<Option<HealthProblem>> {
        let Connected::Device { path, number, .. } = connected else { return Ok(None) };
        let limits = |device: &host::LoopDevice| {
            device.number == *number && (1..LEAST_VISIBLE_BYTES).contains(&device.size_limit_bytes)
        };
        let is_cut_off = self.host.loops()?.iter().any(limits);
        let message = format!("{} was cut off from its image by a fence; unpublish and unstage it", path.display());
        Ok(is_cut_off.then(|| HealthProblem::new(Severity::Inaccessible, "DeviceCutOff", message)))
    }

    /// Asks the device and the mounts themselves. Hangs as long as they do.
    fn try_out(&self, device: Option<&Path>, places: &[PathBuf]) -> Vec<HealthProblem> {
        let mut problems = Vec::new();
        let mut add = |severity, reason: &'static str, message: String| {
            if !problems.iter().any(|one: &HealthProblem| one.reason == reason) {
                problems.push(HealthProblem::new(severity, reason, message));
            }
        };
        if let Some(Err(error)) = device.map(|device| self.host.try_device(device)) {
            add(Severity::Inaccessible, "DeviceError", error.chain());
        }
        for place in places {
            let at = place.display();
            match self.host.try_mounted(place) {
                Ok(MountState::Sound) => {}
                Ok(MountState::WentReadOnly) => add(
                    Severity::Inaccessible,
                    "FileSystemReadOnly",
                    format!("the file system at {at} has met an error and is read-only now; {AGAIN}"),
                ),
                Ok(MountState::ShutDown) => add(
                    Severity::Inaccessible,
                    "FileSystemShutDown",
                    format!("the file system at {at} was shut down and answers only errors; {AGAIN}"),
                ),
                Ok(MountState::Errors(count)) => add(
                    Severity::Degraded,
                    "FileSystemErrors",
                    format!(
                        "the file system at {at} has noted {count} errors since it was last checked; unstage the volume and \
                         run e2fsck -f on its image"
                    ),
                ),
                // It went away just now.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => add(Severity::Inaccessible, "FileSystemError", chain_at(place, &error)),
            }
        }
        problems
    }

    fn hung(&self, reason: &'static str, what: &str) -> HealthProblem {
        let seconds = self.looks.patience().as_secs_f32();
        let message = format!("{what} did not end within {seconds} s; the storage below may be hung");
        HealthProblem::new(Severity::Inaccessible, reason, message)
    }
}

fn chain_at(place: &Path, error: &Error) -> String {
    format!("the file system at {}: {}", place.display(), error.chain())
}
