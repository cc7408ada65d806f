//! A real file system of its own for a test: an image in the temporary directory, attached to a loop device and mounted.

use host::{Effects, Host, LinuxHost, LoopDevice, LoopRequest, MountRequest, filesystem};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use uuid::Uuid;
use volume::{DeviceNumber, Error, ErrorKind, FsType};

const PATIENCE: Duration = Duration::from_secs(20);

/// For suites: sets the length of the only image in a pool's directory of a volume.
pub fn set_image_bytes(volume_directory: &Path, size_bytes: u64) {
    let names = std::fs::read_dir(volume_directory).unwrap().map(|entry| entry.unwrap());
    let mut images = names.filter(|entry| entry.file_name().to_string_lossy().starts_with("image."));
    let image = images.next().unwrap().path();
    std::fs::OpenOptions::new().write(true).open(image).unwrap().set_len(size_bytes).unwrap();
}

/// Dropped, it detaches every loop device that stands on it, unmounts and removes everything.
pub struct ScratchPool {
    host: LinuxHost,
    directory: PathBuf,
    mount: PathBuf,
    device: Option<LoopDevice>,
}

impl ScratchPool {
    /// `Err` is the reason why this machine cannot have one: no privilege, no loop devices, no mkfs.
    pub fn new(fs: FsType, size_bytes: u64) -> Result<Self, String> {
        own_namespace().map_err(|errno| format!("needs a mount namespace of its own: {errno}"))?;
        let directory = std::env::temp_dir().join(format!("hawser-test-{}", Uuid::new_v4().simple()));
        let mut scratch =
            Self { host: LinuxHost::new(Effects::default()), mount: directory.join("mnt"), directory, device: None };
        match scratch.set_up(fs, size_bytes) {
            Ok(()) => Ok(scratch),
            Err(error) if is_missing(&error) => Err(error.chain()),
            Err(error) => panic!("making a scratch {fs}: {}", error.chain()),
        }
    }

    /// Where the file system is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// The image below it, for damaging what is on the "disk".
    pub fn image(&self) -> PathBuf {
        self.directory.join("image")
    }

    fn set_up(&mut self, fs: FsType, size_bytes: u64) -> volume::Result<()> {
        std::fs::create_dir_all(&self.mount).map_err(|e| Error::io("making a scratch directory", e))?;
        let image = self.image();
        File::create_new(&image).map_err(|e| Error::io("making a scratch image", e))?;
        filesystem::make(&image, fs, size_bytes, Uuid::new_v4().into_bytes())?;
        let identity = self.host.image_identity(&image)?;
        let request = LoopRequest { image: &image, identity: &identity, label: "hawser-test", read_only: false };
        let device = self.device.insert(self.host.attach_loop(&request)?);
        let (path, number) = (device.path.clone(), device.number);
        self.host.mount(&MountRequest { device: &path, number, fs, target: &self.mount, read_only: false, flags: &[] })
    }

    /// Loops of files on this file system, nested ones first.
    fn detach_all_on(&self, device: DeviceNumber) {
        for nested in self.host.loops().unwrap_or_default() {
            if nested.backing_device == device {
                let _ = self.host.detach_loop(&nested);
            }
        }
    }
}

impl Drop for ScratchPool {
    fn drop(&mut self) {
        use std::os::unix::fs::MetadataExt;
        if let Some(device) = self.device.take() {
            if let Ok(on) = std::fs::metadata(&self.mount).map(|found| found.dev()) {
                // A device number's parts, as makedev(3) packs them on Linux.
                let major = u32::try_from((on >> 8) & 0xfff).unwrap_or(0);
                let minor = u32::try_from((on & 0xff) | ((on >> 12) & 0xfff00)).unwrap_or(0);
                self.detach_all_on(DeviceNumber { major, minor });
            }
            let gone = patiently(|| self.host.unmount(&self.mount));
            if let Err(error) = gone.and_then(|()| patiently(|| self.host.detach_loop(&device))) {
                let message =
                    format!("a scratch file system stays behind at {}: {}", self.mount.display(), error.chain());
                if std::thread::panicking() {
                    eprintln!("{message}");
                    return;
                }
                panic!("{message}");
            }
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// For this test's thread and those it starts: a process elsewhere that copies its mount namespace (a container that
/// starts) would else keep our file systems in use after we unmounted them.
fn own_namespace() -> nix::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
}

/// Other tests start programs, and between fork(2) and execve(2) those have this process' descriptors too.
fn patiently(done: impl Fn() -> volume::Result<()>) -> volume::Result<()> {
    let begun = Instant::now();
    loop {
        match done() {
            Err(busy) if busy.kind() == ErrorKind::FailedPrecondition && begun.elapsed() < PATIENCE => {
                sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Whether the machine lacks something, rather than the code being wrong.
fn is_missing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported)
}
