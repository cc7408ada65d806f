//! Against a model that knows every byte: random images whose blocks live at addresses of a simulated disk.

use super::*;
use host::file::Extent;
use proptest::prelude::*;

const BLOCK: u64 = 4096;

/// One block of an image, as a file system may map it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Hole,
    Unwritten,
    /// At this block of the disk.
    At(u64),
    /// With this content, at an address that must not be believed.
    Unknown(u64),
}

impl Block {
    /// What reading it gives; what is at an address is that address's own.
    fn content(self) -> (u64, u64) {
        match self {
            Self::Hole | Self::Unwritten => (0, 0),
            Self::At(address) => (1, address),
            Self::Unknown(content) => (2, content),
        }
    }
}

/// As a file system lists them: neighbours joined or not, at most `most` a page, the first from its real beginning.
fn page(blocks: &[Block], from: u64, most: usize) -> ExtentPage {
    let mut all: Vec<Extent> = Vec::new();
    for (n, block) in (0..).zip(blocks) {
        let content = match *block {
            Block::Hole => continue,
            Block::Unwritten => ExtentContent::Unwritten,
            Block::At(address) => ExtentContent::At(address * BLOCK),
            Block::Unknown(_) => ExtentContent::Unknown,
        };
        // Every third neighbour is listed alone, as where a flag differs that means nothing.
        let next = match content {
            ExtentContent::At(address) => ExtentContent::At(address.wrapping_sub(BLOCK)),
            same => same,
        };
        match all.last_mut() {
            Some(last)
                if n % 3 != 0 && last.offset_bytes + last.length_bytes == n * BLOCK && last_block(last) == next =>
            {
                last.length_bytes += BLOCK;
            }
            _ => all.push(Extent { offset_bytes: n * BLOCK, length_bytes: BLOCK, content }),
        }
    }
    all.retain(|extent| extent.offset_bytes + extent.length_bytes > from);
    all.truncate(most);
    let end_bytes = all.last().map_or(u64::MAX, |last| last.offset_bytes + last.length_bytes);
    ExtentPage { extents: all, end_bytes }
}

fn last_block(extent: &Extent) -> ExtentContent {
    match extent.content {
        ExtentContent::At(address) => ExtentContent::At(address + extent.length_bytes - BLOCK),
        same => same,
    }
}

fn map(blocks: &[Block], from: u64, most: usize) -> Map {
    let size = blocks.len() as u64 * BLOCK;
    if from >= size { Map::NOTHING } else { Map::new(&page(blocks, from, most), from, size) }
}

fn delta(base: &[Block], target: &[Block], from: u64, most: usize) -> Vec<ByteRange> {
    let size = target.len() as u64 * BLOCK;
    let read = |at| changed(at, |at| Ok(map(base, at, most)), |at| Ok(map(target, at, most)));
    Ranges::new(from, size, read).map(Result::unwrap).collect()
}

fn held(blocks: &[Block], from: u64, most: usize) -> Vec<ByteRange> {
    let size = blocks.len() as u64 * BLOCK;
    Ranges::new(from, size, |at| Ok(allocated(map(blocks, at, most)))).map(Result::unwrap).collect()
}

/// What a list over `blocks` blocks must look like, told block by block.
fn model(blocks: usize, from: u64, is_in: impl Fn(usize) -> bool) -> Vec<ByteRange> {
    let mut ranges: Vec<ByteRange> = Vec::new();
    for n in (0..blocks).filter(|&n| is_in(n)) {
        let (start, end) = ((n as u64 * BLOCK).max(from), (n as u64 + 1) * BLOCK);
        match ranges.last_mut() {
            _ if start >= end => {}
            Some(last) if last.end_bytes() == start => last.length_bytes += end - start,
            _ => ranges.push(ByteRange { offset_bytes: start, length_bytes: end - start }),
        }
    }
    ranges
}

fn at(blocks: &[Block], n: usize) -> Block {
    blocks.get(n).copied().unwrap_or(Block::Hole)
}

fn differs(base: Block, target: Block) -> bool {
    matches!(base, Block::Unknown(_)) || matches!(target, Block::Unknown(_)) || base.content() != target.content()
}

/// Few addresses, so that equal ones meet; runs, so that extents are longer than a block.
fn image() -> impl Strategy<Value = Vec<Block>> {
    let run = (0u64..40, 1u64..6, 0u8..8).prop_map(|(first, length, kind)| {
        let block = move |n| match kind {
            0 | 1 => Block::Hole,
            2 => Block::Unwritten,
            3 => Block::Unknown(first % 3),
            _ => Block::At(first + n),
        };
        (0..length).map(block).collect::<Vec<_>>()
    });
    proptest::collection::vec(run, 0..12).prop_map(|runs| runs.concat())
}

/// A base, and a target in which some of it was overwritten and that may have grown.
fn pair() -> impl Strategy<Value = (Vec<Block>, Vec<Block>)> {
    (image(), image(), proptest::collection::vec(any::<bool>(), 80)).prop_map(|(base, other, keep)| {
        let length = base.len().max(other.len());
        let target = (0..length).map(|n| if keep[n % keep.len()] { at(&base, n) } else { at(&other, n) }).collect();
        (base, target)
    })
}

proptest! {
    #[test]
    fn differences_are_those_of_the_model(
        (base, target) in pair(), offset in 0u64..80 * BLOCK, most in 1usize..9,
    ) {
        let from = offset.min(target.len() as u64 * BLOCK);
        let expected = model(target.len(), from, |n| differs(at(&base, n), at(&target, n)));
        prop_assert_eq!(delta(&base, &target, from, most), expected);
    }

    #[test]
    fn what_is_held_is_that_of_the_model(blocks in image(), offset in 0u64..80 * BLOCK, most in 1usize..9) {
        let from = offset.min(blocks.len() as u64 * BLOCK);
        let expected = model(blocks.len(), from, |n| !matches!(blocks[n], Block::Hole | Block::Unwritten));
        prop_assert_eq!(held(&blocks, from, most), expected);
    }

    /// What CSI calls continuing: from the end of the last range that came.
    #[test]
    fn a_list_that_was_cut_goes_on(
        (base, target) in pair(), cut in any::<prop::sample::Index>(), most in 1usize..9,
    ) {
        let whole = delta(&base, &target, 0, most);
        let cut = cut.index(whole.len() + 1);
        let mut joined = whole[..cut].to_vec();
        let from = joined.last().map_or(0, |last| last.end_bytes());
        joined.extend(delta(&base, &target, from, most));
        prop_assert_eq!(joined, whole);
    }

    /// The oracle itself: a comparison that believes an address it must not, or overlooks one piece, is found out.
    #[test]
    fn what_is_left_out_would_be_missed((base, target) in pair(), at_piece in any::<prop::sample::Index>()) {
        let applied = |ranges: &[ByteRange]| {
            let covered = |n: usize| ranges.iter().any(|r| (r.offset_bytes..r.end_bytes()).contains(&(n as u64 * BLOCK)));
            (0..target.len()).all(|n| covered(n) || at(&base, n).content() == at(&target, n).content())
        };
        let mut ranges = delta(&base, &target, 0, 4);
        prop_assert!(applied(&ranges));
        let really = |r: &ByteRange| (r.offset_bytes / BLOCK..r.end_bytes() / BLOCK)
            .any(|n| at(&base, n as usize).content() != at(&target, n as usize).content());
        ranges.sort_by_key(|range| !really(range));
        let needed = ranges.iter().filter(|range| really(range)).count();
        if needed > 0 {
            ranges.remove(at_piece.index(needed));
            prop_assert!(!applied(&ranges));
        }
    }
}

/// What an extent says of itself when its address is not to be believed.
#[test]
fn the_same_address_with_a_doubtful_flag_is_a_change() {
    let one = |content| {
        let extents = vec![Extent { offset_bytes: 0, length_bytes: 2 * BLOCK, content }];
        Map::new(&ExtentPage { extents, end_bytes: u64::MAX }, 0, 2 * BLOCK)
    };
    let found = |base: &Map, target: &Map| compare(base, target, 0).found.len();
    let (known, unknown, unwritten) =
        (one(ExtentContent::At(0)), one(ExtentContent::Unknown), one(ExtentContent::Unwritten));
    assert_eq!(found(&known, &known), 0);
    assert_eq!(found(&unwritten, &unwritten), 0);
    assert_eq!(found(&unwritten, &Map::NOTHING), 0);
    for (base, target) in
        [(&unknown, &unknown), (&known, &unknown), (&unknown, &known), (&unknown, &unwritten), (&known, &unwritten)]
    {
        assert_eq!((found(base, target), found(target, base)), (1, 1), "{base:?} {target:?}");
    }
}

/// A balance moves the base away and the target to where it was, between two looks.
#[test]
fn addresses_count_only_while_they_stay() {
    let (here, elsewhere) = (vec![Block::At(7)], vec![Block::At(9)]);
    assert!(compare(&map(&here, 0, 1), &map(&here, 0, 1), 0).found.is_empty(), "one look would believe it");
    let mut looks = 0;
    let base = |at| {
        looks += 1;
        Ok(map(if looks == 1 { &here } else { &elsewhere }, at, 1))
    };
    assert_eq!(changed(0, base, |at| Ok(map(&here, at, 1))).unwrap().found, std::slice::from_ref(&(0..BLOCK)));
    // One that never comes to rest is all change.
    let mut looks = 0;
    let base = |at| {
        looks += 1;
        Ok(map(if looks % 2 == 1 { &here } else { &elsewhere }, at, 1))
    };
    assert_eq!(changed(0, base, |at| Ok(map(&here, at, 1))).unwrap().found, std::slice::from_ref(&(0..BLOCK)));
}

#[test]
fn ranges_are_aligned_outward_and_joined() {
    let window = |found: &[(u64, u64)], end| Ok(Window { found: found.iter().map(|&(a, b)| a..b).collect(), end });
    let mut windows = vec![window(&[(10, 20), (5000, 5001), (9000, 12288)], 12288), window(&[(12288, 12300)], 20001)];
    windows.reverse();
    let all: Vec<_> = Ranges::new(5, 12301, |_| windows.pop().unwrap()).map(Result::unwrap).collect();
    assert_eq!(all, [ByteRange { offset_bytes: 5, length_bytes: 12296 }]);
    let mut broken =
        Ranges::new(
            0,
            9000,
            |at| {
                if at == 0 { window(&[(0, 4096)], 4096) } else { Err(volume::Error::internal("broken")) }
            },
        );
    assert!(broken.next().unwrap().is_err(), "what was not closed is not given out");
    assert!(broken.next().is_none());
}
