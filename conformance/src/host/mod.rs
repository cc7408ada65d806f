//! The suite that every [`host::Host`] passes: the real one on real devices, the fake one in memory.
//!
//! `conformance::host_suite!(module, make)` turns it into tests; `make` gives a fresh [`Fixture`] for each, or the
//! reason why this machine cannot run it.

pub mod fencing;
pub mod filesystems;
pub mod freezing;
pub mod loops;
pub mod mounts;
pub mod paths;
pub mod trial;
pub mod tuning;

use host::{Host, LoopDevice, LoopRequest, MountEntry, MountRequest};
use std::any::Any;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use volume::{Error, ErrorKind, FsType, Result};

/// Large enough for every file system that the suite makes.
pub const SIZE: u64 = 512 << 20;
/// The size of [`Fixture::write_block`].
pub const BLOCK: u64 = 4096;

/// A host and what a test does around it: the part of users, administrators and other programs.
pub trait Fixture {
    fn host(&self) -> &dyn Host;
    /// An existing, empty directory for this test alone, by its real path. The fixture's end takes away what is left
    /// below it: mounts, loops of images in it, files.
    fn directory(&self) -> &Path;
    /// Makes an image in the directory; its path.
    fn make_image(&self, name: &str, content: Content, size_bytes: u64) -> PathBuf;
    /// Cuts the image off at a length, behind whoever has it attached.
    fn truncate_image(&self, image: &Path, size_bytes: u64);
    /// Lets the mounted ext4 on the device meet an error, so that it stops writing (errors=remount-ro).
    fn fail_ext4(&self, device: &LoopDevice);
    fn grow_image(&self, image: &Path, size_bytes: u64);
    fn make_symlink(&self, link: &Path, target: &Path);
    /// Creates or replaces a file and syncs it to its device.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> std::result::Result<(), String>;
    fn read_file(&self, path: &Path) -> std::result::Result<Vec<u8>, String>;
    /// Writes a block of `byte` to a device or image, past all caches.
    fn write_block(&self, device: &Path, offset_bytes: u64, byte: u8) -> std::result::Result<(), String>;
    /// Reads a block past all caches.
    fn read_block(&self, device: &Path, offset_bytes: u64) -> std::result::Result<Vec<u8>, String>;
    /// Opens a file, directory or device for reading, as a process of somebody else does, until the result is dropped.
    fn hold_open(&self, path: &Path) -> Box<dyn Any>;
}

#[derive(Debug, Clone, Copy)]
pub enum Content {
    Blank,
    FileSystem(FsType),
    /// Something that is no file system, from the first byte on.
    Data,
}

/// Runs one test of the suite on a fresh fixture; one that cannot be made here is a skip with its reason.
pub fn run(
    test: &str,
    make: impl FnOnce() -> std::result::Result<Box<dyn Fixture>, String>,
    body: impl FnOnce(&dyn Fixture),
) {
    match make() {
        Ok(fixture) => body(&*fixture),
        Err(reason) => println!("SKIPPED: {test}: {reason}"),
    }
}

/// The whole suite as `#[test]` functions in a module of that name.
#[macro_export]
macro_rules! host_suite {
    ($module:ident, $make:expr) => {
        mod $module {
            $crate::host_suite! { @tests $make;
                paths: what_is_there, odd_paths, directories, files, removal, sealing, symlinked_parents, owners;
                mounts: mount_and_unmount, every_filesystem, stacking, binds, device_binds, read_only, busy, wrong_device,
                    flags, odd_targets, nothing_to_mount;
                filesystems: probing, unreadable, growing_unmounted, growing_mounted, checking;
                loops: attach_and_detach, listing, in_use, wrong_image, growing, reused, read_only_loops, labels,
                    identities;
                freezing: work_runs_frozen, failing_work, panicking_work, nothing_mounted, frozen_twice, left_frozen,
                    several_at_once, several_or_none;
                fencing: mounted, raw_block, twice, frozen_by_others, gone, another_image, shut_down, no_shutdown_of_others;
                trial: healthy, went_read_only, shut_down, truncated, cut_off, nothing_there, trimming;
                tuning: read_ahead, read_ahead_in_use, read_ahead_of_another;
            }
        }
    };
    (@tests $make:expr; $($group:ident: $($test:ident),+;)+) => {
        $(mod $group {
            $(#[test]
            fn $test() {
                $crate::host::run(
                    concat!(module_path!(), "::", stringify!($test)),
                    $make,
                    $crate::host::$group::$test,
                );
            })+
        })+
    };
}

/// What most tests do, by one line each.
impl dyn Fixture + '_ {
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// A directory to mount onto.
    pub fn target(&self, name: &str) -> PathBuf {
        let target = self.path(name);
        self.host().ensure_directory(&target).unwrap();
        target
    }

    pub fn attach(&self, image: &Path, label: &str) -> LoopDevice {
        self.try_attach(image, label, false).unwrap()
    }

    pub fn try_attach(&self, image: &Path, label: &str, read_only: bool) -> Result<LoopDevice> {
        let identity = self.host().image_identity(image)?;
        self.host().attach_loop(&LoopRequest { image, identity: &identity, label, read_only })
    }

    /// A new image with that file system, attached.
    pub fn attach_new(&self, name: &str, fs: FsType) -> LoopDevice {
        self.attach(&self.make_image(name, Content::FileSystem(fs), SIZE), name)
    }

    pub fn mount(&self, device: &LoopDevice, fs: FsType, target: &Path) {
        self.try_mount(device, fs, target, false, &[]).unwrap();
    }

    pub fn try_mount(
        &self,
        device: &LoopDevice,
        fs: FsType,
        target: &Path,
        read_only: bool,
        flags: &[&str],
    ) -> Result<()> {
        let flags: Vec<String> = flags.iter().map(|&f| f.to_owned()).collect();
        let number = device.number;
        self.host().mount(&MountRequest { device: &device.path, number, fs, target, read_only, flags: &flags })
    }

    /// The mounts at a path, the top one last.
    pub fn mounted_at(&self, path: &Path) -> Vec<MountEntry> {
        self.host().mounts().unwrap().into_iter().filter(|m| m.mounted_at == path).collect()
    }

    pub fn is_listed(&self, device: &LoopDevice) -> bool {
        self.host().loops().unwrap().contains(device)
    }

    pub fn unmount_and_detach(&self, target: &Path, device: &LoopDevice) {
        self.host().unmount(target).unwrap();
        self.host().detach_loop(device).unwrap();
    }
}

/// The result must be an error of that kind with a message worth reading.
pub fn refused<T: Debug>(result: Result<T>, kind: ErrorKind) -> Error {
    let error = result.expect_err("this has to be refused");
    assert_eq!(error.kind(), kind, "{}", error.chain());
    assert!(error.to_string().len() > 10, "{error}");
    error
}
