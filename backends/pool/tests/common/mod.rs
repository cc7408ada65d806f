//! A pool on a file system of its own, and what the tests of grants and fences do with it.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)] // Each test uses a part of it; helpers are no test functions.

use conformance::backend::Subject;
use conformance::scratch::{ScratchPool, set_image_bytes};
use host::{Effects, Host, LinuxHost, LoopDevice};
use pool::{Pool, PoolConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use volume::{Backend, BackendName, Connected, FsType, VolumeId};

pub(crate) struct Lab {
    pub(crate) subject: Subject,
    pub(crate) directory: PathBuf,
}

impl Lab {
    /// Says why and gives `None` on a machine that cannot run it.
    pub(crate) fn new(test: &str, fs: FsType) -> Option<Self> {
        let scratch = match ScratchPool::new(fs, 3 << 30) {
            Ok(scratch) => scratch,
            Err(reason) => {
                println!("SKIPPED: {test}: {reason}");
                return None;
            }
        };
        let directory = scratch.path().join("pool");
        let pool = Arc::new(open(&directory, Effects::default()));
        let (again, volumes) = (directory.clone(), directory.join("volumes"));
        let subject = Subject {
            backend: pool.clone(),
            connector: pool,
            another: Box::new(move || Arc::new(open(&again, Effects::default())) as Arc<dyn Backend>),
            write: conformance::backend::write_device(),
            set_image_bytes: Box::new(move |id, bytes| set_image_bytes(&volumes.join(id.as_str()), bytes)),
            keep: Box::new(scratch),
        };
        Some(Self { subject, directory })
    }

    pub(crate) fn volume_dir(&self, id: &VolumeId) -> PathBuf {
        self.directory.join("volumes").join(id.as_str())
    }

    /// Names in the volume's directory that start so.
    pub(crate) fn files(&self, id: &VolumeId, prefix: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.volume_dir(id)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// The volume's only image.
    pub(crate) fn image(&self, id: &VolumeId) -> PathBuf {
        let images = self.files(id, "image.");
        assert_eq!(images.len(), 1, "{images:?}");
        self.volume_dir(id).join(&images[0])
    }

    /// The loops that have this file.
    pub(crate) fn loops_of(&self, image: &Path) -> Vec<LoopDevice> {
        let host = LinuxHost::new(Effects::default());
        let identity = host.image_identity(image).unwrap();
        let device = device_of(image);
        let loops = host.loops().unwrap().into_iter();
        loops
            .filter(|d| {
                (d.backing_device.major, d.backing_device.minor, d.backing_inode)
                    == (device.0, device.1, identity.inode)
            })
            .collect()
    }
}

pub(crate) fn open(directory: &Path, effects: Effects) -> Pool {
    open_on(directory, Arc::new(LinuxHost::new(effects.clone())), effects)
}

pub(crate) fn open_on(directory: &Path, host: Arc<dyn Host>, effects: Effects) -> Pool {
    let config = PoolConfig::new(BackendName::parse("pool").unwrap(), directory);
    Pool::open(config, host, effects).unwrap()
}

pub(crate) fn device(connected: Connected) -> PathBuf {
    match connected {
        Connected::Device { path, .. } => path,
        Connected::Directory { path } => panic!("a directory: {}", path.display()),
    }
}

fn device_of(path: &Path) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(path).unwrap().dev();
    let part = |n: u64| u32::try_from(n).unwrap();
    (part(nix::sys::stat::major(device)), part(nix::sys::stat::minor(device)))
}
