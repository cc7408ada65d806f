//! Read-ahead and I/O limits. Both belong to a device's number, as in the kernel: what is attached there later has them.

use super::FakeHost;
use super::block::LOOP_MAJOR;
use super::faults::Stop;
use super::kernel::Kernel;
use super::tree::Kind;
use crate::{CgroupVersion, IoCgroup};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use volume::{DeviceNumber, Error, ErrorKind, IoLimits, Result};

const DEFAULT_READ_AHEAD_KIB: u32 = 128;
const PAGE_KIB: u32 = 4;

/// What processes are limited to.
#[derive(Default)]
pub(super) struct Tuning {
    read_ahead_kib: BTreeMap<DeviceNumber, u32>,
    /// `None`: no I/O controller.
    version: Option<CgroupVersion>,
    cgroups: BTreeMap<PathBuf, Cgroup>,
    next_id: u64,
}

struct Cgroup {
    id: u64,
    limits: BTreeMap<DeviceNumber, IoLimits>,
}

impl Tuning {
    /// As a reboot does.
    pub(super) fn forget(&mut self) {
        self.read_ahead_kib.clear();
        self.cgroups.clear();
    }
}

impl Kernel {
    pub(super) fn read_ahead_kib(&self, device: &Path, number: DeviceNumber) -> Result<u32> {
        self.check_number(device, number)?;
        Ok(self.tuning.read_ahead_kib.get(&number).copied().unwrap_or(DEFAULT_READ_AHEAD_KIB))
    }

    pub(super) fn set_read_ahead(&mut self, device: &Path, number: DeviceNumber, kib: u32) -> Result<(), Stop> {
        self.check_number(device, number)?;
        self.effect("set-read-ahead")?;
        self.tuning.read_ahead_kib.insert(number, kib / PAGE_KIB * PAGE_KIB);
        Ok(())
    }

    pub(super) fn io_cgroups(&self, names: &[PathBuf]) -> Result<Vec<IoCgroup>> {
        let Tuning { version, cgroups, .. } = &self.tuning;
        let unsupported = |what: &str| Error::new(ErrorKind::Unsupported, what);
        let version = version.ok_or_else(|| unsupported("no cgroup hierarchy has an I/O controller"))?;
        let is_meant = |path: &Path| match version {
            CgroupVersion::V1 => names.iter().any(|name| path.starts_with(name)),
            CgroupVersion::V2 => names.iter().any(|name| path == name),
        };
        let meant = cgroups.iter().filter(|(path, _)| is_meant(path));
        let found: Vec<_> = meant.map(|(path, c)| IoCgroup { path: path.clone(), id: c.id, version }).collect();
        if found.is_empty() { Err(unsupported("no such cgroup in which I/O can be limited")) } else { Ok(found) }
    }

    pub(super) fn set_io_limits(
        &mut self,
        device: DeviceNumber,
        limits: &IoLimits,
        cgroup: &IoCgroup,
    ) -> Result<(), Stop> {
        let now = |kernel: &Self| {
            let there = kernel.tuning.cgroups.get(&cgroup.path).filter(|there| there.id == cgroup.id)?;
            Some(there.limits.get(&device).copied().unwrap_or_default())
        };
        match now(self) {
            None => return Ok(()),
            Some(now) if now == *limits => return Ok(()),
            Some(_) => self.effect("set-io-limit")?,
        }
        if let Some(there) = self.tuning.cgroups.get_mut(&cgroup.path) {
            there.limits.insert(device, *limits);
            there.limits.retain(|_, limits| !limits.is_unlimited());
        }
        Ok(())
    }

    fn check_number(&self, device: &Path, number: DeviceNumber) -> Result<()> {
        match self.kind_at(device)? {
            Kind::BlockDevice(found) if *found == number && number.major == LOOP_MAJOR => Ok(()),
            _ => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("{} is not the device {}:{}", device.display(), number.major, number.minor),
            )),
        }
    }
}

/// What orchestrators and tests do.
impl FakeHost {
    /// Which controller there is; `None`, as at first: none.
    pub fn set_cgroup_version(&self, version: Option<CgroupVersion>) {
        self.kernel().tuning.version = version;
    }

    /// As for a new container.
    pub fn add_cgroup(&self, path: &str) {
        let tuning = &mut self.kernel().tuning;
        tuning.next_id += 1;
        let cgroup = Cgroup { id: tuning.next_id, limits: BTreeMap::new() };
        tuning.cgroups.insert(path.into(), cgroup);
    }

    pub fn remove_cgroup(&self, path: &str) {
        self.kernel().tuning.cgroups.remove(Path::new(path));
    }

    /// In which cgroups the device is limited, and to what.
    pub fn io_limits(&self, device: DeviceNumber) -> BTreeMap<PathBuf, IoLimits> {
        let kernel = self.kernel();
        let of = |(path, cgroup): (&PathBuf, &Cgroup)| Some((path.clone(), *cgroup.limits.get(&device)?));
        kernel.tuning.cgroups.iter().filter_map(of).collect()
    }
}
