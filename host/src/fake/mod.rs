//! The host as a model: a mount table with stacking, files, loop devices with the images behind them, file systems
//! that remember what was written, and faults at any effect. It needs no privilege, and touches no real path unless it is
//! told to mirror targets.
//!
//! What it models is pinned by the suite that also runs against `LinuxHost` (conformance).

mod block;
mod blocks;
mod control;
mod faults;
mod filesystem;
mod kernel;
mod loops;
mod mirror;
mod mount;
mod path;
mod tree;
mod trial;
mod tuning;

pub use control::OpenFile;

use crate::{
    Effects, Fenced, FileSystemCheck, FileSystemStats, Host, IoCgroup, LoopDevice, LoopRequest, MountEntry,
    MountRequest, MountState, Owner, PathState, Probe,
};
use faults::Stop;
use kernel::Kernel;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use volume::{DeviceNumber, Error, ErrorKind, FsType, HealthProblem, ImageIdentity, IoLimits, Result};

/// A machine in memory. Nodes of one machine share it, as namespaces share a kernel.
pub struct FakeHost {
    kernel: Mutex<Kernel>,
    /// Signalled when what hangs is let go.
    released: Condvar,
    effects: Effects,
    /// Whether targets appear on disk too.
    mirrors: bool,
}

impl FakeHost {
    pub fn new(effects: Effects) -> Self {
        Self { kernel: Mutex::new(Kernel::boot()), released: Condvar::new(), effects, mirrors: false }
    }

    /// One whose targets are on disk too, empty, for those who look there.
    pub fn mirroring_targets(effects: Effects) -> Self {
        Self { mirrors: true, ..Self::new(effects) }
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one verb of the trait: not when the driver has "crashed", again after a hang, and its result is lost when
    /// the crash comes with its last effect.
    fn verb<T>(&self, mut work: impl FnMut(&mut Kernel) -> Result<T, Stop>) -> Result<T> {
        let mut kernel = self.kernel();
        let result = loop {
            kernel.faults.check()?;
            match work(&mut kernel) {
                Ok(value) => break Ok(value),
                Err(Stop::Failed(error)) => break Err(error),
                Err(Stop::Hung) => kernel = self.released.wait(kernel).unwrap_or_else(PoisonError::into_inner),
            }
        };
        let result = kernel.faults.check().and(result);
        let done = kernel.faults.take_done();
        drop(kernel);
        done.into_iter().for_each(|name| self.effects.done(name));
        result
    }
}

struct Thaw<'a> {
    host: &'a FakeHost,
    device: DeviceNumber,
}

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        self.host.kernel().thaw(self.device);
    }
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new(Effects::default())
    }
}

impl Host for FakeHost {
    fn resolve_parents(&self, path: &Path) -> Result<PathBuf> {
        self.verb(|kernel| Ok(kernel.resolve_parents(path)?))
    }

    fn observe_path(&self, path: &Path) -> Result<PathState> {
        self.verb(|kernel| Ok(kernel.observe_path(path)?))
    }

    fn ensure_directory(&self, path: &Path) -> Result<()> {
        self.verb(|kernel| kernel.ensure_directory(path))?;
        if self.mirrors { mirror::directory(path) } else { Ok(()) }
    }

    fn ensure_file(&self, path: &Path) -> Result<()> {
        self.verb(|kernel| kernel.ensure_file(path))?;
        if self.mirrors { mirror::file(path) } else { Ok(()) }
    }

    fn seal_target(&self, path: &Path) -> Result<bool> {
        self.verb(|kernel| kernel.seal_target(path))
    }

    fn remove_target(&self, path: &Path) -> Result<()> {
        self.verb(|kernel| kernel.remove_target(path))?;
        if self.mirrors { mirror::remove(path) } else { Ok(()) }
    }

    fn mounts(&self) -> Result<Vec<MountEntry>> {
        self.verb(|kernel| Ok(kernel.mount_entries()))
    }

    fn mount(&self, request: &MountRequest<'_>) -> Result<()> {
        self.verb(|kernel| kernel.mount(request))
    }

    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<()> {
        self.verb(|kernel| kernel.bind(source, target, read_only))
    }

    fn unmount(&self, path: &Path) -> Result<()> {
        self.verb(|kernel| kernel.unmount(path))
    }

    fn stats(&self, path: &Path) -> Result<FileSystemStats> {
        self.verb(|kernel| Ok(kernel.stats(path)?))
    }

    fn owner(&self, path: &Path) -> Result<Owner> {
        self.verb(|kernel| Ok(kernel.owner(path)?))
    }

    fn set_owner(&self, path: &Path, uid: Option<u32>, gid: Option<u32>, mode: Option<u32>) -> Result<()> {
        self.verb(|kernel| kernel.set_owner(path, uid, gid, mode))
    }

    fn probe(&self, device: &Path) -> Result<Probe> {
        self.verb(|kernel| Ok(kernel.probe(device)?))
    }

    fn check_filesystem(&self, device: &Path, fs: FsType) -> Result<FileSystemCheck> {
        self.verb(|kernel| Ok(kernel.check_filesystem(device, fs)?))
    }

    fn grow_filesystem(&self, device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<()> {
        self.verb(|kernel| kernel.grow_filesystem(device, fs, mounted_at))
    }

    fn device_size(&self, device: &Path) -> Result<u64> {
        self.verb(|kernel| Ok(kernel.device_size(device)?))
    }

    fn with_frozen(&self, device: DeviceNumber, deadline_ms: u64, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.with_all_frozen(&[device], deadline_ms, &mut |_| work())
    }

    fn with_all_frozen(
        &self,
        devices: &[DeviceNumber],
        _deadline_ms: u64,
        work: &mut dyn FnMut(&[DeviceNumber]) -> Result<()>,
    ) -> Result<()> {
        // Thaw whatever the work does, also when the driver crashed meanwhile: children of its own do it then.
        let mut thaws = Vec::new();
        for &device in devices {
            if self.verb(|kernel| Ok(kernel.freeze(device)?))? {
                thaws.push(Thaw { host: self, device });
            }
        }
        let frozen: Vec<DeviceNumber> = thaws.iter().map(|thaw| thaw.device).collect();
        let result = work(&frozen);
        let stayed_frozen = frozen.iter().all(|device| self.kernel().frozen.contains(device));
        drop(thaws);
        if stayed_frozen {
            return result;
        }
        result.and(Err(Error::new(
            ErrorKind::Unavailable,
            "somebody thawed the file system before the work on it was done; retry",
        )))
    }

    fn thaw_left_over(&self, device: DeviceNumber, _mounted_at: Option<&Path>) -> Result<bool> {
        self.verb(|kernel| Ok(kernel.thaw(device)))
    }

    fn try_device(&self, device: &Path) -> Result<()> {
        self.verb(|kernel| kernel.try_device(device))
    }

    fn try_mounted(&self, path: &Path) -> Result<MountState> {
        self.verb(|kernel| kernel.try_mounted(path))
    }

    fn trim(&self, device: DeviceNumber) -> Result<Option<u64>> {
        self.verb(|kernel| kernel.trim(device))
    }

    fn attach_loop(&self, request: &LoopRequest<'_>) -> Result<LoopDevice> {
        self.verb(|kernel| kernel.attach_loop(request))
    }

    fn loops(&self) -> Result<Vec<LoopDevice>> {
        self.verb(|kernel| Ok(kernel.loop_devices()))
    }

    fn detach_loop(&self, device: &LoopDevice) -> Result<()> {
        self.verb(|kernel| kernel.detach_loop(device))
    }

    fn refresh_loop(&self, device: &LoopDevice) -> Result<()> {
        self.verb(|kernel| kernel.refresh_loop(device))
    }

    fn fence_loop(&self, device: &LoopDevice, _deadline_ms: u64) -> Result<Option<Fenced>> {
        self.verb(|kernel| kernel.fence_loop(device))
    }

    fn shutdown_filesystem(&self, mounted_at: &Path) -> Result<()> {
        self.verb(|kernel| kernel.shutdown_filesystem(mounted_at))
    }

    fn missing_privileges(&self) -> Vec<HealthProblem> {
        self.kernel().missing_privileges()
    }

    fn read_ahead_kib(&self, device: &Path, number: DeviceNumber) -> Result<u32> {
        self.verb(|kernel| Ok(kernel.read_ahead_kib(device, number)?))
    }

    fn set_read_ahead(&self, device: &Path, number: DeviceNumber, kib: u32) -> Result<()> {
        self.verb(|kernel| kernel.set_read_ahead(device, number, kib))
    }

    fn io_cgroups(&self, names: &[PathBuf]) -> Result<Vec<IoCgroup>> {
        self.verb(|kernel| Ok(kernel.io_cgroups(names)?))
    }

    fn set_io_limits(&self, device: DeviceNumber, limits: &IoLimits, cgroup: &IoCgroup) -> Result<()> {
        self.verb(|kernel| kernel.set_io_limits(device, limits, cgroup))
    }

    fn boot_id(&self) -> Result<String> {
        self.verb(|kernel| Ok(kernel.boot_id.clone()))
    }

    fn image_identity(&self, image: &Path) -> Result<ImageIdentity> {
        self.verb(|kernel| Ok(kernel.image_identity(image)?))
    }
}
