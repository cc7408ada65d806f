//! `hawser workload verify`: the ledger against the volume, and against the fence.

use super::block::{Buffer, RecordId, open, read_block};
use super::ledger::Ack;
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use volume::{Error, Result};

#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The directory or block device that was written to
    #[arg(long)]
    pub target: PathBuf,
    #[arg(long)]
    pub ledger: PathBuf,
    #[arg(long)]
    pub nonce: Uuid,
    /// With --fence-ns: the newest epoch that was fenced
    #[arg(long, requires = "fence_ns")]
    pub fenced_epoch: Option<u64>,
    /// With --fenced-epoch: when the fence had returned (CLOCK_MONOTONIC)
    #[arg(long, requires = "fenced_epoch")]
    pub fence_ns: Option<u64>,
    /// Fewer acknowledged records than this prove nothing
    #[arg(long, default_value_t = 1)]
    pub at_least: u64,
    #[arg(long, value_name = "PID")]
    pub mount_namespace_of: Option<u32>,
}

/// What the check found. Anything but `acked` and `in_flight` is a failure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    pub acked: u64,
    pub expected_at_least: u64,
    /// Begun before the fence had returned, reported after, and there: the writer was held up between the two.
    pub in_flight: u64,
    /// Acknowledged writes of a fenced epoch that began after the fence had returned.
    pub late: u64,
    /// Acknowledged, and not on the volume.
    pub lost: u64,
    /// Lines of the ledger that are no acks, or whose checksum is not the record's.
    pub tampered: u64,
    /// Lines of another run.
    pub foreign: u64,
    /// Records missing between two acknowledged ones of a writer, or acknowledged twice.
    pub gaps: u64,
    /// The first few, in words.
    pub examples: Vec<String>,
}

pub fn verify(args: &VerifyArgs) -> Result<Findings> {
    let text = std::fs::read_to_string(&args.ledger)
        .map_err(|error| Error::io(format!("cannot read the ledger {}", args.ledger.display()), error))?;
    let mut findings = Findings { expected_at_least: args.at_least, ..Findings::default() };
    let acks = findings.read(&text, args.nonce);
    findings.find_gaps(&acks);
    if let (Some(epoch), Some(fence_ns)) = (args.fenced_epoch, args.fence_ns) {
        findings.find_late(&acks, epoch, fence_ns);
    }
    findings.find_lost(&acks, &args.target)?;
    Ok(findings)
}

impl Findings {
    pub fn is_pass(&self) -> bool {
        self.acked >= self.expected_at_least && self.late + self.lost + self.tampered + self.foreign + self.gaps == 0
    }

    pub fn to_json(&self) -> Value {
        json!({
            "pass": self.is_pass(),
            "acked": self.acked,
            "in_flight": self.in_flight,
            "late": self.late,
            "lost": self.lost,
            "tampered": self.tampered,
            "foreign": self.foreign,
            "gaps": self.gaps,
            "examples": self.examples,
        })
    }

    pub fn to_text(&self) -> String {
        let mut text = format!("{} acknowledged, {} lost, {} late", self.acked, self.lost, self.late);
        for (count, what) in [
            (self.in_flight, "in flight at the fence and kept"),
            (self.tampered, "tampered ledger lines"),
            (self.foreign, "ledger lines of another run"),
            (self.gaps, "gaps in the ledger"),
        ] {
            if count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        if self.acked < self.expected_at_least {
            text.push_str(&format!(" (at least {} are needed to prove anything)", self.expected_at_least));
        }
        for example in &self.examples {
            text.push_str(&format!("\n  {example}"));
        }
        text
    }

    fn read(&mut self, text: &str, nonce: Uuid) -> Vec<Ack> {
        let mut acks = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            match serde_json::from_str::<Ack>(line) {
                Ok(ack) if ack.nonce != nonce => {
                    self.foreign += 1;
                    self.example(format!("line {number} is of run {}", ack.nonce));
                }
                Ok(ack) if ack.record().checksum() != ack.checksum => {
                    self.tampered += 1;
                    self.example(format!("line {number} does not match its checksum"));
                }
                Ok(ack) => acks.push(ack),
                Err(error) => {
                    self.tampered += 1;
                    self.example(format!("line {number} is no ack: {error}"));
                }
            }
        }
        self.acked = acks.len() as u64;
        acks
    }

    /// Each writer reports its records in order, so a hole means that the ledger is not whole.
    fn find_gaps(&mut self, acks: &[Ack]) {
        let mut next: BTreeMap<(u64, u32), u64> = BTreeMap::new();
        for ack in acks {
            let expected = next.entry((ack.epoch, ack.writer)).or_insert(0);
            if ack.seq != *expected {
                let expected = *expected;
                self.gaps += 1;
                self.example(format!(
                    "epoch {} writer {}: record {} follows where {expected} should",
                    ack.epoch, ack.writer, ack.seq
                ));
            }
            next.insert((ack.epoch, ack.writer), ack.seq + 1);
        }
    }

    fn find_late(&mut self, acks: &[Ack], fenced_epoch: u64, fence_ns: u64) {
        for ack in acks.iter().filter(|ack| ack.epoch <= fenced_epoch && ack.end_ns > fence_ns) {
            if ack.begin_ns < fence_ns {
                self.in_flight += 1;
            } else {
                self.late += 1;
                self.example(format!(
                    "epoch {} writer {} record {}: written {} us after the fence",
                    ack.epoch,
                    ack.writer,
                    ack.seq,
                    (ack.begin_ns - fence_ns) / 1000
                ));
            }
        }
    }

    /// In each slot the newest acknowledged record must be, or one of its writer that came later and was not acked.
    fn find_lost(&mut self, acks: &[Ack], target: &Path) -> Result<()> {
        let mut newest: BTreeMap<(u64, u64), &Ack> = BTreeMap::new();
        for ack in acks {
            let kept = newest.entry((ack.epoch, ack.slot)).or_insert(ack);
            if ack.seq > kept.seq {
                *kept = ack;
            }
        }
        let mut files: BTreeMap<u64, Option<File>> = BTreeMap::new();
        let mut buffer = Buffer::new();
        for ((epoch, slot), ack) in newest {
            let path = if target.is_dir() { target.join(format!("records-{epoch}")) } else { target.to_owned() };
            let file = match files.entry(epoch) {
                std::collections::btree_map::Entry::Occupied(found) => found.into_mut(),
                std::collections::btree_map::Entry::Vacant(missing) => match open(&path, false) {
                    Ok(file) => missing.insert(Some(file)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => missing.insert(None),
                    Err(error) => return Err(Error::io(format!("cannot open {}", path.display()), error)),
                },
            };
            let block = match file {
                Some(file) => read_block(file, slot, &mut buffer)
                    .map_err(|error| Error::io(format!("cannot read block {slot} of {}", path.display()), error))?,
                None => None,
            };
            let found = block.as_deref().and_then(RecordId::decode);
            let kept = found.is_some_and(|f| RecordId { seq: ack.seq, ..f } == ack.record() && f.seq >= ack.seq);
            if !kept {
                self.lost += 1;
                let there = match (found, block) {
                    (Some(f), _) => format!("record {} of epoch {}", f.seq, f.epoch),
                    (None, Some(_)) => "no whole record".to_owned(),
                    (None, None) => "nothing".to_owned(),
                };
                self.example(format!(
                    "epoch {epoch} writer {} record {} is lost: in block {slot} is {there}",
                    ack.writer, ack.seq
                ));
            }
        }
        Ok(())
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < 8 {
            self.examples.push(text);
        }
    }
}

#[cfg(test)]
mod tests;
