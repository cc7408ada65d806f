//! The binary under test: its server, and its command line.

use super::Lab;
use crate::client::Client;
use crate::failure::{Context, Failure, Result, ensure};
use std::fs::OpenOptions;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const START_DEADLINE: Duration = Duration::from_secs(20);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// How to start a server. Everything is set through the environment; settings of the caller's are dropped.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) node: String,
    pub(crate) profile: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) backend: &'static str,
    /// Runs as this user and group, from the copy that [`Lab::give_to`] made.
    pub(crate) uid: Option<u32>,
    /// For `HAWSER_TEST_EFFECT`.
    pub(crate) effect: Option<String>,
    /// More settings, as `HAWSER_*` variables.
    pub(crate) settings: Vec<(&'static str, &'static str)>,
}

/// A running `hawser serve`. Killed when dropped.
pub(crate) struct Hawser {
    child: Child,
    pub(crate) client: Client,
    log: PathBuf,
}

impl Options {
    pub(crate) fn node(name: &str) -> Self {
        Self {
            node: name.to_owned(),
            profile: "kubernetes",
            mode: "all",
            backend: "pool",
            uid: None,
            effect: None,
            settings: Vec::new(),
        }
    }

    pub(crate) fn effect(mut self, effect: impl Into<String>) -> Self {
        self.effect = Some(effect.into());
        self
    }

    pub(crate) fn set(mut self, variable: &'static str, value: &'static str) -> Self {
        self.settings.push((variable, value));
        self
    }
}

impl Lab {
    /// Starts a server and waits until it answers.
    pub(crate) fn start(&self, options: &Options) -> Result<Hawser> {
        let mut hawser = self.spawn(options)?;
        hawser.wait_ready()?;
        Ok(hawser)
    }

    /// Starts a server that may not get as far as answering.
    pub(crate) fn spawn(&self, options: &Options) -> Result<Hawser> {
        self.spawn_command(options, &["serve"])
    }

    /// Starts any command without waiting for anything.
    pub(crate) fn spawn_command(&self, options: &Options, arguments: &[&str]) -> Result<Hawser> {
        let socket = self.socket(options);
        let log = self.path("run").join(format!("{}.log", options.node));
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = self.command(options);
        command.args(arguments).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        if let Some(effect) = &options.effect {
            command.env("HAWSER_TEST_EFFECT", effect);
        }
        let child = command.spawn().context(|| format!("cannot start {}", self.binary().display()))?;
        Ok(Hawser { child, client: Client::new(&socket), log })
    }

    /// Makes the lab's directories `uid`'s, and copies the binary under test and `program` to where that user can run
    /// them; the copy of `program`.
    pub(crate) fn give_to(&self, uid: u32, program: &Path) -> Result<PathBuf> {
        for part in ["run", "staging", "published"] {
            chown(self.path(part), Some(uid), Some(uid))?;
        }
        for file in [self.binary(), program] {
            std::fs::copy(file, self.copy_of(file))?;
        }
        Ok(self.copy_of(program))
    }

    fn copy_of(&self, file: &Path) -> PathBuf {
        self.path("pool").join(file.file_name().unwrap_or_default())
    }

    pub(crate) fn socket(&self, options: &Options) -> PathBuf {
        self.path("run").join(format!("{}.sock", options.node))
    }

    /// Runs one command of the command line to its end; what it printed, or how it failed.
    pub(crate) fn run(&self, options: &Options, arguments: &[&str]) -> Result<String> {
        let output = self.command(options).args(arguments).stdin(Stdio::null()).output()?;
        ensure(output.status.success(), || {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            format!("hawser {}: {}: {}", arguments.join(" "), output.status, stderr.trim())
        })?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The binary with its settings and without a subcommand.
    pub(crate) fn command(&self, options: &Options) -> Command {
        let mut command = Command::new(match options.uid {
            Some(_) => self.copy_of(self.binary()),
            None => self.binary().to_owned(),
        });
        if let Some(uid) = options.uid {
            command.uid(uid).gid(uid);
        }
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HAWSER_")) {
            command.env_remove(name);
        }
        let state = self.path("run").join(format!("{}.state", options.node));
        command
            .env("CSI_ENDPOINT", format!("unix://{}", self.socket(options).display()))
            .env("HAWSER_NODE_ID", &options.node)
            .env("HAWSER_PROFILE", options.profile)
            .env("HAWSER_MODE", options.mode)
            .env("HAWSER_STATE_DIR", state)
            .env("HAWSER_LOG_LEVEL", "info")
            .env("HAWSER_BACKEND_TYPE", options.backend);
        if options.backend == "pool" {
            command.env("HAWSER_BACKEND_DIRECTORY", self.pool()).env("HAWSER_BACKEND_SCOPE", "shared");
        }
        command.envs(options.settings.iter().copied());
        command
    }
}

impl Hawser {
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        let end = Instant::now() + START_DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("hawser ended while starting ({status}): {}", self.last_lines()).into());
            }
            match self.client.probe() {
                Ok(true) => return Ok(()),
                Ok(false) | Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                Ok(false) => return Err(Failure::from("hawser did not become ready")),
                Err(status) => {
                    return Err(format!("hawser did not answer: {}: {}", status.message(), self.last_lines()).into());
                }
            }
        }
    }

    /// As an orchestrator stops it.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal("TERM")?;
        let status = self.wait(STOP_DEADLINE)?.ok_or("hawser did not stop on SIGTERM")?;
        ensure(status.success(), || format!("hawser stopped with {status}: {}", self.last_lines()))
    }

    /// The exit, when it comes within `patience`.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() > end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn threads(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/task", self.child.id()))?.count())
    }

    /// SIGKILL, and waits until it has ended.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a signal has stopped the process; `false` when it ended or went on for longer than `patience`.
    pub(crate) fn wait_stopped(&mut self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            if self.is_stopped() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// Whether the process is stopped by a signal (proc_pid_stat(5), field 3).
    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    }

    pub(crate) fn freeze(&self) -> Result<()> {
        self.signal("STOP")
    }

    pub(crate) fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        super::kernel::program("kill", &["-s", name, &self.child.id().to_string()]).map(drop)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it said last, for the report of a failure.
    pub(crate) fn last_lines(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }
}

impl Drop for Hawser {
    fn drop(&mut self) {
        // A stopped process dies of SIGKILL as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
