//! A pool inside an image, for directories on a file system that cannot clone files (ext4): the file `pool.img` with
//! xfs, attached to a loop device and mounted at `mnt` beside it. Both outlive the driver, as all mounts do.

use crate::PoolConfig;
use crate::template::make_image;
use host::file::{Access, Dir, FileSystemKind, filesystem_of, identity, probe_reflink};
use host::{Host, LoopDevice, LoopRequest, MountRequest};
use std::fs::{File, TryLockError};
use std::thread::sleep;
use std::time::{Duration, Instant};
use volume::{Error, ErrorKind, FsType, Result};

const IMAGE: &str = "pool.img";
const MOUNT: &str = "mnt";
const LABEL: &str = "hawser-pool";
const LOCK_DEADLINE: Duration = Duration::from_secs(60);

/// The root of the pool that is kept in an image of `outer`; `None` when the pool is `outer` itself.
pub(crate) fn image_pool(config: &PoolConfig, host: &dyn Host, outer: &Dir) -> Result<Option<Dir>> {
    if !outer.contains(IMAGE)? {
        let Some(bytes) = config.image_bytes else { return Ok(None) };
        // A pool that was begun without an image stays that.
        if outer.contains("pool.json")? || probe_reflink(outer)? {
            return Ok(None);
        }
        refuse_network(outer)?;
        make_image(outer, IMAGE, FsType::Xfs, bytes)
            .map_err(|e| e.context(format!("making the pool's image in {}", outer.path().display())))?;
    }
    refuse_network(outer)?;
    let image = outer.open_file(IMAGE, Access::ReadWrite)?;
    // Two drivers that start at once must not attach the image twice: two mounts of two loops would destroy it.
    lock(&image, outer)?;
    let device = attached(host, outer, &image)?;
    mount(host, outer, &device)?;
    Dir::open(&outer.path().join(MOUNT), outer.effects().clone()).map(Some)
}

/// Each machine would mount the image for itself, and xfs that two kernels have mounted is lost.
fn refuse_network(outer: &Dir) -> Result<()> {
    let FileSystemKind::Network(kind) = filesystem_of(outer)? else { return Ok(()) };
    Err(Error::new(
        ErrorKind::FailedPrecondition,
        format!(
            "{} is on a file system that several machines can have ({kind}), where a pool cannot be kept in an image; \
             set up without image_bytes",
            outer.path().display()
        ),
    ))
}

fn attached(host: &dyn Host, outer: &Dir, image: &File) -> Result<LoopDevice> {
    let found = identity(image)?;
    let loops = host.loops()?;
    let own = |device: &&LoopDevice| device.backing_device == found.device && device.backing_inode == found.inode;
    if let Some(device) = loops.iter().find(own) {
        return Ok(device.clone());
    }
    let path = outer.path().join(IMAGE);
    let identity = host.image_identity(&path)?;
    host.attach_loop(&LoopRequest { image: &path, identity: &identity, label: LABEL, read_only: false })
}

fn mount(host: &dyn Host, outer: &Dir, device: &LoopDevice) -> Result<()> {
    let target = outer.path().join(MOUNT);
    host.ensure_directory(&target)?;
    let target = std::fs::canonicalize(&target)
        .map_err(|e| Error::io(format!("resolving the pool's mount point {}", target.display()), e))?;
    match host.mounts()?.iter().rfind(|entry| entry.mounted_at == target) {
        Some(entry) if entry.device == device.number => Ok(()),
        Some(entry) => Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("{} is mounted from {} and not from the pool's image; unmount it", target.display(), entry.source),
        )),
        None => host.mount(&MountRequest {
            device: &device.path,
            number: device.number,
            fs: FsType::Xfs,
            target: &target,
            read_only: false,
            flags: &[],
        }),
    }
}

/// Until the file is closed.
fn lock(image: &File, outer: &Dir) -> Result<()> {
    let what = || format!("locking {}", outer.path().join(IMAGE).display());
    let begun = Instant::now();
    loop {
        match image.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(Error::io(what(), error)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_DEADLINE => sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => {
                let message = format!("{}: another driver has been opening the pool for a minute", what());
                return Err(Error::new(ErrorKind::Busy, message));
            }
        }
    }
}
