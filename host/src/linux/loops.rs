//! Loop devices. A loop is what its backing device, inode and label say, never what its name says.

use super::os;
use crate::sys::loops::{self, LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LO_FLAGS_READ_ONLY, LoopInfo};
use crate::{Effects, LoopDevice, LoopRequest, sys};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use volume::{Error, ErrorKind, ImageIdentity, Result};

const CONTROL: &str = "/dev/loop-control";
/// Where sysfs has loop devices themselves; /sys/block has links to them.
const DEVICES: &str = "/sys/devices/virtual/block";
const PARTITIONS: &str = "/proc/partitions";
/// Templates are made for 4096-byte logical blocks, and no request smaller than that fits a fenced loop's first sector.
const BLOCK_SIZE: u32 = 4096;
/// Other processes take free loops too; each try that lost its race waits a little longer.
const ATTACH_TRIES: u32 = 64;
/// Somebody who merely looks at a loop (udev, a listing) has it open for a moment and delays its end by that.
const DETACH_WAIT: Duration = Duration::from_secs(2);

pub(super) fn attach(effects: &Effects, request: &LoopRequest<'_>) -> Result<LoopDevice> {
    if request.label.len() > LoopInfo::MAX_LABEL_BYTES || request.label.bytes().any(|b| b == 0) {
        return Err(Error::internal(format!(
            "the label {:?} does not fit a loop device ({} bytes)",
            request.label,
            LoopInfo::MAX_LABEL_BYTES
        )));
    }
    let image = open_image(request.image, request.read_only)?;
    verify_image(&image, request)?;
    let device = configure_free(effects, &image, request)?;
    let opened = open(&device, OFlag::O_RDONLY)?;
    let info =
        loops::status(&opened).map_err(|errno| os::error(format!("reading back {}", device.display()), errno))?;
    if info.flags & LO_FLAGS_DIRECT_IO == 0 {
        tracing::warn!(
            image = %request.image.display(),
            "the pool's file system has no direct I/O: the volume's pages are cached twice and it is slower"
        );
    }
    describe(&device, &opened, &info)
}

/// All that are configured. A loop without a node in /dev is an error: who looks for every loop of an image must not
/// miss one.
///
/// Each loop is opened and asked, also those that are free: an open and LOOP_GET_STATUS64 take 2 microseconds and no lock
/// but the loop's own, while each look into sysfs waits for its one lock when many calls list at once.
pub(super) fn list() -> Result<Vec<LoopDevice>> {
    let failed = |e| Error::io(format!("listing {DEVICES}"), e);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(DEVICES).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix("loop")).and_then(|n| n.parse::<u32>().ok()));
    }
    look_at_all(numbers)
}

/// One reading of /proc/partitions has every disk that shows a sector.
pub(super) fn list_with_content() -> Result<Vec<LoopDevice>> {
    let table = std::fs::read_to_string(PARTITIONS).map_err(|e| Error::io(format!("reading {PARTITIONS}"), e))?;
    look_at_all(numbers_in(&table))
}

/// `   7        3   10485760 loop3`; a partition of it would be `loop3p1`.
fn numbers_in(partitions: &str) -> Vec<u32> {
    let number = |line: &str| line.split_whitespace().nth(3)?.strip_prefix("loop")?.parse().ok();
    partitions.lines().filter_map(number).collect()
}

fn look_at_all(mut numbers: Vec<u32>) -> Result<Vec<LoopDevice>> {
    numbers.sort_unstable();
    let mut found = Vec::new();
    for number in numbers {
        found.extend(look_at(number)?);
    }
    Ok(found)
}

/// `None` when it is not configured any more.
fn look_at(number: u32) -> Result<Option<LoopDevice>> {
    let path = node(number);
    let started = Instant::now();
    loop {
        let described = open(&path, OFlag::O_RDONLY).and_then(|device| Ok((status(&device, &path)?, device)));
        match described {
            Ok((Some(info), device)) => return describe(&path, &device, &info).map(Some),
            Ok((None, _)) => return Ok(None),
            Err(_) if !is_configured(number) => return Ok(None),
            // Being detached it cannot be opened (ENXIO) and is still listed, for a moment.
            Err(error) if error.kind() == ErrorKind::Unavailable && started.elapsed() < DETACH_WAIT => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn detach(effects: &Effects, device: &LoopDevice) -> Result<()> {
    // A mounted file system holds its device exclusively; LOOP_CLR_FD would only mark such a loop for later.
    let Some(opened) = open_if_there(device, OFlag::O_RDONLY | OFlag::O_EXCL)? else { return Ok(()) };
    let Some(info) = status(&opened, &device.path)?.filter(|info| is_same(device, info)) else { return Ok(()) };
    match loops::clear(&opened) {
        Ok(()) => effects.done("detach-loop"),
        Err(Errno::ENXIO) => return Ok(()),
        Err(errno) => return Err(os::error(format!("detaching {}", device.path.display()), errno)),
    }
    // The kernel ends the loop when its last opener, we at best, closes it.
    drop(opened);
    let started = Instant::now();
    let mut wait = Duration::from_micros(200);
    while is_configured(info.number) {
        if started.elapsed() > DETACH_WAIT {
            return keep_after_all(device);
        }
        std::thread::sleep(wait);
        wait = (wait * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

pub(super) fn refresh(effects: &Effects, device: &LoopDevice) -> Result<()> {
    let gone = || Error::not_found(format!("{} no longer has the image it had", device.path.display()));
    let opened = open_if_there(device, OFlag::O_RDONLY)?.ok_or_else(gone)?;
    status(&opened, &device.path)?.filter(|info| is_same(device, info)).ok_or_else(gone)?;
    loops::set_capacity(&opened)
        .map_err(|errno| os::error(format!("making {} show its image's size", device.path.display()), errno))?;
    effects.done("refresh-loop");
    Ok(())
}

/// Of a block device, or of an image that is a file.
pub(super) fn size_bytes(device: &Path) -> Result<u64> {
    let failed = |errno| os::error(format!("asking {} for its size", device.display()), errno);
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let opened = openat(AT_FDCWD, device, flags, Mode::empty()).map_err(failed)?;
    let stat = fstat(&opened).map_err(failed)?;
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFBLK => sys::block::size_bytes(&opened).map_err(failed),
        SFlag::S_IFREG => Ok(u64::try_from(stat.st_size).unwrap_or(0)),
        _ => Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("{} is neither a block device nor an image", device.display()),
        )),
    }
}

pub(super) fn image_identity(image: &Path) -> Result<ImageIdentity> {
    let opened = open_image(image, true)?;
    let found = crate::file::identity(&opened)?;
    let name = image.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(ImageIdentity { name, inode: found.inode, generation: found.generation })
}

/// Opens the loop's node. The descriptor keeps the loop from being given to another image while it is held.
pub(super) fn open_if_there(device: &LoopDevice, flags: OFlag) -> Result<Option<OwnedFd>> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match os::retry_busy(|| openat(AT_FDCWD, &device.path, flags, Mode::empty())) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::ENOENT | Errno::ENXIO) if !is_configured_path(&device.path) => Ok(None),
        Err(Errno::EBUSY) => Err(in_use(device)),
        Err(errno) => Err(os::error(format!("opening {}", device.path.display()), errno)),
    }
}

/// `None` when no image is attached.
pub(super) fn status(opened: &OwnedFd, path: &Path) -> Result<Option<LoopInfo>> {
    match loops::status(opened) {
        Ok(info) => Ok(Some(info)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(os::error(format!("asking {} for its image", path.display()), errno)),
    }
}

/// Whether the loop still has the image that `device` was seen with.
pub(super) fn is_same(device: &LoopDevice, info: &LoopInfo) -> bool {
    os::device_number(info.device).is_ok_and(|number| number == device.backing_device)
        && info.inode == device.backing_inode
        && info.label() == device.label
}

fn configure_free(effects: &Effects, image: &File, request: &LoopRequest<'_>) -> Result<PathBuf> {
    let what = || format!("attaching {} to a loop device", request.image.display());
    let control =
        openat(AT_FDCWD, CONTROL, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENXIO | Errno::ENODEV => Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "{}: {CONTROL} is missing; load the kernel module `loop`, and give a container the host's /dev",
                    what()
                ),
            ),
            errno => os::error(format!("{}: opening {CONTROL}", what()), errno),
        })?;
    let flags = LO_FLAGS_DIRECT_IO | if request.read_only { LO_FLAGS_READ_ONLY } else { 0 };
    for attempt in 0..ATTACH_TRIES {
        let number = loops::free_number(&control).map_err(|errno| match errno {
            Errno::ENOSPC | Errno::ENODEV | Errno::EEXIST => no_free_loop(&what()),
            errno => os::error(format!("{}: asking for a free one", what()), errno),
        })?;
        let path = node(number);
        let device = match openat(AT_FDCWD, &path, OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
        {
            Ok(device) => device,
            Err(Errno::ENOENT) => {
                return Err(no_free_loop(&format!("{}: {} is free but has no node", what(), path.display())));
            }
            Err(Errno::ENXIO | Errno::EBUSY) => continue,
            Err(errno) => return Err(os::error(format!("{}: opening {}", what(), path.display()), errno)),
        };
        match loops::configure(&device, image, BLOCK_SIZE, request.label, flags) {
            Ok(()) => {
                effects.done("attach-loop");
                return Ok(path);
            }
            Err(Errno::EBUSY | Errno::ENXIO) => {
                std::thread::sleep(Duration::from_micros(u64::from(attempt) * 250));
            }
            Err(Errno::ENOTTY) => {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!("{}: the kernel has no LOOP_CONFIGURE; Linux 5.8 or later is needed", what()),
                ));
            }
            Err(errno) => return Err(os::error(format!("{} at {}", what(), path.display()), errno)),
        }
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!("{}: other programs took each of {ATTACH_TRIES} free loop devices first", what()),
    ))
}

/// Opens the image itself, never what a symlink names.
fn open_image(image: &Path, read_only: bool) -> Result<File> {
    let access = if read_only { OFlag::O_RDONLY } else { OFlag::O_RDWR };
    // O_NONBLOCK: a FIFO put in the image's place must not hold us.
    let flags = access | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    match crate::file::retry(|| openat(AT_FDCWD, image, flags, Mode::empty())) {
        Ok(opened) => Ok(File::from(opened)),
        Err(Errno::ELOOP) => Err(not_an_image(image, "a symbolic link")),
        Err(Errno::EISDIR) => Err(not_an_image(image, "a directory")),
        Err(errno) => Err(os::error(format!("opening the image {}", image.display()), errno)),
    }
}

fn verify_image(image: &File, request: &LoopRequest<'_>) -> Result<()> {
    let metadata =
        image.metadata().map_err(|e| Error::io(format!("looking at the image {}", request.image.display()), e))?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let noun = if kind.is_block_device() { "a block device" } else { "no regular file" };
        return Err(not_an_image(request.image, noun));
    }
    let found = crate::file::identity(image)?;
    if (found.inode, found.generation) != (request.identity.inode, request.identity.generation) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the image {} is inode {} generation {}, but the record names inode {} generation {}; it is not attached",
                request.image.display(),
                found.inode,
                found.generation,
                request.identity.inode,
                request.identity.generation
            ),
        ));
    }
    if metadata.len() < u64::from(BLOCK_SIZE) {
        let what = format!("only {} bytes long, it was truncated", metadata.len());
        return Err(not_an_image(request.image, &what));
    }
    Ok(())
}

fn describe(path: &Path, opened: &OwnedFd, info: &LoopInfo) -> Result<LoopDevice> {
    let stat = fstat(opened).map_err(|errno| os::error(format!("looking at {}", path.display()), errno))?;
    Ok(LoopDevice {
        path: path.to_owned(),
        number: os::device_number(stat.st_rdev)?,
        backing_device: os::device_number(info.device)?,
        backing_inode: info.inode,
        label: info.label(),
        read_only: info.flags & LO_FLAGS_READ_ONLY != 0,
        size_limit_bytes: info.size_limit,
    })
}

/// The loop is held open by somebody: undo the mark that would detach it behind our back later.
fn keep_after_all(device: &LoopDevice) -> Result<()> {
    let Some(opened) = open_if_there(device, OFlag::O_RDONLY)? else { return Ok(()) };
    let Some(mut info) = status(&opened, &device.path)?.filter(|info| is_same(device, info)) else { return Ok(()) };
    info.flags &= !LO_FLAGS_AUTOCLEAR;
    if let Err(errno) = loops::set_status(&opened, &info) {
        tracing::warn!(device = %device.path.display(), %errno, "the loop stays marked to detach at its last close");
    }
    Err(in_use(device))
}

fn open(path: &Path, flags: OFlag) -> Result<OwnedFd> {
    openat(AT_FDCWD, path, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOENT => Error::new(
            ErrorKind::FailedPrecondition,
            format!("{} is in use by the kernel but has no node, so it cannot be seen what it holds; run the driver as root, with the host's devtmpfs at /dev", path.display()),
        ),
        errno => os::error(format!("opening {}", path.display()), errno),
    })
}

fn node(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn is_configured(number: u32) -> bool {
    is_configured_path(&node(number))
}

/// The kernel shows the directory `loop` for configured devices alone. Looking there does not open the device.
fn is_configured_path(node: &Path) -> bool {
    let name = node.file_name().unwrap_or_default();
    Path::new(DEVICES).join(name).join("loop").exists()
}

fn in_use(device: &LoopDevice) -> Error {
    Error::new(
        ErrorKind::FailedPrecondition,
        format!(
            "{} ({}) is in use: mounted somewhere, or open in a process (`fuser -v {}` names it)",
            device.path.display(),
            device.label,
            device.path.display()
        ),
    )
}

fn no_free_loop(what: &str) -> Error {
    Error::new(
        ErrorKind::Exhausted,
        format!(
            "{what}: no free loop device; raise the limit (module parameter loop.max_loop, kernel memory) or unpublish volumes"
        ),
    )
}

fn not_an_image(image: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the image {} is {what}; it is not attached", image.display()))
}

#[cfg(test)]
mod tests {
    use super::numbers_in;

    #[test]
    fn disks_of_proc_partitions() {
        let table = "major minor  #blocks  name\n\n 254        0  268435456 vda\n   7        0       1024 loop0\n   \
                     7       12          0 loop12\n 259        0       1023 loop12p1\n";
        assert_eq!(numbers_in(table), [0, 12]);
        assert_eq!(numbers_in(""), [0; 0]);
    }
}
