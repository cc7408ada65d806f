//! The host as Linux is: each verb is a few system calls, verified on descriptors.

mod btrfs;
mod cgroup;
#[cfg(test)]
mod cgroup_tests;
#[cfg(test)]
mod exhausted_tests;
mod fence;
#[cfg(test)]
mod fence_oracle;
mod freeze;
#[cfg(test)]
mod freeze_tests;
#[cfg(test)]
mod lab;
mod loops;
mod mount;
mod mountinfo;
pub(crate) mod options;
mod os;
mod paths;
mod preflight;
mod read_ahead;
mod shutdown;
mod trial;
mod trim;

pub use options::check_mount_flags;

use crate::{
    Effects, Fenced, FileSystemCheck, FileSystemStats, Host, IoCgroup, LoopDevice, LoopRequest, MountEntry,
    MountRequest, MountState, Owner, PathState, Probe, filesystem,
};
use std::path::{Path, PathBuf};
use volume::{DeviceNumber, FsType, HealthProblem, ImageIdentity, IoLimits, Result};

/// The machine this process runs on. Stateless: everything is asked of the kernel each time.
#[derive(Clone)]
pub struct LinuxHost {
    effects: Effects,
}

impl LinuxHost {
    pub fn new(effects: Effects) -> Self {
        Self { effects }
    }

    /// What this machine lacks for the driver's work, each in a sentence that says what follows and what to do.
    /// Empty when nothing is missing.
    pub fn preflight(&self) -> Vec<String> {
        preflight::missing()
    }
}

impl Host for LinuxHost {
    fn resolve_parents(&self, path: &Path) -> Result<PathBuf> {
        paths::resolve_parents(path)
    }

    fn observe_path(&self, path: &Path) -> Result<PathState> {
        paths::observe(path)
    }

    fn ensure_directory(&self, path: &Path) -> Result<()> {
        paths::ensure_directory(&self.effects, path)
    }

    fn ensure_file(&self, path: &Path) -> Result<()> {
        paths::ensure_file(&self.effects, path)
    }

    fn seal_target(&self, path: &Path) -> Result<bool> {
        paths::seal(&self.effects, path)
    }

    fn remove_target(&self, path: &Path) -> Result<()> {
        paths::remove(&self.effects, path)
    }

    fn mounts(&self) -> Result<Vec<MountEntry>> {
        mountinfo::own()
    }

    fn mount_at(&self, path: &Path) -> Result<Option<MountEntry>> {
        mount::at(path)
    }

    fn mount(&self, request: &MountRequest<'_>) -> Result<()> {
        mount::mount(&self.effects, request)
    }

    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<()> {
        mount::bind(&self.effects, source, target, read_only)
    }

    fn unmount(&self, path: &Path) -> Result<()> {
        mount::unmount(&self.effects, path)
    }

    fn stats(&self, path: &Path) -> Result<FileSystemStats> {
        mount::stats(path)
    }

    fn owner(&self, path: &Path) -> Result<Owner> {
        paths::owner(path)
    }

    fn set_owner(&self, path: &Path, uid: Option<u32>, gid: Option<u32>, mode: Option<u32>) -> Result<()> {
        paths::set_owner(&self.effects, path, uid, gid, mode)
    }

    fn probe(&self, device: &Path) -> Result<Probe> {
        filesystem::probe(device)
    }

    fn check_filesystem(&self, device: &Path, fs: FsType) -> Result<FileSystemCheck> {
        filesystem::check(device, fs)
    }

    fn grow_filesystem(&self, device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<()> {
        filesystem::grow(device, fs, mounted_at)?;
        self.effects.done("grow-filesystem");
        Ok(())
    }

    fn device_size(&self, device: &Path) -> Result<u64> {
        loops::size_bytes(device)
    }

    fn with_frozen(&self, device: DeviceNumber, deadline_ms: u64, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        freeze::with_frozen(device, deadline_ms, work)
    }

    fn with_all_frozen(
        &self,
        devices: &[DeviceNumber],
        deadline_ms: u64,
        work: &mut dyn FnMut(&[DeviceNumber]) -> Result<()>,
    ) -> Result<()> {
        freeze::with_all_frozen(&self.effects, devices, deadline_ms, work)
    }

    fn thaw_left_over(&self, device: DeviceNumber, mounted_at: Option<&Path>) -> Result<bool> {
        freeze::thaw_left_over(&self.effects, device, mounted_at)
    }

    fn try_device(&self, device: &Path) -> Result<()> {
        trial::device(device)
    }

    fn try_mounted(&self, path: &Path) -> Result<MountState> {
        trial::mounted(path)
    }

    fn trim(&self, device: DeviceNumber) -> Result<Option<u64>> {
        trim::trim(&self.effects, device)
    }

    fn attach_loop(&self, request: &LoopRequest<'_>) -> Result<LoopDevice> {
        loops::attach(&self.effects, request)
    }

    fn loops(&self) -> Result<Vec<LoopDevice>> {
        loops::list()
    }

    fn loops_with_content(&self) -> Result<Vec<LoopDevice>> {
        loops::list_with_content()
    }

    fn detach_loop(&self, device: &LoopDevice) -> Result<()> {
        loops::detach(&self.effects, device)
    }

    fn refresh_loop(&self, device: &LoopDevice) -> Result<()> {
        loops::refresh(&self.effects, device)
    }

    fn fence_loop(&self, device: &LoopDevice, deadline_ms: u64) -> Result<Option<Fenced>> {
        fence::fence_loop(&self.effects, device, deadline_ms)
    }

    fn shutdown_filesystem(&self, mounted_at: &Path) -> Result<()> {
        shutdown::shut_down(&self.effects, mounted_at)
    }

    fn missing_privileges(&self) -> Vec<HealthProblem> {
        preflight::missing_privileges()
    }

    fn read_ahead_kib(&self, device: &Path, number: DeviceNumber) -> Result<u32> {
        read_ahead::get(device, number)
    }

    fn set_read_ahead(&self, device: &Path, number: DeviceNumber, kib: u32) -> Result<()> {
        read_ahead::set(&self.effects, device, number, kib)
    }

    fn io_cgroups(&self, names: &[PathBuf]) -> Result<Vec<IoCgroup>> {
        cgroup::find(&cgroup::hierarchies(&mountinfo::own()?), names)
    }

    fn set_io_limits(&self, device: DeviceNumber, limits: &IoLimits, cgroup: &IoCgroup) -> Result<()> {
        cgroup::set(&self.effects, cgroup, device, limits)
    }

    fn boot_id(&self) -> Result<String> {
        os::read_line(Path::new("/proc/sys/kernel/random/boot_id"))
    }

    fn image_identity(&self, image: &Path) -> Result<ImageIdentity> {
        loops::image_identity(image)
    }
}
