//! Freezing the file system of a device, wherever it is mounted, so that nothing can leave it frozen.

use super::{btrfs, mountinfo, os};
use crate::sys::process::ThawGuard;
use crate::{Effects, MountEntry, deadline, sys};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::syncfs;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use volume::{DeviceNumber, Error, ErrorKind, Result};

/// This process in /proc, as its calling thread sees the mounts.
const OWN: &str = "/proc/thread-self";

pub(super) fn with_frozen(device: DeviceNumber, deadline_ms: u64, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let what = format!("freezing the file system on device {}:{}", device.major, device.minor);
    let frozen = deadline::run(deadline_ms, &what, move || find_to_freeze(device)?.map(freeze).transpose())?;
    // Dropping `frozen` thaws, whatever `work` does.
    let done = work();
    match frozen {
        Some(frozen) => done.and(frozen.thaw()),
        None => done,
    }
}

/// Each freeze has a guard of its own: whenever this process dies, all that were frozen are let go.
pub(super) fn with_all_frozen(
    effects: &Effects,
    devices: &[DeviceNumber],
    deadline_ms: u64,
    work: &mut dyn FnMut(&[DeviceNumber]) -> Result<()>,
) -> Result<()> {
    let until = Instant::now() + Duration::from_millis(deadline_ms);
    let mut mounted = Vec::new();
    for &device in devices {
        let found = run_until(until, "writing out", device, move || {
            let root = find_to_freeze(device)?;
            if let Some(root) = &root {
                // A freeze writes out what is left; without this the first would stand still for all the others' writing.
                syncfs(root).map_err(|errno| os::error("writing the file system out (syncfs)", errno))?;
            }
            Ok(root)
        })?;
        mounted.extend(found.map(|root| (device, root)));
    }
    let mut numbers = Vec::new();
    // Dropping these thaws, whatever happens from here on.
    let mut frozen = Vec::new();
    for (device, root) in mounted {
        frozen.push(run_until(until, "freezing", device, move || freeze(root))?);
        effects.done("freeze");
        numbers.push(device);
    }
    let done = work(&numbers);
    frozen.into_iter().rev().fold(done, |done, frozen| done.and(frozen.thaw()))
}

fn run_until<T: Send + 'static>(
    until: Instant,
    doing: &str,
    device: DeviceNumber,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let left = until.saturating_duration_since(Instant::now()).as_millis();
    let what = format!("{doing} the file system on device {}:{}", device.major, device.minor);
    deadline::run(u64::try_from(left).unwrap_or(u64::MAX), &what, work)
}

/// A file of the file system that is mounted from `device`; `None` when nobody uses it.
fn find_to_freeze(device: DeviceNumber) -> Result<Option<OwnedFd>> {
    match find_mounted(device)? {
        None if is_held(device)? => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "device {}:{} is in use, but by no mount that a process in sight has: it cannot be frozen",
                device.major, device.minor
            ),
        )),
        mounted => Ok(mounted),
    }
}

pub(super) fn thaw_left_over(effects: &Effects, device: DeviceNumber, mounted_at: Option<&Path>) -> Result<bool> {
    // What cannot be opened there, or is another file system, is looked for.
    let here = mounted_at.and_then(|path| open(Path::new(OWN), path, device, None).ok().flatten());
    let Some(mounted) = here.map_or_else(|| find_mounted(device), |here| Ok(Some(here)))? else { return Ok(false) };
    match sys::inode::thaw(&mounted) {
        Ok(()) => {
            effects.done("thaw");
            Ok(true)
        }
        // Not frozen, or a file system that knows no freezing.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => {
            Err(os::error(format!("thawing the file system on device {}:{}", device.major, device.minor), errno))
        }
    }
}

/// Whether the device is mounted, or held as mounts hold it, by whomever.
fn is_held(device: DeviceNumber) -> Result<bool> {
    let uevent = PathBuf::from(format!("/sys/dev/block/{}:{}/uevent", device.major, device.minor));
    let text = std::fs::read_to_string(&uevent).map_err(|e| Error::io(format!("reading {}", uevent.display()), e))?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| Error::internal(format!("{} names no device", uevent.display())))?;
    let node = Path::new("/dev").join(name);
    let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match os::retry_busy(|| openat(AT_FDCWD, &node, flags, Mode::empty())) {
        Ok(_) => Ok(false),
        Err(Errno::EBUSY) => Ok(true),
        Err(errno) => Err(os::error(format!("opening {}", node.display()), errno)),
    }
}

/// A file system that this process froze. Thawed when dropped; by a child when this process dies first.
pub(super) struct Frozen {
    root: Option<OwnedFd>,
    guard: Option<ThawGuard>,
}

/// Freezes the file system that `root` is on. `Busy` when somebody else froze it.
pub(super) fn freeze(root: OwnedFd) -> Result<Frozen> {
    let guard =
        ThawGuard::start(&root).map_err(|errno| os::error("starting the process that guards a freeze", errno))?;
    match sys::inode::freeze(&root) {
        Ok(()) => Ok(Frozen { root: Some(root), guard: Some(guard) }),
        Err(Errno::EBUSY) => Err(Error::new(
            ErrorKind::Busy,
            "the file system is frozen already, by a snapshot under way or by another program (fsfreeze); retry",
        )),
        Err(errno) => Err(os::error("freezing the file system (FIFREEZE)", errno)),
    }
}

impl Frozen {
    /// As dropping it, with an error when it did not stay frozen until now.
    pub(super) fn thaw(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        let Some(root) = self.root.take() else { return Ok(()) };
        let thawed = sys::inode::thaw(&root);
        // Only now: until the thaw the guard's child has to stay.
        self.guard = None;
        thawed.map_err(|errno| match errno {
            Errno::EINVAL => Error::new(
                ErrorKind::Unavailable,
                "somebody thawed the file system before the work on it was done (FITHAW); the work's result is not consistent, retry",
            ),
            errno => os::error("thawing the file system (FITHAW); thaw it by hand with fsfreeze -u", errno),
        })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::error!(error = error.chain(), "a file system may have been left frozen");
        }
    }
}

/// A directory or file of the file system that is mounted from `device` in any mount namespace that a process is in,
/// reached through `/proc/PID/root` and verified on its descriptor. `None` when it is mounted nowhere.
/// `Unavailable` when it is mounted but no mount of it can be reached.
pub(super) fn find_mounted(device: DeviceNumber) -> Result<Option<OwnedFd>> {
    let fsid = btrfs::fsid_with(device)?;
    let mut seen = BTreeSet::new();
    let mut unreachable = None;
    for process in processes()? {
        // A process that ends while we look takes its answers with it; its namespace's other processes are still there.
        let Ok(namespace) = std::fs::metadata(process.join("ns/mnt")).map(|m| m.ino()) else { continue };
        let root = std::fs::metadata(process.join("root")).map(|m| (m.dev(), m.ino())).unwrap_or_default();
        if !seen.insert((namespace, root)) {
            continue;
        }
        let Ok(table) = std::fs::read(process.join("mountinfo")) else {
            seen.remove(&(namespace, root));
            continue;
        };
        let entries = mountinfo::parse(&table).unwrap_or_default();
        for entry in entries.iter().filter(|entry| may_be(entry, device, fsid.is_some())) {
            match open(&process, &entry.mounted_at, device, fsid.as_deref()) {
                Ok(Some(root)) => return Ok(Some(root)),
                Ok(None) => {}
                Err(error) => unreachable = Some(error),
            }
        }
    }
    match unreachable {
        None => Ok(None),
        Some(error) => Err(Error::with_source(
            ErrorKind::Unavailable,
            format!("device {}:{} is mounted, but none of its mounts can be reached", device.major, device.minor),
            error,
        )),
    }
}

/// This process first: it most often has the mount.
fn processes() -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("listing /proc", e);
    let mut found = vec![PathBuf::from(OWN)];
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn may_be(entry: &MountEntry, device: DeviceNumber, is_btrfs: bool) -> bool {
    if is_btrfs { entry.fs_type == "btrfs" } else { entry.device == device }
}

/// `Ok(None)` when the path leads to another file system: another mount covers this one, or it is another btrfs.
fn open(process: &Path, mounted_at: &Path, device: DeviceNumber, fsid: Option<&str>) -> Result<Option<OwnedFd>> {
    let path = process.join("root").join(mounted_at.strip_prefix("/").unwrap_or(mounted_at));
    let failed = |errno| os::error(format!("opening {}", path.display()), errno);
    let place = openat(AT_FDCWD, &path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    let place = match place {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::ENOTDIR) => return Ok(None),
        other => other.map_err(failed)?,
    };
    let stat = fstat(&place).map_err(failed)?;
    // Anything else, a bound device node say, has ioctls of its own.
    if ![SFlag::S_IFDIR.bits(), SFlag::S_IFREG.bits()].contains(&(stat.st_mode & SFlag::S_IFMT.bits())) {
        return Ok(None);
    }
    if fsid.is_none() && os::device_number(stat.st_dev)? != device {
        return Ok(None);
    }
    // O_PATH descriptors take no ioctls; opening again through the descriptor cannot lead elsewhere.
    let again = format!("/proc/self/fd/{}", place.as_raw_fd());
    let file = openat(AT_FDCWD, again.as_str(), OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(failed)?;
    match fsid {
        Some(wanted) if btrfs::fsid_of(&file)? != wanted => Ok(None),
        _ => Ok(Some(file)),
    }
}
