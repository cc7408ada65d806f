//! What the node had begun with each volume when it stopped.

use crate::record;
use host::file::Dir;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use volume::{Epoch, Error, ErrorKind, Result, VolumeGuard, VolumeId};

/// The intents in one directory, at most one a volume.
pub struct Journal {
    dir: Dir,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub volume: VolumeId,
    pub operation: Operation,
    pub staging_target_path: Option<PathBuf>,
    pub target_path: Option<PathBuf>,
    pub epoch: Epoch,
    /// Milliseconds since the Unix epoch; for people, nothing is decided by it.
    pub started_at_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    Stage,
    Publish,
    Unpublish,
    Unstage,
}

/// One file of the journal.
#[derive(Debug)]
pub enum Entry {
    Intent(Intent),
    /// Damaged, or of a newer driver: kept as it is, for a person to look at.
    Unreadable {
        path: PathBuf,
        reason: Error,
    },
}

impl Intent {
    pub fn new(volume: &VolumeId, operation: Operation, epoch: Epoch) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            volume: volume.clone(),
            operation,
            staging_target_path: None,
            target_path: None,
            epoch,
            started_at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Journal {
    /// The journal in `dir`, which is its own.
    pub fn new(dir: Dir) -> Self {
        Self { dir }
    }

    /// Notes what is about to be done, so that it is known after this process was killed. An older note of the same volume
    /// gives way: whoever writes this one has observed the volume and found what the older one left.
    ///
    /// Nothing here is made durable. A power loss takes every mount and every loop device with it, so there is nothing
    /// left to look for that the note could tell; what it leaves at most is an empty target directory, and the caller
    /// repeats its call.
    pub fn begin(&self, guard: &VolumeGuard, intent: &Intent) -> Result<()> {
        guard.check(intent.volume.as_str())?;
        let name = file_name(&intent.volume);
        self.dir.discard_file(&name)?;
        if self.dir.publish_volatile(&name, &record::encode(intent)?)? {
            return Ok(());
        }
        let path = self.dir.path().join(&name);
        Err(Error::new(ErrorKind::AlreadyExists, format!("{} is there already", path.display())))
    }

    /// Forgets the volume's note; fine when there is none.
    pub fn end(&self, guard: &VolumeGuard, volume: &VolumeId) -> Result<()> {
        guard.check(volume.as_str())?;
        self.dir.discard_file(&file_name(volume))
    }

    pub fn find(&self, volume: &VolumeId) -> Result<Option<Intent>> {
        self.read(&file_name(volume))
    }

    /// `None` also for one that a power loss left without its content.
    fn read(&self, name: &str) -> Result<Option<Intent>> {
        let bytes = record::bytes(&self.dir, name)?.filter(|bytes| bytes.iter().any(|byte| *byte != 0));
        bytes.map(|bytes| record::decode(&self.dir, name, &bytes)).transpose()
    }

    /// Everything that is there, in the order of names.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let names = self.dir.names()?;
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            let unreadable = |reason| Entry::Unreadable { path: self.dir.path().join(&name), reason };
            match self.read(&name) {
                Ok(Some(intent)) if file_name(&intent.volume) == name => entries.push(Entry::Intent(intent)),
                Ok(Some(intent)) => {
                    entries.push(unreadable(Error::invalid(format!("it speaks of volume {}", intent.volume))));
                }
                // Removed meanwhile, or it says nothing.
                Ok(None) => self.dir.discard_file(&name)?,
                Err(reason) => entries.push(unreadable(reason)),
            }
        }
        Ok(entries)
    }
}

fn file_name(volume: &VolumeId) -> String {
    format!("{volume}.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::Effects;
    use volume::{BackendName, LockTable, VolumeName};

    fn id(name: &str) -> VolumeId {
        VolumeId::of_name(&BackendName::parse("pool").unwrap(), &VolumeName::parse(name).unwrap())
    }

    #[test]
    fn one_note_a_volume() {
        let temporary = tempfile::tempdir().unwrap();
        let journal = Journal::new(Dir::open(temporary.path(), Effects::default()).unwrap());
        let (locks, a, b) = (LockTable::default(), id("a"), id("b"));
        let guard = locks.try_lock([a.as_str()]).unwrap();
        let stage = Intent {
            staging_target_path: Some("/staging/with\nnewline".into()),
            ..Intent::new(&a, Operation::Stage, Epoch(3))
        };
        journal.begin(&guard, &stage).unwrap();
        assert_eq!(journal.find(&a).unwrap(), Some(stage));
        let unstage = Intent::new(&a, Operation::Unstage, Epoch(3));
        journal.begin(&guard, &unstage).unwrap();
        assert!(matches!(&journal.entries().unwrap()[..], [Entry::Intent(found)] if *found == unstage));
        assert!(journal.begin(&guard, &Intent::new(&b, Operation::Stage, Epoch(1))).is_err(), "under another lock");
        journal.end(&guard, &a).unwrap();
        journal.end(&guard, &a).unwrap();
        assert!(journal.entries().unwrap().is_empty());
    }

    #[test]
    fn what_a_power_loss_emptied_is_forgotten() {
        let temporary = tempfile::tempdir().unwrap();
        let journal = Journal::new(Dir::open(temporary.path(), Effects::default()).unwrap());
        for (name, content) in [("a", &b""[..]), ("b", &[0; 4096])] {
            let path = temporary.path().join(file_name(&id(name)));
            std::fs::write(&path, content).unwrap();
            assert_eq!(journal.find(&id(name)).unwrap(), None);
            assert!(journal.entries().unwrap().is_empty());
            assert!(!path.exists());
        }
    }

    #[test]
    fn what_cannot_be_read_is_reported_and_kept() {
        let temporary = tempfile::tempdir().unwrap();
        let journal = Journal::new(Dir::open(temporary.path(), Effects::default()).unwrap());
        let (locks, a, b) = (LockTable::default(), id("a"), id("b"));
        let guard = locks.try_lock([a.as_str()]).unwrap();
        journal.begin(&guard, &Intent::new(&a, Operation::Publish, Epoch(1))).unwrap();
        let copy = temporary.path().join(file_name(&b));
        std::fs::copy(temporary.path().join(file_name(&a)), &copy).unwrap();
        std::fs::write(temporary.path().join("0-half.json"), "{\"format\":").unwrap();
        std::fs::write(temporary.path().join("0-newer.json"), "{\"format\":99}").unwrap();
        std::fs::create_dir(temporary.path().join("0-directory.json")).unwrap();
        let entries = journal.entries().unwrap();
        let unreadable = entries.iter().filter(|e| matches!(e, Entry::Unreadable { .. })).count();
        assert_eq!((entries.len(), unreadable), (5, 4), "{entries:?}");
        assert!(copy.exists());
    }
}
