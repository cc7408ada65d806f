//! What follows from where the bytes of two images are. Pure: no file is touched here.
//!
//! Two images that have the same address for the same offset at the same time hold the same bytes there, because a
//! block is one place. Everything that is not known for certain counts as different.

use host::file::{ExtentContent, ExtentPage};
use std::collections::VecDeque;
use std::ops::Range;
use volume::{ByteRange, Result};

/// Ranges begin and end on multiples of this, or at an end of what was asked for: readers use direct I/O.
const ALIGNMENT: u64 = 4096;
/// How often a place that is moved under us (balance, defragmentation) is looked at again.
const MAX_LOOKS: u32 = 8;

/// A part of an image: what is not in one of the pieces reads as zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    pieces: Vec<Piece>,
    /// Up to here the image is known.
    end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    /// Of its first byte; `None` when nothing is known of it but that there may be data.
    address: Option<u64>,
}

impl Map {
    /// What is beyond the end of an image: zeros.
    pub(crate) const NOTHING: Self = Self { pieces: Vec::new(), end: u64::MAX };

    /// Of an image of `size` bytes, from `from` on.
    pub(crate) fn new(page: &ExtentPage, from: u64, size: u64) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        for extent in &page.extents {
            let start = extent.offset_bytes.max(from);
            let end = extent.offset_bytes.saturating_add(extent.length_bytes).min(size);
            let address = match extent.content {
                ExtentContent::At(address) => address.checked_add(start - extent.offset_bytes),
                ExtentContent::Unwritten => continue,
                ExtentContent::Unknown => None,
            };
            if start >= end {
                continue;
            }
            match pieces.last_mut() {
                Some(last) if last.end == start && last.address_at(start) == address => last.end = end,
                _ => pieces.push(Piece { start, end, address }),
            }
        }
        Self { pieces, end: if page.end_bytes >= size { u64::MAX } else { page.end_bytes } }
    }

    fn forget_addresses(&mut self) {
        for piece in &mut self.pieces {
            piece.address = None;
        }
    }
}

impl Piece {
    fn address_at(&self, at: u64) -> Option<u64> {
        self.address?.checked_add(at.checked_sub(self.start)?)
    }
}

/// Ranges that were found in `..end`.
pub(crate) struct Window {
    pub(crate) found: Vec<Range<u64>>,
    pub(crate) end: u64,
}

/// What of `map` holds data.
pub(crate) fn allocated(map: Map) -> Window {
    Window { found: map.pieces.iter().map(|piece| piece.start..piece.end).collect(), end: map.end }
}

/// Reads both maps from `at` on, and compares as far as both reach. The base is read before and after the target: its
/// addresses count only if it had them all the while, since what moves blocks about could else put the target where
/// the base was.
pub(crate) fn changed(
    at: u64,
    mut base: impl FnMut(u64) -> Result<Map>,
    mut target: impl FnMut(u64) -> Result<Map>,
) -> Result<Window> {
    let mut before = base(at)?;
    for _ in 0..MAX_LOOKS {
        let of_target = target(at)?;
        let after = base(at)?;
        if before == after {
            return Ok(compare(&before, &of_target, at));
        }
        before = after;
    }
    before.forget_addresses();
    Ok(compare(&before, &target(at)?, at))
}

fn compare(base: &Map, target: &Map, from: u64) -> Window {
    let end = base.end.min(target.end);
    let (mut in_base, mut in_target) = (Cursor::new(&base.pieces), Cursor::new(&target.pieces));
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut at = from;
    while at < end {
        let ((one, one_ends), (other, other_ends)) = (in_base.at(at), in_target.at(at));
        let next = one_ends.min(other_ends).min(end);
        let same = match (one, other) {
            (None, None) => true,
            (Some(one), Some(other)) => one.address_at(at).is_some_and(|address| other.address_at(at) == Some(address)),
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same {
            match found.last_mut() {
                Some(last) if last.end == at => last.end = next,
                _ => found.push(at..next),
            }
        }
        at = next;
    }
    Window { found, end }
}

/// Goes over pieces once, in step with another one.
struct Cursor<'a> {
    rest: &'a [Piece],
}

impl<'a> Cursor<'a> {
    fn new(rest: &'a [Piece]) -> Self {
        Self { rest }
    }

    /// The piece at this offset, if it is no hole, and where that ends. Offsets only grow.
    fn at(&mut self, at: u64) -> (Option<&'a Piece>, u64) {
        while let Some((first, rest)) = self.rest.split_first() {
            if at < first.start {
                return (None, first.start);
            }
            if at < first.end {
                return (Some(first), first.end);
            }
            self.rest = rest;
        }
        (None, u64::MAX)
    }
}

/// The ranges of one window after the other, aligned and joined where they touch.
pub(crate) struct Ranges<F> {
    read: F,
    at: u64,
    from: u64,
    size: u64,
    ready: VecDeque<ByteRange>,
    /// The last range so far, which the next window may go on.
    open: Option<Range<u64>>,
}

impl<F: FnMut(u64) -> Result<Window>> Ranges<F> {
    /// From `from` up to `size`; `read` gives the window at an offset.
    pub(crate) fn new(from: u64, size: u64, read: F) -> Self {
        Self { read, at: from, from, size, ready: VecDeque::new(), open: None }
    }

    fn add(&mut self, found: &Range<u64>) {
        let start = (found.start - found.start % ALIGNMENT).max(self.from);
        let end = found.end.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX).min(self.size);
        match &mut self.open {
            Some(open) if start <= open.end => open.end = open.end.max(end),
            _ if start >= end => {}
            open => self.ready.extend(open.replace(start..end).map(closed)),
        }
    }
}

impl<F: FnMut(u64) -> Result<Window>> Iterator for Ranges<F> {
    type Item = Result<ByteRange>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(range) = self.ready.pop_front() {
                return Some(Ok(range));
            }
            if self.at >= self.size {
                return self.open.take().map(|last| Ok(closed(last)));
            }
            match (self.read)(self.at) {
                Ok(window) => {
                    window.found.iter().for_each(|found| self.add(found));
                    // A window that leads nowhere would go on for ever.
                    self.at = window.end.max(self.at.saturating_add(1));
                }
                Err(error) => {
                    (self.at, self.open) = (self.size, None);
                    return Some(Err(error));
                }
            }
        }
    }
}

fn closed(range: Range<u64>) -> ByteRange {
    ByteRange { offset_bytes: range.start, length_bytes: range.end - range.start }
}

#[cfg(test)]
mod tests;
