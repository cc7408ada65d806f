//! The SnapshotMetadata service over the wire: random workloads on published volumes, snapshots between, and for every
//! pair the streamed delta against the snapshots' bytes. Streams are cut anywhere, also by a kill of the server, and
//! go on as CSI says: from the byte after the last range received.

use crate::calls::{Access, MIB, Subject, delete_snapshot, snapshot_id};
use crate::client::{Blocks, BlocksMessage, Client};
use crate::failure::{Context, Failure, Result, ensure};
use crate::lab::{Lab, Options, PoolFs};
use crate::missing_privilege;
use crate::report::Report;
use crate::scenario::{NODE, give_back, make_directories, remove_directories};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tonic::Code;

const BLOCK: u64 = 4096;
const ROUNDS: usize = 4;
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("metadata", &reason);
        return Ok(());
    }
    // On ext4, which cannot fork images, there is no raw block.
    let pools = [
        (PoolFs::Xfs, Access::Block),
        (PoolFs::Btrfs, Access::Block),
        (PoolFs::Xfs, Access::Ext4),
        (PoolFs::Btrfs, Access::Ext4),
        (PoolFs::Ext4, Access::Ext4),
    ];
    for (number, (fs, access)) in (1..).zip(pools) {
        report.test(&format!("metadata-{fs:?}-{access:?}"), || workload(hawser, fs, access, number));
    }
    Ok(())
}

fn workload(hawser: &Path, fs: PoolFs, access: Access, seed: u64) -> Result<()> {
    let lab = Lab::new(hawser, fs, 1024)?;
    let options = Options::node(NODE);
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed << 32));
    let volume = Subject::new("v", access);
    make_directories(&lab, &volume, NODE)?;
    let server = lab.start(&options)?;
    let services = server.client.services()?;
    ensure(services.iter().any(|name| name == "SNAPSHOT_METADATA_SERVICE"), || format!("it has {services:?}"))?;
    for call in [volume.create(), volume.attach(NODE), volume.stage(&lab, NODE), volume.publish(&lab, NODE)] {
        server.client.call(&call).context(|| format!("{call:?}"))?;
    }
    let mut names = vec!["s0".to_owned()];
    server.client.call(&volume.snapshot("s0"))?;
    for round in 1..=ROUNDS {
        if round == 3 {
            server.client.call(&volume.expand(48 * MIB))?;
            server.client.call(&volume.node_expand(&lab, NODE)).or_else(offline_growth)?;
        }
        write(&volume.target(&lab, NODE), access, &mut random)?;
        let name = format!("s{round}");
        server.client.call(&volume.snapshot(&name))?;
        names.push(name);
    }
    give_back(&lab, &server.client, &volume, NODE)?;

    check_all(&lab, &server.client, &names, &mut random)?;
    let (first, last) = (snapshot_id(&names[0]), snapshot_id(&names[ROUNDS]));
    let asked = Blocks { base: Some(&first), snapshot: &last, from: 0, max_results: 1, messages: usize::MAX };
    let whole = flat(server.client.blocks(asked)?);
    let begun = flat(server.client.blocks(Blocks { messages: whole.len() / 2, ..asked })?);
    // SIGKILL, as dropping it does.
    drop(server);
    let server = lab.start(&options)?;
    let from = begun.last().map_or(0, |(offset, size)| offset + size);
    let rest = flat(server.client.blocks(Blocks { from, ..asked })?);
    ensure([begun.clone(), rest.clone()].concat() == whole, || format!("{begun:?} and {rest:?} are not {whole:?}"))?;
    as_the_command_line(&lab, &options, &whole)?;

    server.client.call(&delete_snapshot("s0"))?;
    let refusal = server.client.blocks(asked).err().map(|status| status.code());
    ensure(refusal == Some(Code::NotFound), || format!("a base that is gone is answered with {refusal:?}"))?;
    for name in &names[1..] {
        server.client.call(&delete_snapshot(name))?;
    }
    server.client.call(&volume.delete())?;
    remove_directories(&lab, &volume, NODE);
    lab.ensure_clean()
}

/// A mounted ext4 grows only with CAP_SYS_RESOURCE; its image has grown all the same.
fn offline_growth(status: tonic::Status) -> Result<crate::client::Answer> {
    match status.code() {
        Code::FailedPrecondition => Ok(crate::client::Answer::default()),
        _ => Err(status.into()),
    }
}

fn write(target: &str, access: Access, random: &mut Random) -> Result<()> {
    if access == Access::Block {
        let disk = File::options().read(true).write(true).open(target)?;
        for _ in 0..40 {
            scribble(&disk, random)?;
        }
        return Ok(disk.sync_all()?);
    }
    for _ in 0..12 {
        let path = format!("{target}/f{}", random.below(6));
        match random.below(4) {
            0 => drop(std::fs::remove_file(&path)),
            1 => std::fs::write(&path, vec![9; usize::try_from(random.below(1 << 20)).unwrap_or(0)])?,
            _ => {
                let file = File::options().create(true).truncate(false).write(true).open(&path)?;
                file.write_all_at(&[random.byte(); 20_000], random.below(1 << 20))?;
            }
        }
    }
    Ok(())
}

/// Discards, zeros, the same bytes again, other bytes.
fn scribble(disk: &File, random: &mut Random) -> Result<()> {
    use std::io::Seek;
    let size = { disk }.seek(std::io::SeekFrom::End(0))?;
    let length = BLOCK * (1 + random.below(32));
    let at = random.below((size - length) / BLOCK) * BLOCK;
    let bytes = usize::try_from(length).unwrap_or(0);
    let punch = |how: FallocateFlags| {
        let how = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (at, length) = (i64::try_from(at).unwrap_or(0), i64::try_from(length).unwrap_or(0));
        fallocate(disk, how, at, length).map_err(|errno| Failure::from(format!("punching a hole: {errno}")))
    };
    match random.below(6) {
        0 => {
            let mut same = vec![0; bytes];
            disk.read_exact_at(&mut same, at)?;
            disk.write_all_at(&same, at)?;
        }
        1 => punch(FallocateFlags::FALLOC_FL_PUNCH_HOLE)?,
        2 => punch(FallocateFlags::FALLOC_FL_ZERO_RANGE)?,
        3 => disk.write_all_at(&vec![0; bytes], at)?,
        _ => disk.write_all_at(&vec![random.byte(); bytes], at)?,
    }
    Ok(())
}

fn check_all(lab: &Lab, client: &Client, names: &[String], random: &mut Random) -> Result<()> {
    let images: Vec<Vec<u8>> = names.iter().map(|name| content(lab, name)).collect::<Result<_>>()?;
    let mut needed = 0;
    for (j, target) in names.iter().enumerate() {
        let held = whole(client, None, target, images[j].len(), random)?;
        let missed = first_difference(&[], &images[j], &held);
        ensure(missed.is_none(), || format!("{target} has data at {missed:?}, outside of {held:?}"))?;
        for (i, base) in names[..=j].iter().enumerate() {
            let delta = whole(client, Some(base), target, images[j].len(), random)?;
            let missed = first_difference(&images[i], &images[j], &delta);
            ensure(missed.is_none(), || format!("{base} and {target} differ at {missed:?}, outside of {delta:?}"))?;
            // The oracle sees a range that is left out, if that matters.
            if !delta.is_empty() {
                let n = usize::try_from(random.below(delta.len() as u64)).unwrap_or(0);
                let without = [&delta[..n], &delta[n + 1..]].concat();
                needed += usize::from(first_difference(&images[i], &images[j], &without).is_some());
            }
        }
    }
    ensure(needed > 2, || format!("{needed} ranges that were left out mattered: the workload proves nothing"))
}

/// The whole list, put together from streams of messages of any size, each cut somewhere.
fn whole(
    client: &Client,
    base: Option<&String>,
    target: &str,
    size: usize,
    random: &mut Random,
) -> Result<Vec<(i64, i64)>> {
    let (base, snapshot) = (base.map(|name| snapshot_id(name)), snapshot_id(target));
    let asked = Blocks { base: base.as_deref(), snapshot: &snapshot, from: 0, max_results: 0, messages: usize::MAX };
    let all = flat(client.blocks(asked)?);
    let capacity = i64::try_from(size).unwrap_or(i64::MAX);
    let is_sound = all.iter().all(|(offset, size)| *size > 0 && offset + size <= capacity);
    let is_apart = all.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0);
    ensure(is_sound && is_apart, || format!("a wrong list for {capacity} bytes: {all:?}"))?;
    let mut joined: Vec<(i64, i64)> = Vec::new();
    loop {
        let max_results = i32::try_from(1 + random.below(64)).unwrap_or(1);
        let messages = usize::try_from(1 + random.below(8)).unwrap_or(1);
        let from = joined.last().map_or(0, |(offset, size)| offset + size);
        let part = client.blocks(Blocks { from, max_results, messages, ..asked })?;
        for (said, ranges) in &part {
            let count = i32::try_from(ranges.len()).unwrap_or(i32::MAX);
            ensure(*said == capacity && count <= max_results, || format!("{said} bytes, {count} of {max_results}"))?;
        }
        let was_cut = part.len() == messages;
        joined.extend(flat(part));
        if !was_cut {
            break;
        }
    }
    ensure(joined == all, || format!("put together it is {joined:?}, at once {all:?}"))?;
    Ok(all)
}

fn flat(messages: Vec<BlocksMessage>) -> Vec<(i64, i64)> {
    messages.into_iter().flat_map(|(_, ranges)| ranges).collect()
}

/// The first gap between the ranges in which the base (filled up with zeros) and the target differ: there the target's
/// ranges put over the base would not give the target.
fn first_difference(base: &[u8], target: &[u8], ranges: &[(i64, i64)]) -> Option<usize> {
    let bound = |n: i64| usize::try_from(n).unwrap_or(usize::MAX);
    let mut at = 0;
    for (start, end) in ranges.iter().map(|(o, s)| (bound(*o), bound(o + s))).chain([(target.len(), 0)]) {
        let middle = base.len().clamp(at, start);
        let shared = at.min(base.len())..middle.min(base.len());
        let is_zero = |bytes: &[u8]| bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()]);
        if base[shared.clone()] != target[shared] || !is_zero(&target[middle..start]) {
            return Some(at);
        }
        at = end;
    }
    None
}

fn content(lab: &Lab, name: &str) -> Result<Vec<u8>> {
    Ok(std::fs::read(lab.pool().join("snapshots").join(snapshot_id(name)).join("image"))?)
}

fn as_the_command_line(lab: &Lab, options: &Options, whole: &[(i64, i64)]) -> Result<()> {
    let printed = lab.run(options, &["snapshot", "diff", "s0", &format!("s{ROUNDS}")])?;
    let rows = printed.lines().skip(1).filter_map(|line| {
        let (offset, length) = line.split_once(' ')?;
        Some((offset.parse().ok()?, length.trim().parse().ok()?))
    });
    let rows: Vec<(i64, i64)> = rows.collect();
    ensure(rows == whole, || format!("the command prints {printed}, the service says {whole:?}"))
}

/// xorshift64*: a workload can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(1 + self.below(255)).unwrap_or(1)
    }
}
