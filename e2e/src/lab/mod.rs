//! A scratch place for one test: a pool of its own on a file system of its own, and a check that nothing is left.

pub(crate) mod kernel;
mod process;
mod stalling;

pub(crate) use process::{Hawser, Options};
pub(crate) use stalling::Stalling;

use crate::failure::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below one temporary directory; unmounted, detached and removed when dropped, also by a panic.
pub(crate) struct Lab {
    directory: PathBuf,
    binary: PathBuf,
}

/// The file system of the scratch pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PoolFs {
    Xfs,
    Btrfs,
    /// Without reflink: clones are copies, and there is no fork.
    Ext4,
}

impl Lab {
    /// Only directories.
    pub(crate) fn without_pool(binary: &Path) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::SeqCst);
        let directory = std::env::temp_dir().join(format!("hawser-e2e-{}-{number}", std::process::id()));
        let lab = Self { directory, binary: binary.to_owned() };
        for part in ["pool", "run", "staging", "published"] {
            std::fs::create_dir_all(lab.path(part))?;
        }
        println!("lab {number}");
        Ok(lab)
    }

    /// A pool of `size_mib` on `fs`, in a sparse file.
    pub(crate) fn new(binary: &Path, fs: PoolFs, size_mib: u32) -> Result<Self> {
        let lab = Self::without_pool(binary)?;
        let image = lab.path("pool.img").to_string_lossy().into_owned();
        std::fs::File::create(&image)?.set_len(u64::from(size_mib) << 20)?;
        let make: &[&str] = match fs {
            PoolFs::Xfs => &["mkfs.xfs", "-q", "-m", "reflink=1"],
            PoolFs::Btrfs => &["mkfs.btrfs", "-q"],
            PoolFs::Ext4 => &["mkfs.ext4", "-q"],
        };
        let (name, options) = make.split_first().ok_or("no mkfs")?;
        kernel::program(name, &[options, &[&image]].concat()).context(|| "making the scratch pool".to_owned())?;
        kernel::program("mount", &["-o", "loop", &image, &lab.path("pool").to_string_lossy()])
            .context(|| "mounting the scratch pool".to_owned())?;
        Ok(lab)
    }

    /// An xfs pool on a disk that can be made to hang.
    pub(crate) fn on_stalling_disk(binary: &Path, size_mib: u32) -> Result<(Self, Stalling)> {
        let lab = Self::without_pool(binary)?;
        let (image, slow) = (lab.path("pool.img"), lab.slow());
        std::fs::File::create(&image)?.set_len(u64::from(size_mib) << 20)?;
        kernel::program("mkfs.xfs", &["-q", "-m", "reflink=1", &image.to_string_lossy()])?;
        let disk = Stalling::start(&slow, &image)?;
        let source = slow.join("disk");
        kernel::program("mount", &["-o", "loop", &source.to_string_lossy(), &lab.path("pool").to_string_lossy()])
            .context(|| "mounting the pool on a disk that can hang".to_owned())?;
        Ok((lab, disk))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the pool of this lab is.
    pub(crate) fn pool(&self) -> PathBuf {
        self.path("pool")
    }

    /// Where the disk is that can be made to hang.
    fn slow(&self) -> PathBuf {
        self.path("slow")
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// Mounts of volumes: all below the lab but those that the pool stands on.
    pub(crate) fn mounts(&self) -> Result<Vec<kernel::Mount>> {
        let mut mounts = kernel::mounts_below(&self.directory)?;
        let own = [self.pool(), self.slow()];
        mounts.retain(|mount| !own.contains(&mount.path));
        Ok(mounts)
    }

    /// Loop devices of volumes.
    pub(crate) fn loops(&self) -> Result<Vec<kernel::Loop>> {
        kernel::loops_below(&self.pool())
    }

    /// After every volume was given back: no mount, no loop, no image, no record and no journal entry is left.
    pub(crate) fn ensure_clean(&self) -> Result<()> {
        let mounts = self.mounts()?;
        ensure(mounts.is_empty(), || format!("mounts are left: {mounts:?}"))?;
        let loops = self.loops()?;
        ensure(loops.is_empty(), || format!("loop devices are left: {loops:?}"))?;
        let mut left = Vec::new();
        for part in ["pool/volumes", "pool/snapshots", "pool/trash"] {
            // The ballast is the pool's own: what it lets go of when it is full.
            let own = |path: &PathBuf| path.file_name().is_some_and(|name| name == ".ballast");
            left.extend(entries(&self.path(part)).into_iter().filter(|path| !own(path)));
        }
        ensure(left.is_empty(), || format!("the pool still has {left:?}"))
    }
}

/// Where the logs of all servers are kept, when it is set.
const LOGS: &str = "E2E_LOGS";

impl Lab {
    /// Copies what the servers of this lab said, for whoever looks into a failure.
    fn keep_logs(&self) -> std::io::Result<()> {
        let Some(logs) = std::env::var_os(LOGS) else { return Ok(()) };
        let number = self.directory.to_string_lossy().rsplit('-').next().map(str::to_owned).unwrap_or_default();
        let kept = Path::new(&logs).join(format!("lab-{number}"));
        std::fs::create_dir_all(&kept)?;
        for path in entries(&self.path("run")).iter().filter(|path| path.extension().is_some_and(|e| e == "log")) {
            std::fs::copy(path, kept.join(path.file_name().unwrap_or_default()))?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.keep_logs();
        kernel::clear(&self.directory, &self.pool());
        // Never through a mount that could not be removed.
        if kernel::mounts_below(&self.directory).is_ok_and(|mounts| mounts.is_empty()) {
            // A node that was fenced has sealed the directories below its mounts.
            let _ = kernel::program("chattr", &["-R", "-f", "-i", &self.directory.to_string_lossy()]);
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// The names in a directory; none when it is not there.
pub(crate) fn entries(directory: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
