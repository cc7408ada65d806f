//! Applies a volume's mutable parameters to its device: when it is connected, and again when its record or the cgroups
//! on this node change. A volume that never had any is left alone, as an administrator has set it.

use crate::node::{Node, check_granted};
use crate::tuner::{Known, Note};
use host::{IoCgroup, deadline};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use volume::{
    Connected, Connector, DeviceNumber, ErrorKind, IoLimits, MutableParameters, Result, Volume, VolumeGuard, VolumeId,
};

const NOT_TUNED: &str = "the mutable parameters of a volume could not be applied; trying again";
const NOT_TAKEN_BACK: &str = "the settings of a volume that is gone stay with its device's number; trying again";

impl Node {
    /// One look at all that is connected. A volume whose record has not changed costs one stat(2).
    pub(crate) fn tune(self: &Arc<Self>) {
        if self.identity().is_err() {
            return;
        }
        for name in self.connectors.keys() {
            let what = format!("applying mutable parameters of volumes of backend {name}");
            // A thread that hangs keeps the lock, so there is never more than one a backend.
            let Ok(guard) = self.locks.try_lock([what.as_str()]) else { continue };
            let (node, backend) = (self.clone(), name.clone());
            let looked = deadline::run(self.step_deadline_ms, &what, move || {
                let _guard = guard;
                node.tune_backend(&backend);
                Ok(())
            });
            self.tuner.say(&what, looked.err().map(|error| error.chain()), NOT_TUNED);
        }
    }

    fn tune_backend(self: &Arc<Self>, backend: &str) {
        let Some(connector) = self.connectors.get(backend) else { return };
        let volumes: Vec<_> = self.tuner.known().into_iter().filter(|(id, _)| id.backend() == backend).collect();
        let mut cgroups = None;
        for (id, known) in &volumes {
            match self.needs_tuning(connector.as_ref(), id, known, &mut cgroups) {
                Ok(false) => self.tuner.say(id.as_str(), None, NOT_TUNED),
                Ok(true) => {
                    let cgroups = cgroups.clone();
                    self.bounded(id, NOT_TUNED, move |node, guard, id| node.tune_again(guard, id, cgroups));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.tuner.say(id.as_str(), Some(error.chain()), NOT_TUNED),
            }
        }
        for id in self.tuner.stale(backend) {
            self.bounded(&id, NOT_TAKEN_BACK, Self::take_back_stale);
        }
    }

    /// Whether what was applied is not what the record says, or is not everywhere. `cgroups` are listed when the first
    /// volume needs them.
    fn needs_tuning(
        &self,
        connector: &dyn Connector,
        id: &VolumeId,
        known: &Known,
        cgroups: &mut Option<Arc<Vec<IoCgroup>>>,
    ) -> Result<bool> {
        let Some(applied) = known.applied else { return Ok(true) };
        if !applied.limits.is_unlimited() {
            let now = cgroups.get_or_insert_with(|| self.tuner.list_cgroups(self.host.as_ref()));
            if !Arc::ptr_eq(now, &known.cgroups) {
                return Ok(true);
            }
        }
        // Before the record is read, so that a later change makes another one.
        let mark = connector.record_mark(id)?;
        if mark.is_some() && mark == known.mark {
            return Ok(false);
        }
        let is_applied = connector.volume(id)?.mutable == applied;
        if is_applied {
            self.tuner.set_mark(id, applied, mark);
        }
        Ok(!is_applied)
    }

    /// A device that hangs holds up no other for longer than once: its thread keeps the volume's lock.
    fn bounded(
        self: &Arc<Self>,
        id: &VolumeId,
        what: &'static str,
        work: impl FnOnce(&Self, &VolumeGuard, &VolumeId) -> Result<()> + Send + 'static,
    ) {
        let Ok(guard) = self.locks.try_lock([id.as_str()]) else { return };
        let (node, own_id) = (self.clone(), id.clone());
        let done = deadline::run(self.step_deadline_ms, id.as_str(), move || work(&node, &guard, &own_id));
        self.tuner.say(id.as_str(), done.err().map(|error| error.chain()), what);
    }

    fn tune_again(&self, guard: &VolumeGuard, id: &VolumeId, cgroups: Option<Arc<Vec<IoCgroup>>>) -> Result<()> {
        // It may have been disconnected since it was listed.
        if self.tuner.find_known(id).is_none() {
            return Ok(());
        }
        let connector = self.connector(id)?;
        let volume = connector.volume(id)?;
        let connected = connector.observe(id)?;
        match &connected {
            // What was fenced meanwhile is cut off, and soon taken away.
            Some(Connected::Device { path, number, .. })
                if check_granted(&volume, &self.identity()?, connected.as_ref(), None).is_ok() =>
            {
                self.apply(guard, &volume, path, *number, cgroups)
            }
            _ => Ok(()),
        }
    }

    /// For a volume that was just connected, or found connected. Failing keeps no workload from its data: it is logged,
    /// and tried again at the next look.
    pub(crate) fn tune_connected(&self, guard: &VolumeGuard, volume: &Volume, device: &Path, number: DeviceNumber) {
        // The kernel may have raised the read-ahead when it attached the image, and the number may be another one.
        self.tuner.set_known(&volume.id, Known::default());
        self.leases.note(&volume.id, device, number);
        let applied = self.apply(guard, volume, device, number, None);
        self.tuner.say(volume.id.as_str(), applied.err().map(|error| error.chain()), NOT_TUNED);
    }

    /// The device is the volume's, as seen under the volume's lock.
    fn apply(
        &self,
        guard: &VolumeGuard,
        volume: &Volume,
        device: &Path,
        number: DeviceNumber,
        cgroups: Option<Arc<Vec<IoCgroup>>>,
    ) -> Result<()> {
        let (id, mutable, tuner, host) = (&volume.id, volume.mutable, &self.tuner, self.host.as_ref());
        guard.check(id.as_str())?;
        let _number = self.lock_number(number)?;
        self.clear_number(id, device, number)?;
        let known = tuner.find_known(id).unwrap_or_default();
        let note = tuner.note(id);
        if note.is_none() && mutable == MutableParameters::default() {
            tuner.set_known(id, Known { mark: None, applied: Some(mutable), cgroups: Arc::default() });
            return Ok(());
        }
        // Until all of it is done, none of it counts as done.
        tuner.apply_again(id);
        let mut next = match note {
            Some(note) => note,
            None => Note::new(host.boot_id()?, device, number),
        };
        if mutable.read_ahead_kib.is_some() && next.read_ahead_kib.is_none() {
            next.read_ahead_kib = Some(host.read_ahead_kib(device, number)?);
        }
        if !mutable.limits.is_unlimited() {
            next.cgroups.extend(tuner.cgroups.iter().cloned());
        }
        tuner.write(id, &next)?;

        if known.applied.map(|applied| applied.read_ahead_kib) != Some(mutable.read_ahead_kib)
            && let Some(kib) = mutable.read_ahead_kib.or(next.read_ahead_kib)
        {
            host.set_read_ahead(device, number, kib)?;
        }
        let mut applied_in = Arc::default();
        if mutable.limits.is_unlimited() {
            self.lift(number, next.cgroups.clone())?;
        } else {
            applied_in = cgroups.unwrap_or_else(|| tuner.list_cgroups(host));
            let had_same = known.applied.is_some_and(|applied| applied.limits == mutable.limits);
            for cgroup in applied_in.iter().filter(|one| !had_same || known.cgroups.binary_search(one).is_err()) {
                host.set_io_limits(number, &mutable.limits, cgroup)?;
            }
            // The configuration may have been another one.
            self.lift(number, next.cgroups.iter().filter(|name| !tuner.cgroups.contains(name)).cloned().collect())?;
        }

        next.read_ahead_kib = next.read_ahead_kib.filter(|_| mutable.read_ahead_kib.is_some());
        next.cgroups.retain(|name| !mutable.limits.is_unlimited() && tuner.cgroups.contains(name));
        tuner.write(id, &next)?;
        tuner.set_known(id, Known { mark: None, applied: Some(mutable), cgroups: applied_in });
        Ok(())
    }

    /// Takes back what volumes that were at this number have left there, and this one at another.
    fn clear_number(&self, id: &VolumeId, device: &Path, number: DeviceNumber) -> Result<()> {
        for (other, note) in self.tuner.misplaced(id, number) {
            self.take_back(&note, (note.number == number).then_some(device))?;
            self.tuner.remove(&other)?;
        }
        Ok(())
    }

    /// To be called while the volume is still connected: what comes to this device's number next must find nothing.
    pub(crate) fn untune(&self, id: &VolumeId) {
        let done = self.untune_noted(id);
        self.tuner.say(id.as_str(), done.err().map(|error| error.chain()), NOT_TAKEN_BACK);
    }

    fn untune_noted(&self, id: &VolumeId) -> Result<()> {
        let Some(note) = self.tuner.note(id) else { return Ok(()) };
        let _number = self.lock_number(note.number)?;
        // Should it stay connected after all, the next look applies everything again.
        self.tuner.apply_again(id);
        self.take_back(&note, Some(&note.device))?;
        self.tuner.remove(id)
    }

    /// Of a volume that is not connected here any more.
    fn take_back_stale(&self, _guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        let Some(note) = self.tuner.note(id).filter(|_| self.tuner.find_known(id).is_none()) else { return Ok(()) };
        let _number = self.lock_number(note.number)?;
        let is_used = self.host.loops()?.iter().any(|device| device.number == note.number);
        self.take_back(&note, (!is_used).then_some(note.device.as_path()))?;
        // A volume of ours may be at that number by now, and have lost its own limits.
        self.tuner.apply_again_at(note.number);
        self.tuner.remove(id)
    }

    /// Restores the read-ahead where `device` may be touched, and lifts all limits.
    fn take_back(&self, note: &Note, device: Option<&Path>) -> Result<()> {
        if let (Some(device), Some(kib)) = (device, note.read_ahead_kib)
            && let Err(error) = self.host.set_read_ahead(device, note.number, kib)
        {
            tracing::warn!(device = %device.display(), error = error.chain(), "the read-ahead is not what it was before");
        }
        let mut names = note.cgroups.clone();
        if !names.is_empty() {
            names.extend(self.tuner.cgroups.iter().cloned());
        }
        self.lift(note.number, names)
    }

    fn lift(&self, number: DeviceNumber, names: BTreeSet<PathBuf>) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = names.into_iter().collect();
        match self.host.io_cgroups(&names) {
            Ok(cgroups) => {
                cgroups.iter().try_for_each(|cgroup| self.host.set_io_limits(number, &IoLimits::default(), cgroup))
            }
            // None in which it could be limited: it is not.
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The number of a device can pass from one volume to another.
    fn lock_number(&self, number: DeviceNumber) -> Result<VolumeGuard> {
        let key = format!("device {}:{}", number.major, number.minor);
        self.locks.try_lock([key.as_str()])
    }

    /// Takes back what was done to the volume's device, and disconnects it.
    pub(crate) fn disconnect(&self, guard: &VolumeGuard, connector: &dyn Connector, id: &VolumeId) -> Result<()> {
        self.untune(id);
        let noted = self.leases.forget(id);
        if let Err(error) = connector.disconnect(guard, id, &self.identity_for_cleaning()?) {
            if let Some((device, number)) = noted {
                self.leases.note(id, &device, number);
            }
            return Err(error);
        }
        self.tuner.forget(id);
        Ok(())
    }
}
