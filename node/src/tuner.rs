//! What this node has done to the devices of its volumes, and the notes from which a later process takes it back.
//!
//! Read-ahead and limits stay with a device's number when its volume goes, and the next one at that number would have
//! them. So a note says that something may be set before anything is, and goes once nothing is.

use host::file::Dir;
use host::{Host, IoCgroup};
use journal::record;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use volume::{DeviceNumber, MutableParameters, Result, VolumeId};

pub(crate) struct Tuner {
    /// Relative to the root of whichever hierarchy can limit I/O.
    pub(crate) cgroups: Vec<PathBuf>,
    notes_dir: Dir,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The volumes that are connected here by this node.
    known: BTreeMap<VolumeId, Known>,
    /// As in the files.
    notes: BTreeMap<VolumeId, Note>,
    /// What the log says already, by whom it is about.
    said: BTreeMap<String, String>,
    listed: Arc<Vec<IoCgroup>>,
}

#[derive(Clone, Default)]
pub(crate) struct Known {
    /// Of the record that was applied; `None`: look at it again.
    pub(crate) mark: Option<u64>,
    /// `None`: nothing yet.
    pub(crate) applied: Option<MutableParameters>,
    /// Where its limits are set, when it has any.
    pub(crate) cgroups: Arc<Vec<IoCgroup>>,
}

/// `tuned/<volume id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Numbers of devices, and what the kernel keeps by them, are of one boot.
    pub(crate) boot_id: String,
    pub(crate) device: PathBuf,
    pub(crate) number: DeviceNumber,
    /// What the device had before; `None`: it was not changed.
    pub(crate) read_ahead_kib: Option<u32>,
    /// In which, and in all below them, it may have limits.
    pub(crate) cgroups: BTreeSet<PathBuf>,
}

impl Note {
    /// Nothing is set yet.
    pub(crate) fn new(boot_id: String, device: &Path, number: DeviceNumber) -> Self {
        Self { boot_id, device: device.to_owned(), number, read_ahead_kib: None, cgroups: BTreeSet::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.read_ahead_kib.is_none() && self.cgroups.is_empty()
    }
}

impl Tuner {
    /// Reads the notes of earlier processes.
    pub(crate) fn open(notes_dir: Dir, host: &dyn Host, cgroups: Vec<PathBuf>) -> Result<Self> {
        let boot_id = host.boot_id()?;
        let mut state = State::default();
        for name in notes_dir.names()? {
            // Not the half-written file of a replacement.
            let Ok(id) = VolumeId::parse(&name) else { continue };
            match record::read::<Note>(&notes_dir, &name) {
                Ok(Some(note)) if note.boot_id == boot_id => drop(state.notes.insert(id, note)),
                Ok(_) => drop(notes_dir.remove_file(&name)?),
                Err(error) => tracing::warn!(error = error.chain(), "a note on a device's settings cannot be read"),
            }
        }
        Ok(Self { cgroups, notes_dir, state: Mutex::new(state) })
    }

    pub(crate) fn note(&self, id: &VolumeId) -> Option<Note> {
        self.state().notes.get(id).cloned()
    }

    /// Of volumes of the backend that are not connected here.
    pub(crate) fn stale(&self, backend: &str) -> Vec<VolumeId> {
        let state = self.state();
        let is_stale = |id: &&VolumeId| id.backend() == backend && !state.known.contains_key(*id);
        state.notes.keys().filter(is_stale).cloned().collect()
    }

    /// What cannot be, when volume `id` is at that number: notes of others there, and its own of another number.
    pub(crate) fn misplaced(&self, id: &VolumeId, number: DeviceNumber) -> Vec<(VolumeId, Note)> {
        let state = self.state();
        let misplaced = state.notes.iter().filter(|(other, note)| (note.number == number) != (*other == id));
        misplaced.map(|(other, note)| (other.clone(), note.clone())).collect()
    }

    /// Durable before it returns. An empty one is removed.
    pub(crate) fn write(&self, id: &VolumeId, note: &Note) -> Result<()> {
        if note.is_empty() {
            return self.remove(id);
        }
        if self.note(id).as_ref() != Some(note) {
            record::replace(&self.notes_dir, id.as_str(), note)?;
            self.state().notes.insert(id.clone(), note.clone());
        }
        Ok(())
    }

    pub(crate) fn remove(&self, id: &VolumeId) -> Result<()> {
        if self.note(id).is_some() {
            self.notes_dir.remove_file(id.as_str())?;
            self.state().notes.remove(id);
        }
        Ok(())
    }

    /// The volume is connected here; the next look applies what is not applied.
    pub(crate) fn notice(&self, id: &VolumeId) {
        self.state().known.entry(id.clone()).or_default();
    }

    /// Whatever was applied to a connected volume counts no more.
    pub(crate) fn apply_again(&self, id: &VolumeId) {
        if let Some(known) = self.state().known.get_mut(id) {
            *known = Known::default();
        }
    }

    /// As [`Tuner::apply_again`], of all with settings at that number.
    pub(crate) fn apply_again_at(&self, number: DeviceNumber) {
        let mut state = self.state();
        let State { known, notes, .. } = &mut *state;
        let is_there = |id: &VolumeId| notes.get(id).is_some_and(|note| note.number == number);
        known.iter_mut().filter(|(id, _)| is_there(id)).for_each(|(_, known)| *known = Known::default());
    }

    pub(crate) fn set_known(&self, id: &VolumeId, known: Known) {
        self.state().known.insert(id.clone(), known);
    }

    /// Of the record that says what was applied.
    pub(crate) fn set_mark(&self, id: &VolumeId, applied: MutableParameters, mark: Option<u64>) {
        if let Some(known) = self.state().known.get_mut(id)
            && known.applied == Some(applied)
        {
            known.mark = mark;
        }
    }

    pub(crate) fn forget(&self, id: &VolumeId) {
        let mut state = self.state();
        state.known.remove(id);
        state.said.remove(id.as_str());
    }

    pub(crate) fn find_known(&self, id: &VolumeId) -> Option<Known> {
        self.state().known.get(id).cloned()
    }

    pub(crate) fn known(&self) -> Vec<(VolumeId, Known)> {
        self.state().known.iter().map(|(id, known)| (id.clone(), known.clone())).collect()
    }

    /// The cgroups in which limits are set, empty where there are none: then the log says so once. The same list is the
    /// same `Arc`.
    pub(crate) fn list_cgroups(&self, host: &dyn Host) -> Arc<Vec<IoCgroup>> {
        let (found, problem) = match host.io_cgroups(&self.cgroups) {
            Ok(found) => (found, None),
            Err(error) => (Vec::new(), Some(error.chain())),
        };
        self.say("cgroups", problem, "I/O limits are recorded, and cannot be applied here");
        let mut state = self.state();
        if *state.listed != found {
            state.listed = Arc::new(found);
        }
        state.listed.clone()
    }

    /// Logs what is new, and that it is over.
    pub(crate) fn say(&self, about: &str, problem: Option<String>, what: &'static str) {
        let before = {
            let mut state = self.state();
            match &problem {
                Some(problem) => state.said.insert(about.to_owned(), problem.clone()),
                None => state.said.remove(about),
            }
        };
        match (problem, before) {
            (Some(problem), before) if before.as_ref() != Some(&problem) => {
                tracing::warn!(about, error = problem, "{what}");
            }
            (None, Some(_)) => tracing::info!(about, "over: {what}"),
            (Some(_), _) | (None, None) => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every section under the lock is a plain read or assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
