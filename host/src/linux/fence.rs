//! Cutting a loop off from its image: after this returned, no write that the loop's user gets acknowledged reaches
//! the image, and none that was waiting does either.
//!
//! One change of the limit is not enough: requests that passed the size check and wait for the queue to thaw are still
//! carried out, one for each waiting writer. A freeze keeps writers of a file system from waiting there. On raw block
//! the second change comes after everything that slipped through the first is done. A file system that writes while the
//! limit comes may acknowledge an fsync whose metadata was refused (ext4 was seen to), so one that is mounted is frozen
//! by all means.

use super::{freeze, loops, mount, os};
use crate::{Effects, Fenced, LoopDevice, deadline, sys};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use volume::{Error, ErrorKind, Result};

/// One sector, the least that the kernel checks requests against (it takes a capacity of 0 for "unknown").
const LIMIT_BYTES: u64 = 512;
/// Different from [`LIMIT_BYTES`], since the kernel drains the queue only for a change; still below one block.
const SECOND_LIMIT_BYTES: u64 = 1024;
const QUIET: Duration = Duration::from_millis(50);
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(super) fn fence_loop(effects: &Effects, device: &LoopDevice, deadline_ms: u64) -> Result<Option<Fenced>> {
    let what = format!("cutting {} ({}) off from its image", device.path.display(), device.label);
    let (effects, device) = (effects.clone(), device.clone());
    let ends = Instant::now() + Duration::from_millis(deadline_ms);
    // A fence that finishes late does no harm: its descriptor keeps the loop from getting another image.
    deadline::run(deadline_ms, &what, move || fence(&effects, &device, ends))
}

fn fence(effects: &Effects, device: &LoopDevice, ends: Instant) -> Result<Option<Fenced>> {
    // Held from the check to the last ioctl.
    let Some(opened) = loops::open_if_there(device, OFlag::O_RDONLY)? else { return Ok(None) };
    let is_same = || Ok(loops::status(&opened, &device.path)?.is_some_and(|info| loops::is_same(device, &info)));
    if !is_same()? {
        return Ok(None);
    }
    let (limit, froze) = match freeze_for_fence(device, ends)? {
        Freeze::Ours(frozen) => {
            set_limit(effects, device, &opened, LIMIT_BYTES, ends)?;
            // Somebody who thawed it in between let writers through; then the freeze proves nothing.
            match frozen.thaw() {
                Ok(()) => (LIMIT_BYTES, true),
                Err(_) => (limit_twice(effects, device, &opened, ends)?, false),
            }
        }
        Freeze::Theirs(root) => {
            set_limit(effects, device, &opened, LIMIT_BYTES, ends)?;
            // EINVAL here: it was thawed while we limited.
            match sys::inode::thaw(&root) {
                Ok(()) => (LIMIT_BYTES, true),
                Err(_) => (limit_twice(effects, device, &opened, ends)?, false),
            }
        }
        Freeze::None => (limit_twice(effects, device, &opened, ends)?, false),
    };
    if !is_same()? {
        return Ok(None);
    }
    verify(device, &opened, limit)?;
    Ok(Some(Fenced { device: device.number, size_limit_bytes: limit, froze }))
}

enum Freeze {
    Ours(freeze::Frozen),
    /// Somebody keeps it frozen for long: a snapshot whose process was stopped, or an administrator. It serves us as well;
    /// their work then finds that it was thawed, and fails.
    Theirs(OwnedFd),
    /// Raw block, or a file system that takes no freeze because it stopped on errors or was shut down, and with it all
    /// acknowledgements.
    None,
}

fn freeze_for_fence(device: &LoopDevice, ends: Instant) -> Result<Freeze> {
    let give_up = Instant::now() + ends.saturating_duration_since(Instant::now()) / 2;
    loop {
        let root = match freeze::find_mounted(device.number) {
            Ok(Some(root)) => Some(root),
            Ok(None) | Err(_) => mount::join(device)?,
        };
        let Some(root) = root else { return Ok(Freeze::None) };
        let again = root.try_clone().map_err(|e| Error::io("copying a descriptor", e))?;
        match freeze::freeze(root) {
            Ok(frozen) => return Ok(Freeze::Ours(frozen)),
            Err(error) if error.kind() == ErrorKind::Busy => {
                if Instant::now() > give_up {
                    return Ok(Freeze::Theirs(again));
                }
                // A snapshot under way ends soon.
                std::thread::sleep(LOOK_EVERY);
            }
            Err(error) => {
                tracing::warn!(
                    device = %device.path.display(),
                    error = error.chain(),
                    "fencing without a freeze: limit, wait until quiet, another limit"
                );
                return Ok(Freeze::None);
            }
        }
    }
}

fn limit_twice(effects: &Effects, device: &LoopDevice, opened: &OwnedFd, ends: Instant) -> Result<u64> {
    set_limit(effects, device, opened, LIMIT_BYTES, ends)?;
    wait_until_quiet(device, ends)?;
    set_limit(effects, device, opened, SECOND_LIMIT_BYTES, ends)?;
    // What the second change let through, if anything, is done before this returns.
    wait_until_quiet(device, ends)?;
    Ok(SECOND_LIMIT_BYTES)
}

pub(super) fn set_limit(
    effects: &Effects,
    device: &LoopDevice,
    opened: &OwnedFd,
    limit: u64,
    ends: Instant,
) -> Result<()> {
    let failed = |errno| os::error(format!("limiting {} to {limit} bytes", device.path.display()), errno);
    let mut info = sys::loops::status(opened).map_err(failed)?;
    // Fenced before: the kernel drains only for a change.
    let detour = (info.size_limit == limit).then_some(limit + 512);
    for step in detour.into_iter().chain([limit]) {
        info.size_limit = step;
        loop {
            match sys::loops::set_status(opened, &info) {
                Ok(()) => break,
                // Pages of the device were dirtied while the kernel dropped them.
                Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < ends => std::thread::sleep(LOOK_EVERY),
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
    effects.done("limit-loop");
    Ok(())
}

/// Waits until no write ended for [`QUIET`] and none is under way.
fn wait_until_quiet(device: &LoopDevice, ends: Instant) -> Result<()> {
    let mut last = writes(device)?;
    let mut since = Instant::now();
    while since.elapsed() < QUIET || last.in_flight > 0 {
        if Instant::now() > ends {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "{} still writes to its image after it was limited; the storage below may be hung",
                    device.path.display()
                ),
            ));
        }
        std::thread::sleep(LOOK_EVERY);
        let now = writes(device)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
struct Writes {
    ended: [u64; 4],
    in_flight: u64,
}

/// Writes and discards, as /sys counts them. Flushes are not counted: they carry no data.
fn writes(device: &LoopDevice) -> Result<Writes> {
    let directory =
        std::path::Path::new("/sys/dev/block").join(format!("{}:{}", device.number.major, device.number.minor));
    let numbers = |file: &str| -> Result<Vec<u64>> {
        let path = directory.join(file);
        let line = os::read_line(&path)?;
        line.split_ascii_whitespace()
            .map(|n| n.parse().map_err(|_| Error::internal(format!("{} says {line:?}", path.display()))))
            .collect()
    };
    let (stat, in_flight) = (numbers("stat")?, numbers("inflight")?);
    let field = |numbers: &[u64], index: usize| numbers.get(index).copied().unwrap_or(0);
    // Documentation/block/stat.rst: write I/Os, write sectors, discard I/Os, discard sectors; inflight: reads, writes.
    Ok(Writes { ended: [4, 6, 11, 13].map(|i| field(&stat, i)), in_flight: field(&in_flight, 1) })
}

fn verify(device: &LoopDevice, opened: &OwnedFd, limit: u64) -> Result<()> {
    let failed = |errno| os::error(format!("reading back the limit of {}", device.path.display()), errno);
    let info = sys::loops::status(opened).map_err(failed)?;
    let size = sys::block::size_bytes(opened).map_err(failed)?;
    if info.size_limit == limit && size == limit {
        return Ok(());
    }
    Err(Error::internal(format!(
        "{} was limited to {limit} bytes but reads back a limit of {} and a size of {size}: somebody undid it, it is not fenced",
        device.path.display(),
        info.size_limit
    )))
}
