//! The host suite on this machine: real loop devices, real file systems.
#![allow(clippy::unwrap_used)]

use conformance::host::{BLOCK, Content, Fixture};
use host::{Effects, Host, LinuxHost, LoopDevice, filesystem};
use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

conformance::host_suite!(linux, crate::LinuxFixture::make);

struct LinuxFixture {
    host: LinuxHost,
    directory: PathBuf,
    _temporary: TempDir,
}

impl LinuxFixture {
    /// A reason where this machine lacks what the suite needs.
    fn make() -> Result<Box<dyn Fixture>, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root for mounts and loop devices".to_owned());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Err("needs loop devices".to_owned());
        }
        own_namespace().map_err(|errno| format!("needs a mount namespace of its own: {errno}"))?;
        let temporary = tempfile::Builder::new().prefix("hawser-host-").tempdir().map_err(|e| e.to_string())?;
        let directory = temporary.path().canonicalize().map_err(|e| e.to_string())?;
        Ok(Box::new(Self { host: LinuxHost::new(Effects::default()), directory, _temporary: temporary }))
    }
}

/// Whatever a failed test left must not stay: mounts first, then the loops of our images, then (TempDir) the files.
impl Drop for LinuxFixture {
    fn drop(&mut self) {
        for entry in self.host.mounts().unwrap_or_default().iter().rev() {
            if entry.mounted_at.starts_with(&self.directory) {
                let _ = self.host.unmount(&entry.mounted_at);
            }
        }
        for device in self.host.loops().unwrap_or_default() {
            let name = device.path.file_name().unwrap_or_default().to_owned();
            let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
            if std::fs::read_to_string(backing).is_ok_and(|file| Path::new(&file).starts_with(&self.directory)) {
                let _ = self.host.detach_loop(&device);
            }
        }
    }
}

impl Fixture for LinuxFixture {
    fn host(&self) -> &dyn Host {
        &self.host
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn make_image(&self, name: &str, content: Content, size_bytes: u64) -> PathBuf {
        let path = self.directory.join(name);
        let mut file = File::create_new(&path).unwrap();
        file.set_len(size_bytes).unwrap();
        match content {
            Content::Blank => {}
            Content::FileSystem(fs) => {
                filesystem::make(&path, fs, size_bytes, *uuid::Uuid::new_v4().as_bytes()).unwrap();
            }
            Content::Data => file.write_all(&[0x5a; 1 << 20]).unwrap(),
        }
        path
    }

    fn truncate_image(&self, image: &Path, size_bytes: u64) {
        self.grow_image(image, size_bytes);
    }

    fn fail_ext4(&self, device: &LoopDevice) {
        let name = device.path.file_name().unwrap();
        let trigger = Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error");
        std::fs::write(trigger, "for a test").unwrap();
    }

    fn grow_image(&self, image: &Path, size_bytes: u64) {
        OpenOptions::new().write(true).open(image).unwrap().set_len(size_bytes).unwrap();
    }

    fn make_symlink(&self, link: &Path, target: &Path) {
        std::os::unix::fs::symlink(target, link).unwrap();
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), String> {
        let written = File::create(path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
        written.map_err(|e| e.to_string())
    }

    fn read_file(&self, path: &Path) -> Result<Vec<u8>, String> {
        std::fs::read(path).map_err(|e| e.to_string())
    }

    fn write_block(&self, device: &Path, offset_bytes: u64, byte: u8) -> Result<(), String> {
        let device = direct(OpenOptions::new().write(true), device)?;
        aligned(|block| {
            block.fill(byte);
            device.write_all_at(block, offset_bytes).and_then(|()| device.sync_all()).map_err(|e| e.to_string())
        })
    }

    fn read_block(&self, device: &Path, offset_bytes: u64) -> Result<Vec<u8>, String> {
        let device = direct(OpenOptions::new().read(true), device)?;
        aligned(|block| {
            device.read_exact_at(block, offset_bytes).map_err(|e| e.to_string())?;
            Ok(block.to_vec())
        })
    }

    fn hold_open(&self, path: &Path) -> Box<dyn Any> {
        Box::new(File::open(path).unwrap())
    }
}

/// For this test's thread: a process elsewhere that copies its mount namespace (a container that starts) would else
/// keep our file systems, and their devices, in use after we unmounted them.
fn own_namespace() -> nix::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
}

fn direct(options: &mut OpenOptions, path: &Path) -> Result<File, String> {
    options.custom_flags(nix::libc::O_DIRECT).open(path).map_err(|e| e.to_string())
}

/// A block at an address that direct I/O takes.
fn aligned<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let size = BLOCK as usize;
    let mut memory = vec![0u8; 2 * size];
    let start = memory.as_ptr().align_offset(size);
    work(&mut memory[start..start + size])
}
