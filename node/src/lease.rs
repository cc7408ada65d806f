//! A node that can leave no sign of life in a storage stops its own writing there, where nothing but itself would
//! ([`volume::Connector::lease`]). Defence in depth: no proof and no grant rests on it.
//!
//! The storage may hang, so nothing here asks it: which devices there are was noted when they were connected.

use crate::crew;
use crate::node::Node;
use crate::observe::is_file_system_of;
use host::deadline;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use volume::{BackendName, DeviceNumber, Error, ErrorKind, Result, VolumeId};

#[derive(Default)]
pub(crate) struct Leases(Mutex<State>);

#[derive(Default)]
struct State {
    /// By backend; none before the first sign of life.
    leases: BTreeMap<String, Lease>,
    /// Of the volumes that are connected here by this node.
    devices: BTreeMap<VolumeId, (PathBuf, DeviceNumber)>,
}

struct Lease {
    renewed: Instant,
    /// At the last look.
    was_overdue: bool,
    /// Everything was stopped.
    is_over: bool,
}

impl Node {
    /// Stops the writing to each storage whose lease ran out. Blocks, for at most a step's deadline where devices hang.
    pub(crate) fn check_leases(self: &Arc<Self>, now: Instant) {
        for (name, connector) in &self.connectors {
            let Some(lease) = connector.lease() else { continue };
            if !self.leases.is_lost(name, lease, now) {
                continue;
            }
            let volumes = self.leases.volumes(name);
            tracing::error!(
                backend = name,
                volumes = volumes.len(),
                lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
                "no sign of life could be left in the storage for too long, so others may have its volumes: their file systems \
                 are shut down here, and the workloads that use them get errors until they are started anew"
            );
            let node = self.clone();
            let failures = crew::run(volumes, move |id| {
                // Now, since it may have been let go of.
                let Some((path, number)) = node.leases.device(id) else { return Ok(()) };
                let (one, what) = (node.clone(), format!("stopping the writing to volume {id}"));
                let stopped = deadline::run(node.step_deadline_ms, &what, move || one.stop_writing(&path, number));
                stopped.map_err(|error| format!("{id}: {}", error.chain()))
            });
            let failures: Vec<String> = failures.into_iter().filter_map(std::result::Result::err).collect();
            if failures.is_empty() {
                self.leases.end(name);
            } else {
                tracing::error!(backend = name, error = failures.join("; "), "not all is stopped; trying again");
            }
        }
    }

    /// Shuts the file system on the device down. What cannot be (btrfs, and a raw device, which has none) is cut off from its
    /// image, as a fence does it where it sees the loop.
    pub(crate) fn stop_writing(&self, device: &Path, number: DeviceNumber) -> Result<()> {
        let mounts = self.host.mounts()?;
        let mut own = mounts.iter().filter(|entry| is_file_system_of(entry, device, number)).peekable();
        let is_raw = own.peek().is_none();
        match own.find(|entry| !entry.read_only && entry.root == Path::new("/")) {
            Some(entry) => match self.host.shutdown_filesystem(&entry.mounted_at) {
                Err(error) if error.kind() == ErrorKind::Unsupported => self.limit_loop(number),
                done => done,
            },
            None if is_raw => self.limit_loop(number),
            None => Ok(()),
        }
    }

    fn limit_loop(&self, number: DeviceNumber) -> Result<()> {
        let Some(device) = self.host.loops()?.into_iter().find(|device| device.number == number) else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "it is not on a loop device, and nothing else can be cut off",
            ));
        };
        self.host.fence_loop(&device, self.step_deadline_ms).map(drop)
    }
}

impl Leases {
    pub(crate) fn renew(&self, backend: &BackendName) {
        let lease = Lease { renewed: Instant::now(), was_overdue: false, is_over: false };
        if self.state().leases.insert(backend.as_str().to_owned(), lease).is_some_and(|earlier| earlier.is_over) {
            tracing::warn!(%backend, "the storage is reached again; what was shut down stays so until it is staged anew");
        }
    }

    pub(crate) fn note(&self, id: &VolumeId, device: &Path, number: DeviceNumber) {
        self.state().devices.insert(id.clone(), (device.to_owned(), number));
    }

    /// To be called before the device is let go of: its number is somebody else's then.
    pub(crate) fn forget(&self, id: &VolumeId) -> Option<(PathBuf, DeviceNumber)> {
        self.state().devices.remove(id)
    }

    /// Overdue at two looks: a node that slept is so when it wakes, and is given the time to look whether it was fenced.
    fn is_lost(&self, backend: &str, lease: Duration, now: Instant) -> bool {
        let mut state = self.state();
        let Some(known) = state.leases.get_mut(backend).filter(|known| !known.is_over) else { return false };
        let is_overdue = now.saturating_duration_since(known.renewed) > lease;
        std::mem::replace(&mut known.was_overdue, is_overdue) && is_overdue
    }

    fn volumes(&self, backend: &str) -> Vec<VolumeId> {
        self.state().devices.keys().filter(|id| id.backend() == backend).cloned().collect()
    }

    fn device(&self, id: &VolumeId) -> Option<(PathBuf, DeviceNumber)> {
        self.state().devices.get(id).cloned()
    }

    fn end(&self, backend: &str) {
        if let Some(known) = self.state().leases.get_mut(backend) {
            known.is_over = true;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every section under the lock is a plain read or assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
