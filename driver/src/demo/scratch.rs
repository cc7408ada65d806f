//! The demo's directory: the pool, sockets, logs and the ledger; and how all of it goes away again.

use super::cluster::Processes;
use super::report::Report;
use crate::cli::DemoArgs;
use crate::config::Config;
use host::{Effects, Host, LinuxHost, LoopDevice};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use uuid::Uuid;
use volume::{Error, ErrorKind, Result, VolumeId};

/// Names the run; in every volume's name, so that runs side by side cannot meet.
pub struct Scratch {
    pub nonce: Uuid,
    pub processes: Processes,
    directory: PathBuf,
    host: LinuxHost,
    volumes: std::sync::Mutex<Vec<VolumeId>>,
}

impl Scratch {
    pub fn make(args: &DemoArgs) -> Result<Self> {
        let nonce = Uuid::new_v4();
        let parent = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let parent =
            parent.canonicalize().map_err(|error| Error::io(format!("no directory {}", parent.display()), error))?;
        let (short, ..) = nonce.as_fields();
        let directory = parent.join(format!("hawser-demo-{short:08x}"));
        let shown = directory.display().to_string();
        let failed = |error| Error::io(format!("cannot make {shown}"), error);
        std::fs::DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        let scratch = Self {
            nonce,
            processes: Processes::default(),
            host: LinuxHost::new(Effects::default()),
            volumes: std::sync::Mutex::default(),
            directory,
        };
        // A pool image is made only where the scratch directory's file system has no reflink.
        let image = if super::machine::can_make_xfs() { "image_bytes = \"4GiB\"\n" } else { "" };
        let config = format!(
            "# The configuration of the demo's processes.\nlog_level = \"info\"\n\n[[backend]]\nname = \"pool\"\ntype = \"pool\"\n\
             directory = {:?}\nscope = \"shared\"\n{image}",
            scratch.pool().display().to_string()
        );
        std::fs::write(scratch.config(), config).map_err(failed)?;
        Ok(scratch)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("hawser.toml")
    }

    pub fn load_config(&self) -> Result<Config> {
        Config::load(Some(&self.config()), [], Vec::new()).map_err(|error| Error::invalid(error.0))
    }

    pub fn pool(&self) -> PathBuf {
        self.path("pool")
    }

    /// A volume whose loop devices must be gone in the end.
    pub fn watch(&self, id: VolumeId) {
        self.volumes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(id);
    }

    /// The last lines that a process logged.
    pub fn end_of_log(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    /// The loop devices of the demo's volumes, by their labels.
    pub fn loops(&self) -> Result<Vec<LoopDevice>> {
        let volumes = self.volumes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let ours = |label: &str| {
            volumes.iter().any(|id| {
                let short = id.as_str().split_once('.').map_or("", |(_, short)| short);
                label.split_once('@').is_some_and(|(of, _)| of == short)
            })
        };
        Ok(self.host.loops()?.into_iter().filter(|device| ours(&device.label)).collect())
    }

    /// Ends every process, takes away every mount and loop, removes the directory, and makes sure of it.
    pub fn clean_up(&self, keep: bool, report: &mut Report) -> Result<()> {
        let processes = self.processes.end_all();
        // A namespace's mounts go a moment after its last process, and their loops can be detached only then.
        let problem = self.take_away_within(Duration::from_secs(15)).err();
        let mut left: Vec<String> = processes.iter().map(|pid| format!("process {pid}")).collect();
        left.extend(problem.map(|error| error.chain()));
        left.extend(self.loops()?.iter().map(|device| format!("loop device {}", device.path.display())));
        left.extend(self.mounts()?.iter().map(|at| format!("mount {}", at.display())));
        if left.is_empty() {
            let removed = if keep { self.remove_pool() } else { std::fs::remove_dir_all(&self.directory) };
            left.extend(removed.err().map(|error| format!("{}: {error}", self.directory.display())));
        }
        report.check("nothing is left behind: no process, no mount, no loop device, no file", left.is_empty());
        if keep {
            report.say(&format!("kept: {}", self.directory.display()));
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::FailedPrecondition, format!("left behind: {}", left.join(", "))))
    }

    /// Takes mounts and loops away, as soon as the kernel lets go of them.
    fn take_away_within(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            match self.take_away() {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                taken => return taken,
            }
        }
    }

    fn take_away(&self) -> Result<()> {
        for device in self.loops()? {
            self.host.detach_loop(&device)?;
        }
        for at in self.mounts()?.iter().rev() {
            let device = self.host.mounts()?.into_iter().rev().find(|mount| mount.mounted_at == *at).map(|m| m.device);
            self.host.unmount(at)?;
            if let Some(image) = self.host.loops()?.into_iter().find(|found| Some(found.number) == device) {
                self.host.detach_loop(&image)?;
            }
        }
        Ok(())
    }

    fn mounts(&self) -> Result<Vec<PathBuf>> {
        let mounts = self.host.mounts()?;
        Ok(mounts.into_iter().map(|m| m.mounted_at).filter(|at| at.starts_with(&self.directory)).collect())
    }

    /// Leaves the ledger and the logs.
    fn remove_pool(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(self.pool()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// For a panic on the way: after [`Scratch::clean_up`] there is nothing to do.
impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.processes.end_all();
            if self.take_away_within(Duration::from_secs(5)).is_ok() {
                let _ = std::fs::remove_dir_all(&self.directory);
            }
        }
    }
}
