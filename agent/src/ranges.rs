//! Ranges of blocks over the wire: in pages, of which the next is asked for when it is needed.
//!
//! The agent keeps nothing from one page to the next, so a snapshot can go meanwhile, and another one of its name come:
//! when they were taken tells them apart.

use crate::operation::lacking;
use serde::{Deserialize, Serialize};
use std::vec::IntoIter;
use volume::{Backend, BlockRanges, ByteRange, Error, Result, SnapshotId};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RangesPage {
    size_bytes: u64,
    ranges: Vec<ByteRange>,
    /// From where the next page is to be asked for; `None`: this is the last one.
    next_bytes: Option<u64>,
    /// When each of the snapshots was taken, in milliseconds since the Unix epoch.
    taken_at_ms: Vec<u64>,
}

/// How many ranges are sent at once, at most: about 200 KiB.
const PAGE: usize = 4096;

/// At the agent: one page of what `open` finds in `snapshots`.
pub(crate) fn page(
    backend: &dyn Backend,
    snapshots: &[&SnapshotId],
    open: impl FnOnce() -> Result<BlockRanges>,
) -> Result<RangesPage> {
    let taken_at_ms = taken(backend, snapshots)?;
    let BlockRanges { size_bytes, ranges } = open()?;
    let ranges: Vec<ByteRange> = ranges.take(PAGE).collect::<Result<_>>()?;
    if taken(backend, snapshots)? != taken_at_ms {
        return Err(replaced());
    }
    let next_bytes = ranges.last().filter(|_| ranges.len() == PAGE).map(|last| last.end_bytes());
    Ok(RangesPage { size_bytes, ranges, next_bytes, taken_at_ms })
}

fn taken(backend: &dyn Backend, snapshots: &[&SnapshotId]) -> Result<Vec<u64>> {
    let all = backend.snapshots().ok_or_else(|| lacking(backend, "snapshots"))?;
    let taken = |id: &&SnapshotId| {
        let found = all.find_snapshot(id)?;
        let found = found.ok_or_else(|| Error::not_found(format!("there is no snapshot {id}")))?;
        Ok(found.created_at_ms)
    };
    snapshots.iter().map(taken).collect()
}

/// At the controller: all pages from `from_bytes` on. The first one is fetched at once.
pub(crate) fn fetched(
    from_bytes: u64,
    fetch: impl Fn(u64) -> Result<RangesPage> + Send + 'static,
) -> Result<BlockRanges> {
    let RangesPage { size_bytes, ranges, next_bytes, taken_at_ms } = fetch(from_bytes)?;
    let ranges = Fetched { fetch, size_bytes, taken_at_ms, next_bytes, page: ranges.into_iter() };
    Ok(BlockRanges { size_bytes, ranges: Box::new(ranges) })
}

struct Fetched<F> {
    fetch: F,
    size_bytes: u64,
    taken_at_ms: Vec<u64>,
    next_bytes: Option<u64>,
    page: IntoIter<ByteRange>,
}

impl<F: Fn(u64) -> Result<RangesPage>> Fetched<F> {
    fn turn(&self, from_bytes: u64) -> Result<RangesPage> {
        let page = (self.fetch)(from_bytes)?;
        if page.taken_at_ms != self.taken_at_ms || page.size_bytes != self.size_bytes {
            return Err(replaced());
        }
        if page.next_bytes.is_some_and(|next| next <= from_bytes) {
            return Err(Error::internal(format!("the agent's list of blocks does not get on from byte {from_bytes}")));
        }
        Ok(page)
    }
}

impl<F: Fn(u64) -> Result<RangesPage>> Iterator for Fetched<F> {
    type Item = Result<ByteRange>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(range) = self.page.next() {
                return Some(Ok(range));
            }
            let from_bytes = self.next_bytes.take()?;
            match self.turn(from_bytes) {
                Ok(RangesPage { ranges, next_bytes, .. }) => {
                    (self.page, self.next_bytes) = (ranges.into_iter(), next_bytes);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn replaced() -> Error {
    Error::not_found("the snapshot was deleted while its blocks were listed, and another one has its name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use volume::ErrorKind;

    /// A range of 1 byte at each of `starts`.
    fn one(starts: &[u64], next_bytes: Option<u64>, taken: u64) -> RangesPage {
        let ranges = starts.iter().map(|&offset_bytes| ByteRange { offset_bytes, length_bytes: 1 }).collect();
        RangesPage { size_bytes: 100, ranges, next_bytes, taken_at_ms: vec![taken] }
    }

    /// What came, and how the list ended.
    fn listed(fetch: impl Fn(u64) -> Result<RangesPage> + Send + 'static) -> (Vec<u64>, Option<ErrorKind>) {
        let (mut offsets, mut end) = (Vec::new(), None);
        for range in fetched(0, fetch).unwrap().ranges {
            assert!(end.is_none(), "something came after an error");
            match range {
                Ok(range) => offsets.push(range.offset_bytes),
                Err(error) => end = Some(error.kind()),
            }
        }
        (offsets, end)
    }

    #[test]
    fn pages_are_fetched_when_they_are_needed() {
        let count = Arc::new(AtomicUsize::new(0));
        let fetch = {
            let count = Arc::clone(&count);
            move |from| {
                count.fetch_add(1, Ordering::Relaxed);
                Ok(one(&[from, from + 2], (from < 20).then_some(from + 10), 7))
            }
        };
        let mut ranges = fetched(0, fetch.clone()).unwrap().ranges;
        assert_eq!(ranges.by_ref().take(2).count(), 2);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert_eq!(ranges.next().unwrap().unwrap().offset_bytes, 10);
        assert_eq!(count.load(Ordering::Relaxed), 2);
        assert_eq!(listed(fetch), (vec![0, 2, 10, 12, 20, 22], None));
    }

    #[test]
    fn what_ends_a_list() {
        let first = || one(&[0], Some(1), 7);
        let second = |page: fn() -> Result<RangesPage>| move |from| if from == 0 { Ok(first()) } else { page() };
        let away = || Err(Error::new(ErrorKind::Unavailable, "away"));
        assert_eq!(listed(second(away)), (vec![0], Some(ErrorKind::Unavailable)));
        assert_eq!(listed(second(|| Ok(one(&[5], None, 8)))), (vec![0], Some(ErrorKind::NotFound)));
        assert_eq!(listed(second(|| Ok(one(&[0], Some(1), 7)))), (vec![0], Some(ErrorKind::Internal)));
        assert_eq!(listed(second(|| Ok(one(&[], None, 7)))), (vec![0], None));
    }
}
