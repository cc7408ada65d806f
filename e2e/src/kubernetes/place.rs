//! Where the lab is on disk, and what of it outlives its processes.

use super::NODES;
use crate::failure::{Context, Result, ensure};
use crate::lab::entries;
use crate::lab::kernel::program;
use nix::sys::stat::{major, minor};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// `<temporary directory>/hawser-kubernetes-<process id>`, and cgroups of that name.
pub(super) struct Place {
    root: PathBuf,
    logs: PathBuf,
    pools: Pools,
    attaches_by_controller: bool,
    has_pages: bool,
}

/// Where volumes are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pools {
    /// In one pool that all nodes see.
    Shared,
    /// In a pool of each node's own. Each has its own file system: pools on one would take each other's loop devices for
    /// theirs.
    Local,
}

/// Locked by the process outside as long as it lives.
const LOCK: &str = "lock";
const PREFIX: &str = "hawser-kubernetes-";
const CGROUPS: &str = "/sys/fs/cgroup";
const FREEZER: &str = "/sys/fs/cgroup/freezer";
const CPU: &str = "/sys/fs/cgroup/cpu";
/// All of the lab weighs as much as so many ordinary processes of the machine, for 1024 each; with the default it would
/// weigh as much as one.
const CPU_SHARES: &str = "32768";
/// Each node has 1024 of the lab's. Elsewhere a control plane has processors of its own, which busy nodes cannot take.
const CONTROL_PLANE_SHARES: &str = "8192";
const CONTROL_PLANE: &str = "control-plane";
/// The xfs for what the nodes keep, where images are cloned for each of them. All file systems are in sparse files.
const NODES_FILE_SYSTEM: (&str, u64) = ("nodes", 32 << 30);
const POOL: &str = "pool";
const SHARED_POOL_BYTES: u64 = 16 << 30;
/// Of different sizes, so that it is seen whose capacity is told.
const LOCAL_POOL_BYTES: [u64; NODES.len()] = [2 << 30, 4 << 30, 8 << 30];
const IMAGE_EXTENSION: &str = "img";
/// How long the kernel may take to let go of what ended processes had.
const RELEASE_LIMIT: Duration = Duration::from_secs(60);
/// What nobody let go of since an earlier run is not waited for again.
const LEFT_BEHIND_LIMIT: Duration = Duration::from_secs(2);

impl Place {
    pub(super) fn create(logs: &Path, pools: Pools) -> Result<(Self, File)> {
        let root = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&root).context(|| root.display().to_string())?;
        let lock = File::create(root.join(LOCK))?;
        lock.lock()?;
        match std::fs::remove_dir_all(logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => std::fs::create_dir_all(logs)?,
        }
        Ok((
            Self { root, logs: std::path::absolute(logs)?, pools, attaches_by_controller: false, has_pages: false },
            lock,
        ))
    }

    pub(super) fn inside(root: PathBuf, logs: &Path, pools: Pools) -> Result<Self> {
        Ok(Self { root, logs: std::path::absolute(logs)?, pools, attaches_by_controller: false, has_pages: false })
    }

    /// With VolumeAttachments: else each node takes and gives back the grants of its volumes itself.
    pub(super) fn attach_by_controller(self, attaches_by_controller: bool) -> Self {
        Self { attaches_by_controller, ..self }
    }

    /// hawser's metrics on a port of its pods.
    pub(super) fn with_pages(self, has_pages: bool) -> Self {
        Self { has_pages, ..self }
    }

    pub(super) fn has_pages(&self) -> bool {
        self.has_pages
    }

    pub(super) fn attaches_by_controller(&self) -> bool {
        self.attaches_by_controller
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn logs(&self) -> &Path {
        &self.logs
    }

    pub(super) fn pools(&self) -> Pools {
        self.pools
    }

    /// The pool that a node sees.
    pub(super) fn pool_of(&self, node: &str) -> PathBuf {
        match self.pools {
            Pools::Shared => self.root.join(POOL),
            Pools::Local => self.root.join(format!("{POOL}-{node}")),
        }
    }

    /// All of them, each once.
    pub(super) fn pool_directories(&self) -> Vec<PathBuf> {
        let mut directories: Vec<_> = NODES.iter().map(|node| self.pool_of(node)).collect();
        directories.dedup();
        directories
    }

    fn file_systems(&self) -> Vec<(PathBuf, u64)> {
        let bytes = match self.pools {
            Pools::Shared => [SHARED_POOL_BYTES; NODES.len()],
            Pools::Local => LOCAL_POOL_BYTES,
        };
        let pools = self.pool_directories().into_iter().zip(bytes);
        let (nodes, bytes) = NODES_FILE_SYSTEM;
        std::iter::once((self.root.join(nodes), bytes)).chain(pools).collect()
    }

    /// Where a node keeps its state, on a file system that clones files.
    pub(super) fn node(&self, name: &str) -> PathBuf {
        self.root.join("nodes").join(name)
    }

    /// A directory for small files, made now.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        let directory = self.root.join(name);
        std::fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// Before any node is started, so that all of them see the same file systems.
    pub(super) fn mount_file_systems(&self) -> Result<()> {
        for (directory, bytes) in self.file_systems() {
            std::fs::create_dir_all(&directory)?;
            let image = directory.with_extension(IMAGE_EXTENSION).to_string_lossy().into_owned();
            let mount_point = directory.to_string_lossy().into_owned();
            File::create(&image)?.set_len(bytes)?;
            program("mkfs.xfs", &["-q", "-m", "reflink=1", &image])?;
            program("mount", &["-o", "loop", &image, &mount_point]).context(|| format!("mounting {image}"))?;
        }
        Ok(())
    }

    /// Loop devices whose files are in a pool.
    pub(super) fn volume_loops(&self) -> Result<Vec<String>> {
        let devices = LoopDevice::all()?;
        let images: Vec<_> = self.pool_directories().iter().map(|pool| pool.with_extension(IMAGE_EXTENSION)).collect();
        let pools = devices.iter().filter(|device| images.iter().any(|image| Path::new(&device.file) == image));
        let pools: Vec<&str> = pools.map(|device| device.number.as_str()).collect();
        ensure(pools.len() == images.len(), || format!("of {images:?} only {} are mounted", pools.len()))?;
        let volumes = devices.iter().filter(|device| pools.contains(&device.file_on.as_str()));
        Ok(volumes.map(|device| device.name.clone()).collect())
    }

    /// A cgroup of this name in each hierarchy of version 1, with this machine's processors and memory; its path below
    /// each.
    pub(super) fn create_cgroup(&self, name: &str) -> Result<String> {
        let path = format!("{}/{name}", self.cgroup());
        for hierarchy in hierarchies()? {
            std::fs::create_dir_all(hierarchy.join(&path)).context(|| format!("the cgroup {path} of {hierarchy:?}"))?;
            let shares = hierarchy.join(self.cgroup()).join("cpu.shares");
            if shares.exists() {
                std::fs::write(shares, CPU_SHARES)?;
            }
            let mut below = hierarchy.clone();
            for part in Path::new(&path) {
                let parent = below.clone();
                below.push(part);
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    // Only the cpuset hierarchy has them.
                    if let Ok(value) = std::fs::read(parent.join(file)) {
                        std::fs::write(below.join(file), value)?;
                    }
                }
            }
        }
        Ok(format!("/{path}"))
    }

    /// Takes this process, and all that it starts from now on, to the cgroup of the control plane.
    pub(super) fn join_control_plane(&self) -> Result<()> {
        self.create_cgroup(CONTROL_PLANE)?;
        let cgroup = self.processors(CONTROL_PLANE);
        for (file, value) in [("cpu.shares", CONTROL_PLANE_SHARES), ("cgroup.procs", "0")] {
            let file = cgroup.join(file);
            std::fs::write(&file, value).context(|| file.display().to_string())?;
        }
        Ok(())
    }

    /// In the freezer's hierarchy, the cgroup that [`Place::create_cgroup`] made.
    pub(super) fn freezer(&self, name: &str) -> PathBuf {
        Path::new(FREEZER).join(self.cgroup()).join(name)
    }

    /// The same in the hierarchy of processor time.
    pub(super) fn processors(&self, name: &str) -> PathBuf {
        Path::new(CPU).join(self.cgroup()).join(name)
    }

    /// The same cgroup in every hierarchy, version 2 too, where runc makes some.
    pub(super) fn cgroups(&self, name: &str) -> Result<Vec<PathBuf>> {
        let hierarchies = std::fs::read_dir(CGROUPS)?.flatten().filter(|entry| !entry.path().is_symlink());
        Ok(hierarchies.map(|entry| entry.path().join(self.cgroup()).join(name)).collect())
    }

    /// What is frozen does not die.
    pub(super) fn thaw_all(&self) {
        for node in entries(&Path::new(FREEZER).join(self.cgroup())) {
            let _ = std::fs::write(node.join("freezer.state"), "THAWED");
        }
    }

    fn cgroup(&self) -> String {
        self.root.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// After all processes have ended: loop devices, cgroups and files.
    pub(super) fn clear(&self) -> Result<()> {
        self.clear_within(RELEASE_LIMIT)
    }

    fn clear_within(&self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        self.thaw_all();
        loop {
            let left = self.clear_once();
            match left {
                Ok(()) => break,
                Err(failure) if began.elapsed() > limit => {
                    return Err(failure).context(|| format!("cannot clear up after {}", self.root.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        std::fs::remove_dir_all(&self.root).context(|| self.root.display().to_string())
    }

    fn clear_once(&self) -> Result<()> {
        // All of them, whatever holds one. Those that are there: an earlier run may have had others.
        let images = entries(&self.root).into_iter();
        let images = images.filter(|path| path.extension().is_some_and(|extension| extension == IMAGE_EXTENSION));
        let detached: Vec<_> = images.map(|image| detach_all_on(&image)).collect();
        detached.into_iter().collect::<Result<()>>()?;
        let mounts = crate::lab::kernel::mounts_below(&self.root)?;
        ensure(mounts.is_empty(), || format!("mounts are left: {mounts:?}"))?;
        self.cgroups("")?.iter().try_for_each(|path| remove_cgroup(path))
    }
}

/// What earlier runs left that were killed before they could clear up.
pub(super) fn clear_left_behind() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for root in entries.flatten().map(|entry| entry.path()) {
        let is_place = root.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if !is_place {
            continue;
        }
        // A run that lives holds its lock.
        let Ok(lock) = File::open(root.join(LOCK)) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        let place =
            Place { root, logs: PathBuf::new(), pools: Pools::Shared, attaches_by_controller: false, has_pages: false };
        if let Err(failure) = place.clear_within(LEFT_BEHIND_LIMIT) {
            println!("of an earlier run: {failure}");
        }
    }
}

struct LoopDevice {
    name: String,
    /// Its number as a block device, and that of the file system that its file is on.
    number: String,
    file_on: String,
    file_inode: u64,
    file: String,
}

impl LoopDevice {
    fn all() -> Result<Vec<Self>> {
        let columns = "NAME,MAJ:MIN,BACK-MAJ:MIN,BACK-INO,BACK-FILE";
        let list = program("losetup", &["--list", "--noheadings", "--raw", "--output", columns])?;
        let devices = list.lines().filter_map(|line| {
            // Numbers are padded with spaces, which are written as \x20 here.
            let mut fields = line.split_whitespace().map(|field| field.replace("\\x20", ""));
            Some(Self {
                name: fields.next()?,
                number: fields.next()?,
                file_on: fields.next()?,
                file_inode: fields.next()?.parse().ok()?,
                file: fields.next()?,
            })
        });
        Ok(devices.collect())
    }
}

/// Detaches the loop devices whose files are on the file system in `image`; that of the image itself goes with its mount.
/// They are found by device numbers: their paths mean nothing once the namespace is gone in which the files were opened.
fn detach_all_on(image: &Path) -> Result<()> {
    let devices = LoopDevice::all()?;
    let Some(own) = devices.iter().find(|device| Path::new(&device.file) == image) else { return Ok(()) };
    for device in devices.iter().filter(|device| device.file_on == own.number) {
        // Kubelet holds on to a raw block device by a loop device on it.
        let node = std::fs::metadata(&device.name)?;
        let node = (format!("{}:{}", major(node.dev()), minor(node.dev())), node.ino());
        let is_above = |above: &&LoopDevice| above.file_on == node.0 && above.file_inode == node.1;
        for above in devices.iter().filter(is_above) {
            program("losetup", &["--detach", &above.name])?;
        }
        program("losetup", &["--detach", &device.name])?;
    }
    Err(format!("{} is still in use", image.display()).into())
}

fn hierarchies() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(CGROUPS).context(|| CGROUPS.to_owned())?.flatten() {
        // Links are other names of the same ones, and version 2 has a file that says what it can do.
        let path = entry.path();
        if !path.is_symlink() && path.join("cgroup.procs").exists() && !path.join("cgroup.controllers").exists() {
            found.push(path);
        }
    }
    ensure(!found.is_empty(), || {
        format!("there are no cgroups of version 1 in {CGROUPS}; the lab knows no others yet")
    })?;
    Ok(found)
}

/// Removes those below it.
pub(super) fn empty_cgroup(path: &Path) -> Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(path)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_cgroup(path: &Path) -> Result<()> {
    empty_cgroup(path)?;
    if !path.is_dir() {
        return Ok(());
    }
    std::fs::remove_dir(path).context(|| format!("the cgroup {}", path.display()))
}
