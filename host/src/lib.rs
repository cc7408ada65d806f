//! The Linux side effects of hawser, and nothing else: mounts, file systems, block and loop devices, files of a pool,
//! and programs started. `LinuxHost` does them, `FakeHost` models them; `conformance` pins both with one suite.
//!
//! Verbs are synchronous and act on descriptors where the kernel lets them. Every effect is announced to [`Effects`],
//! so a test can end or stop the process after any of them.

pub mod bare;
pub mod command;
pub mod deadline;
mod effects;
mod fake;
pub mod file;
pub mod filesystem;
mod linux;
pub mod memory;
mod sys;
mod types;

pub use effects::Effects;
pub use fake::{FakeHost, OpenFile};
pub use linux::{LinuxHost, check_mount_flags};
pub use types::{
    CgroupVersion, Fenced, FileSystemCheck, FileSystemStats, IoCgroup, LoopDevice, LoopRequest, MountEntry,
    MountRequest, MountState, Owner, PathState, Probe,
};

use std::path::{Path, PathBuf};
use volume::{DeviceNumber, FsType, HealthProblem, ImageIdentity, IoLimits, Result};

/// What the node service, the pool and the demo ask of the machine.
pub trait Host: Send + Sync {
    // Paths that an orchestrator names (staging and target paths).

    /// The absolute path as the mount table shows it: symlinks and `..` in its parents resolved as far as they exist, the
    /// last component kept as it is.
    fn resolve_parents(&self, path: &Path) -> Result<PathBuf>;
    /// Never follows a final symlink.
    fn observe_path(&self, path: &Path) -> Result<PathState>;
    /// Makes the directory, and missing parents; fine when it is there. `FailedPrecondition` for anything else.
    fn ensure_directory(&self, path: &Path) -> Result<()>;
    /// Makes an empty regular file to bind a device onto; fine when it or such a bind is there.
    fn ensure_file(&self, path: &Path) -> Result<()>;
    /// Has nobody write to the directory that the mount at `path` hides, until [`Host::remove_target`] removes it: for a mount
    /// that is taken from a workload whose orchestrator may start it there again. False where there is no such directory, or
    /// its file system cannot do that.
    fn seal_target(&self, path: &Path) -> Result<bool>;
    /// Removes an empty directory or an empty file, also a sealed one; fine when absent. Never recursive, never a mount point.
    fn remove_target(&self, path: &Path) -> Result<()>;

    // Mounts.

    /// This process's mount table, in mount order (the last entry of a path is the one on top).
    fn mounts(&self) -> Result<Vec<MountEntry>>;
    /// The mount on top at `path`, which is as the mount table shows it. Where nothing is mounted there it takes no look
    /// at the table, which is long on a node with many volumes.
    fn mount_at(&self, path: &Path) -> Result<Option<MountEntry>> {
        Ok(self.mounts()?.into_iter().rfind(|entry| entry.mounted_at == path))
    }
    fn mount(&self, request: &MountRequest<'_>) -> Result<()>;
    /// Bind-mounts a directory or a device node.
    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<()>;
    /// Unmounts the top mount of `path`; fine when nothing is mounted there. `FailedPrecondition` when busy.
    fn unmount(&self, path: &Path) -> Result<()>;
    fn stats(&self, path: &Path) -> Result<FileSystemStats>;
    /// Owner and permission bits of the directory at `path` (a mounted volume's root).
    fn owner(&self, path: &Path) -> Result<Owner>;
    /// Sets owner and permission bits of the directory at `path` (a mounted volume's root).
    fn set_owner(&self, path: &Path, uid: Option<u32>, gid: Option<u32>, mode: Option<u32>) -> Result<()>;

    // Block devices and file systems.

    /// What is on the device or image. A read error is an error, never [`Probe::Blank`].
    fn probe(&self, device: &Path) -> Result<Probe>;
    /// Checks an unmounted file system without changing it, where its error flag asks for that.
    fn check_filesystem(&self, device: &Path, fs: FsType) -> Result<FileSystemCheck>;
    /// Grows the file system on `device`, mounted at `mounted_at` or unmounted, to the device's size.
    fn grow_filesystem(&self, device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<()>;
    /// In bytes.
    fn device_size(&self, device: &Path) -> Result<u64>;
    /// Stops all writes of the file systems mounted from `device`, in whatever mount namespace, runs `work`, and
    /// lets them go on whatever happened. Runs `work` alone when nothing is mounted from it. `deadline_ms` bounds the
    /// freeze, not the work. `Unavailable`, without `work`, when it is in use out of reach (a namespace without processes).
    fn with_frozen(&self, device: DeviceNumber, deadline_ms: u64, work: &mut dyn FnMut() -> Result<()>) -> Result<()>;
    /// As [`Host::with_frozen`] for several devices at once: frozen in the order given, all of them while `work` runs, which
    /// gets those that had a file system to freeze. What can be written out before the first freeze is. `deadline_ms` bounds
    /// all the freezes together. `Busy` at once, and never a wait, when somebody else froze one.
    fn with_all_frozen(
        &self,
        devices: &[DeviceNumber],
        deadline_ms: u64,
        work: &mut dyn FnMut(&[DeviceNumber]) -> Result<()>,
    ) -> Result<()>;
    /// Lets the file system mounted from `device` go on if somebody left it frozen; whether it was. For the start after
    /// a crash: a process that dies in [`Host::with_frozen`] leaves a child that thaws, unless its container ends with it.
    /// `mounted_at` is where it is mounted, as far as the caller knows: that spares a look at every process's mounts.
    fn thaw_left_over(&self, device: DeviceNumber, mounted_at: Option<&Path>) -> Result<bool>;

    /// Reads the first and the last block of the device past all caches. `Unavailable` when one cannot be read: the
    /// device is cut off, its image is shorter than it, or the storage below fails. Hangs as long as the device does.
    fn try_device(&self, device: &Path) -> Result<()>;
    /// How the file system mounted at `path` is. `NotFound` when nothing is mounted there. Hangs as long as it does.
    fn try_mounted(&self, path: &Path) -> Result<MountState>;
    /// Writes everything out and discards the free space of the file system mounted from `device`, in whatever mount
    /// namespace: how many bytes it told the device (FITRIM). `None` when nothing is mounted from it.
    fn trim(&self, device: DeviceNumber) -> Result<Option<u64>>;

    // Loop devices.

    /// Attaches the image with direct I/O through LOOP_CONFIGURE; verifies inode and generation on the descriptor.
    fn attach_loop(&self, request: &LoopRequest<'_>) -> Result<LoopDevice>;
    /// All configured loop devices of this kernel.
    fn loops(&self) -> Result<Vec<LoopDevice>>;
    /// Those of them that show a sector at least: not one whose image was emptied. It takes no look at free loops, of which
    /// a machine keeps as many as it ever used at once.
    fn loops_with_content(&self) -> Result<Vec<LoopDevice>> {
        self.loops()
    }
    /// Detaches the loop if it still has that backing image; fine when it is gone. `FailedPrecondition` when in use.
    fn detach_loop(&self, device: &LoopDevice) -> Result<()>;
    /// Makes the loop show its image's new size.
    fn refresh_loop(&self, device: &LoopDevice) -> Result<()>;
    /// Cuts the loop off from its image so that nothing more is written: for file systems freeze, limit, thaw; for raw
    /// block limit, wait until quiet, another limit. Holds the loop's descriptor from check to ioctl, reads back.
    /// `Ok(None)` when the loop no longer has that image.
    fn fence_loop(&self, device: &LoopDevice, deadline_ms: u64) -> Result<Option<Fenced>>;
    /// Shuts the file system down (FS_IOC_SHUTDOWN without flushing the log), so that a fenced node stops by itself. Never counted as proof.
    fn shutdown_filesystem(&self, mounted_at: &Path) -> Result<()>;

    /// What this process may not do that the driver needs, and what follows from it.
    fn missing_privileges(&self) -> Vec<HealthProblem>;

    // How a device behaves.

    /// How far the kernel reads ahead, in KiB. `FailedPrecondition` unless `device` has that number.
    fn read_ahead_kib(&self, device: &Path, number: DeviceNumber) -> Result<u32>;
    /// In KiB, rounded down to pages; files that are open already keep what they have. It stays with the device's number
    /// when its image is detached, until it is set again. `FailedPrecondition` unless `device` has that number.
    fn set_read_ahead(&self, device: &Path, number: DeviceNumber, kib: u32) -> Result<()>;
    /// The cgroups in which limits have to be set to hold for all in the cgroups of these names (relative to the root of
    /// the hierarchy that has the I/O controller), sorted. `Unsupported`, with the reason, when there is none.
    fn io_cgroups(&self, names: &[PathBuf]) -> Result<Vec<IoCgroup>>;
    /// Limits what processes of the cgroup do to the device. It stays with the device's number, whatever is attached there
    /// later, until it is lifted (all limits `None`). Fine when the cgroup is gone.
    fn set_io_limits(&self, device: DeviceNumber, limits: &IoLimits, cgroup: &IoCgroup) -> Result<()>;

    /// `/proc/sys/kernel/random/boot_id`.
    fn boot_id(&self) -> Result<String>;
    /// Inode and generation of a file, for [`LoopRequest::image`].
    fn image_identity(&self, image: &Path) -> Result<ImageIdentity>;
}
