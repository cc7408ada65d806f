//! What tests on real devices stand on: a pool on a loop-mounted xfs, and images in it that are attached and mounted.
//! All of it goes away with the value.

use super::LinuxHost;
use crate::{Effects, Host, LoopDevice, LoopRequest, MountRequest, filesystem};
use std::fs::File;
use std::path::{Path, PathBuf};
use volume::FsType;

pub(super) struct Lab {
    pub(super) host: LinuxHost,
    pub(super) directory: tempfile::TempDir,
    pub(super) pool: PathBuf,
    mounted: Vec<(Option<PathBuf>, LoopDevice)>,
}

impl Lab {
    /// `None`, and a line that says why, where the machine has no root or no loop devices for us.
    pub(super) fn make() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            println!("SKIPPED: {}: needs root and loop devices", std::thread::current().name().unwrap_or("a test"));
            return None;
        }
        // A process elsewhere that copies its mount namespace would else keep our file systems in use.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let directory = tempfile::Builder::new().prefix("hawser-lab-").tempdir().unwrap();
        let pool = directory.path().canonicalize().unwrap().join("pool");
        let host = LinuxHost::new(Effects::default());
        let mut lab = Self { host, directory, pool: pool.clone(), mounted: Vec::new() };
        let device = lab.attach(&lab.directory.path().join("pool.img"), Some(FsType::Xfs), 4 << 30);
        lab.mount(&device, FsType::Xfs, &pool);
        Some(lab)
    }

    /// Makes the image where it is not there yet.
    pub(super) fn attach(&mut self, image: &Path, fs: Option<FsType>, size_bytes: u64) -> LoopDevice {
        if !image.exists() {
            File::create_new(image).unwrap().set_len(size_bytes).unwrap();
            if let Some(fs) = fs {
                filesystem::make(image, fs, size_bytes, *uuid::Uuid::new_v4().as_bytes()).unwrap();
            }
        }
        let identity = self.host.image_identity(image).unwrap();
        let request = LoopRequest { image, identity: &identity, label: "hawser-lab", read_only: false };
        let device = self.host.attach_loop(&request).unwrap();
        self.mounted.push((None, device.clone()));
        device
    }

    pub(super) fn mount(&mut self, device: &LoopDevice, fs: FsType, target: &Path) {
        self.host.ensure_directory(target).unwrap();
        let request =
            MountRequest { device: &device.path, number: device.number, fs, target, read_only: false, flags: &[] };
        self.host.mount(&request).unwrap();
        if let Some(entry) = self.mounted.iter_mut().find(|(_, d)| d == device) {
            entry.0 = Some(target.to_owned());
        }
    }

    pub(super) fn release(&mut self, device: &LoopDevice) {
        self.mounted.retain(|(target, other)| {
            if other != device {
                return true;
            }
            if let Some(target) = target {
                self.host.unmount(target).unwrap();
            }
            self.host.detach_loop(device).unwrap();
            false
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (target, device) in self.mounted.iter().rev() {
            if let Some(target) = target {
                let _ = self.host.unmount(target);
            }
            let _ = self.host.detach_loop(device);
        }
    }
}
