//! Records that change by compare-and-swap between processes and machines that share nothing but a directory.
//!
//! Each state of a record is a file `record.<generation>`, linked complete and durable. The highest generation counts.
//! A writer links the one after what it read; link(2) fails for the second. Generations that are long past are removed,
//! so a writer that slept through many may find its name free: it lists the directory once more after linking, in one
//! getdents64 call, and has lost unless it sees itself on top. The highest generation is never removed, so it
//! only grows while the directory exists; and a directory that was moved away or replaced counts for nothing.

use crate::ballast::with_ballast;
use crate::leftovers::claim;
use host::file::{Dir, is_temporary};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;
use volume::{Error, ErrorKind, Result};

/// Generations kept for people to read, and for readers that are a little behind.
const KEEP: u64 = 16;
const MAX_RECORD_BYTES: u64 = 1 << 20;
const PREFIX: &str = "record.";
const NEW_PREFIX: &str = ".new-";
/// A loser reads again and decides again; more than this many losses in a row is not contention but a defect.
const MAX_ATTEMPTS: u32 = 64;

/// What can be kept in a [`RecordDir`].
pub(crate) trait Record: Clone + Serialize + DeserializeOwned {
    /// "volume", for messages.
    const WHAT: &'static str;
    /// What this driver writes.
    const FORMAT: u32;
    /// What to do about a damaged one, to follow a semicolon or a full stop.
    const REMEDY: &'static str;

    /// Turns a record of an older format into one of [`Record::FORMAT`]; `None` when there is no way.
    fn upgrade(from: u32, record: Value) -> Option<Value> {
        let _ = (from, record);
        None
    }
}

/// One state of a record, and the directory it was read from.
pub(crate) struct RecordDir<T> {
    parent: Dir,
    name: String,
    dir: Dir,
    generation: u64,
    record: T,
}

/// Whether a compare-and-swap took place. After `Lost` the state has to be read and decided on again.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Swap {
    Won,
    Lost,
}

/// The first line of a record's file. The second holds its checksum.
#[derive(Serialize, Deserialize)]
struct Envelope<R> {
    format: u32,
    generation: u64,
    record: R,
}

#[derive(Serialize, Deserialize)]
struct Checksum {
    crc32c: u32,
}

impl<T: Record> RecordDir<T> {
    /// Reads the record in the directory `name` of `parent`; `None` when there is no such directory.
    pub(crate) fn find(parent: &Dir, name: &str) -> Result<Option<Self>> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(dir) = parent.find_child(name)? else { return Ok(None) };
            let Some(generation) = highest(&dir)? else {
                if !in_place(parent, name, &dir)? {
                    continue;
                }
                return Err(corrupt::<T>(&dir, "it has no record"));
            };
            let bytes = match dir.read(&file_name(generation), MAX_RECORD_BYTES) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // A reader that was paused could have opened a late file of the same name: it counts only if it has been
            // on top from the first listing to this one.
            if highest(&dir)? != Some(generation) || !in_place(parent, name, &dir)? {
                continue;
            }
            let record = decode(&bytes, generation).map_err(|problem| problem.into_error::<T>(&dir, generation))?;
            return Ok(Some(Self { parent: parent.clone(), name: name.to_owned(), dir, generation, record }));
        }
        Err(busy(parent, name))
    }

    /// Makes the directory `name` with what `fill` puts into it (and makes durable, but for the names) and the record that
    /// it gives, all at once. `None` when the name is taken. A crash leaves a `.new-` directory, which [`is_unfinished`] knows.
    pub(crate) fn create(parent: &Dir, name: &str, fill: impl FnOnce(&Dir) -> Result<T>) -> Result<Option<Self>> {
        let unfinished = format!("{NEW_PREFIX}{}", Uuid::new_v4().simple());
        let dir = parent.begin_child(&unfinished)?;
        let made = (|| {
            claim(&dir)?;
            let record = fill(&dir)?;
            let generation = 1;
            Self::write_first(&dir, &record)?;
            if !parent.rename_noreplace(&unfinished, parent, name)? {
                return Ok(None);
            }
            let dir = parent.child(name)?;
            Ok(Some(Self { parent: parent.clone(), name: name.to_owned(), dir, generation, record }))
        })();
        if !matches!(made, Ok(Some(_)))
            && let Err(error) = parent.remove_tree(&unfinished)
        {
            tracing::warn!(
                error = error.chain(),
                "an unfinished directory stays behind; it is removed at the next start"
            );
        }
        made
    }

    /// The first record of a directory that is part of what [`RecordDir::create`] builds.
    pub(crate) fn write_first(dir: &Dir, record: &T) -> Result<()> {
        let generation = 1;
        let file = dir.write_new(&file_name(generation), &encode(record, generation)?)?;
        file.sync_all().map_err(|e| Error::io(format!("making {} durable", dir.path().display()), e))?;
        // Its names; the directory's own becomes durable with the rename that shows it.
        dir.sync()
    }

    /// Puts `record` in place of whatever is there, as `generation`, which no lost or damaged record has reached.
    /// `Lost` when a higher one is there or somebody else did the same.
    pub(crate) fn restore(parent: &Dir, name: &str, dir: &Dir, generation: u64, record: T) -> Result<Swap> {
        let below = generation.checked_sub(1).ok_or_else(|| Error::internal("a record cannot be restored as 0"))?;
        Self {
            parent: parent.clone(),
            name: name.to_owned(),
            dir: dir.clone(),
            generation: below,
            record: record.clone(),
        }
        .publish(record)
    }

    /// Reads, lets `plan` decide, and swaps; again when somebody else was first. `plan` gives `None` to leave the record
    /// as it is. `Ok(None)` when there is no such directory.
    pub(crate) fn change(
        parent: &Dir,
        name: &str,
        plan: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<Option<Self>> {
        Self::look_and_change(parent, name, true, plan)
    }

    /// As [`RecordDir::change`]; but what it leaves as it is may not be durable yet. For a look that another one follows
    /// before anything comes of it that outlives this kernel.
    pub(crate) fn change_or_peek(
        parent: &Dir,
        name: &str,
        plan: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<Option<Self>> {
        Self::look_and_change(parent, name, false, plan)
    }

    fn look_and_change(
        parent: &Dir,
        name: &str,
        makes_durable: bool,
        mut plan: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<Option<Self>> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(mut state) = Self::find(parent, name)? else { return Ok(None) };
            match plan(&state)? {
                None => {
                    if makes_durable {
                        // What is acted upon must not be undone by a power loss: whoever linked it may not have synced
                        // yet.
                        state.dir.sync()?;
                    }
                    return Ok(Some(state));
                }
                Some(next) => {
                    if state.publish(next)? == Swap::Won {
                        return Ok(Some(state));
                    }
                }
            }
        }
        Err(busy(parent, name))
    }

    /// Swaps the state that was read for `next`. An error leaves open which of both counts; a retry reads it.
    pub(crate) fn publish(&mut self, next: T) -> Result<Swap> {
        let generation =
            self.generation.checked_add(1).ok_or_else(|| corrupt::<T>(&self.dir, "its generations are used up"))?;
        let name = file_name(generation);
        let bytes = encode(&next, generation)?;
        match with_ballast(&self.parent, || self.dir.publish(&name, &bytes)) {
            Ok(true) => {}
            Ok(false) => return Ok(Swap::Lost),
            // What the kernel says of a directory that was removed under us depends on the file system.
            Err(_) if !in_place(&self.parent, &self.name, &self.dir)? => return Ok(Swap::Lost),
            Err(error) => return Err(error),
        }
        if highest(&self.dir)? != Some(generation) {
            // Either this was long past, or somebody built on it already; both read the state again.
            self.dir.discard_file(&name)?;
            return Ok(Swap::Lost);
        }
        if !in_place(&self.parent, &self.name, &self.dir)? {
            return Ok(Swap::Lost);
        }
        self.generation = generation;
        self.record = next;
        self.prune()?;
        Ok(Swap::Won)
    }

    pub(crate) fn record(&self) -> &T {
        &self.record
    }

    /// Grows with each change.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Whether this is still the state that counts.
    pub(crate) fn is_latest(&self) -> Result<bool> {
        Ok(highest(&self.dir)? == Some(self.generation) && in_place(&self.parent, &self.name, &self.dir)?)
    }

    fn prune(&self) -> Result<()> {
        for name in self.dir.names_at_once()? {
            if generation_of(&name).is_some_and(|old| old.saturating_add(KEEP) <= self.generation) {
                self.dir.discard_file(&name)?;
            }
        }
        Ok(())
    }
}

/// Whether a name is that of a directory whose making was cut short (or is under way).
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.starts_with(NEW_PREFIX) || is_temporary(name)
}

/// Whether a name in a directory of records is that of a record's directory. None starts with a dot.
pub(crate) fn is_entry(name: &str) -> bool {
    !name.starts_with('.')
}

pub(crate) fn is_record(name: &str) -> bool {
    generation_of(name).is_some()
}

/// `None` also for a directory that was removed.
fn highest(dir: &Dir) -> Result<Option<u64>> {
    match dir.names_at_once() {
        Ok(names) => Ok(names.iter().filter_map(|name| generation_of(name)).max()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn in_place(parent: &Dir, name: &str, dir: &Dir) -> Result<bool> {
    match parent.find_child(name)? {
        Some(there) => there.is_same(dir),
        None => Ok(false),
    }
}

fn file_name(generation: u64) -> String {
    format!("{PREFIX}{generation:016x}")
}

pub(crate) fn generation_of(name: &str) -> Option<u64> {
    let hex = name.strip_prefix(PREFIX)?;
    let canonical = hex.len() == 16 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    canonical.then(|| u64::from_str_radix(hex, 16).ok()).flatten()
}

fn encode<T: Record>(record: &T, generation: u64) -> Result<Vec<u8>> {
    let failed = |e| Error::with_source(ErrorKind::Internal, format!("writing a {} record", T::WHAT), e);
    let mut bytes = serde_json::to_vec(&Envelope { format: T::FORMAT, generation, record }).map_err(failed)?;
    if bytes.len() as u64 > MAX_RECORD_BYTES / 2 {
        return Err(Error::invalid(format!(
            "a {} record of {} bytes would be too large; give it fewer or shorter parameters",
            T::WHAT,
            bytes.len()
        )));
    }
    let checksum = Checksum { crc32c: crc32c::crc32c(&bytes) };
    bytes.push(b'\n');
    serde_json::to_writer(&mut bytes, &checksum).map_err(failed)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Why a record's file is not usable.
enum Problem {
    Newer(u32),
    NoUpgrade(u32),
    Damaged(String),
}

fn decode<T: Record>(bytes: &[u8], generation: u64) -> std::result::Result<T, Problem> {
    let damaged = |what: String| Problem::Damaged(what);
    let mut lines = bytes.split(|&b| b == b'\n');
    let (Some(body), Some(checksum)) = (lines.next(), lines.next()) else {
        return Err(damaged("it is not complete".to_owned()));
    };
    let expected: Checksum =
        serde_json::from_slice(checksum).map_err(|e| damaged(format!("its checksum cannot be read: {e}")))?;
    if crc32c::crc32c(body) != expected.crc32c {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    let envelope: Envelope<Value> =
        serde_json::from_slice(body).map_err(|e| damaged(format!("it cannot be read: {e}")))?;
    if envelope.generation != generation {
        return Err(damaged(format!("it says that it is generation {}", envelope.generation)));
    }
    let record = match envelope.format {
        newer if newer > T::FORMAT => return Err(Problem::Newer(newer)),
        own if own == T::FORMAT => envelope.record,
        older => T::upgrade(older, envelope.record).ok_or(Problem::NoUpgrade(older))?,
    };
    serde_json::from_value(record).map_err(|e| damaged(format!("it cannot be read: {e}")))
}

impl Problem {
    fn into_error<T: Record>(self, dir: &Dir, generation: u64) -> Error {
        let (what, known) = (T::WHAT, T::FORMAT);
        let file = dir.path().join(file_name(generation));
        let file = file.display();
        match self {
            Self::Newer(format) => Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the {what} record {file} has format {format}, and this driver knows up to {known}: a newer \
                     driver wrote it; use that one"
                ),
            ),
            Self::NoUpgrade(format) => Error::new(
                ErrorKind::Unsupported,
                format!("the {what} record {file} has format {format}, from which this driver cannot upgrade"),
            ),
            Self::Damaged(problem) => Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the {what} record {file} is damaged: {problem}; an older generation is not used in its place, since \
                     it could bring a former state back. {}",
                    T::REMEDY
                ),
            ),
        }
    }
}

fn corrupt<T: Record>(dir: &Dir, problem: &str) -> Error {
    let what = T::WHAT;
    Error::new(
        ErrorKind::Corrupt,
        format!("the {what} in {} is damaged: {problem}. {}", dir.path().display(), T::REMEDY),
    )
}

fn busy(parent: &Dir, name: &str) -> Error {
    let path = parent.path().join(name);
    Error::new(ErrorKind::Busy, format!("the record in {} keeps changing; retry", path.display()))
}

#[cfg(test)]
mod tests;
