//! The demo's processes: a controller, two nodes that each have their own mounts, and writers in a node's namespace.

use super::scratch::Scratch;
use crate::client::Client;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use volume::{Error, ErrorKind, Result};

/// Everything that was started, so that it can be ended whatever happens.
#[derive(Default)]
pub struct Processes {
    started: Mutex<Vec<Started>>,
}

struct Started {
    child: Child,
    group: Pid,
}

/// `hawser serve` in a process group of its own, answering on a socket.
pub struct Service {
    pub name: String,
    /// Also the id of its process group.
    pub pid: u32,
    pub client: Client,
}

impl Processes {
    /// Starts this binary with `arguments`, its stderr to `<name>.log`, in the group of `group` or in one of its own.
    fn start(&self, scratch: &Scratch, name: &str, arguments: &[String], group: Option<u32>) -> Result<u32> {
        let about = || format!("cannot start {name}");
        let log = File::options().create(true).append(true).open(scratch.path(&format!("{name}.log")));
        let log = log.map_err(|error| Error::io(about(), error))?;
        let out = log.try_clone().map_err(|error| Error::io(about(), error))?;
        let child = this_binary()
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(log)
            .process_group(group.map_or(0, raw))
            .spawn()
            .map_err(|error| Error::io(about(), error))?;
        let pid = child.id();
        let group = Pid::from_raw(raw(group.unwrap_or(pid)));
        self.lock().push(Started { child, group });
        Ok(pid)
    }

    /// A service, waited for until it is ready.
    pub async fn serve(&self, scratch: &Scratch, name: &str, mode: &[&str]) -> Result<Service> {
        let socket = scratch.path(&format!("{name}.sock"));
        let mut arguments = vec!["serve".to_owned(), "--config".to_owned(), scratch.config().display().to_string()];
        arguments.extend(mode.iter().map(|argument| (*argument).to_owned()));
        arguments.extend([
            format!("--die-with-parent={}", std::process::id()),
            format!("--endpoint=unix://{}", socket.display()),
            format!("--state-dir={}", scratch.path(&format!("{name}.state")).display()),
        ]);
        let pid = self.start(scratch, name, &arguments, None)?;
        let service = Service { name: name.to_owned(), pid, client: Client::new(&socket) };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !service.client.is_ready().await {
            let ended = self.has_ended(pid)?;
            if ended || Instant::now() > deadline {
                let what = if ended { "has ended" } else { "is not ready after 30 s" };
                let log = scratch.end_of_log(name);
                return Err(Error::new(ErrorKind::Unavailable, format!("{name} {what}; its log ends with: {log}")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(service)
    }

    /// A node service with mounts of its own.
    pub async fn serve_node(&self, scratch: &Scratch, id: &str) -> Result<Service> {
        self.serve(scratch, id, &["--mode=node", "--private-mounts", &format!("--node-id={id}")]).await
    }

    /// `hawser workload write` on the node, in its process group.
    pub fn write(&self, scratch: &Scratch, node: &Service, name: &str, mut arguments: Vec<String>) -> Result<u32> {
        arguments.splice(0..0, ["workload".to_owned(), "write".to_owned()]);
        arguments.push(format!("--die-with-parent={}", std::process::id()));
        arguments.push(format!("--mount-namespace-of={}", node.pid));
        self.start(scratch, name, &arguments, Some(node.pid))
    }

    /// `hawser workload verify` in the node's mount namespace: its findings.
    pub fn verify(node: u32, mut arguments: Vec<String>) -> Result<Value> {
        arguments.splice(0..0, ["workload", "verify", "--json"].map(str::to_owned));
        arguments.push(format!("--mount-namespace-of={node}"));
        let about = "cannot run the verifier";
        let ran = this_binary().args(arguments).stdin(Stdio::null()).output().map_err(|e| Error::io(about, e))?;
        serde_json::from_slice(&ran.stdout).map_err(|_| {
            Error::new(ErrorKind::Internal, format!("{about}: {}", String::from_utf8_lossy(&ran.stderr).trim()))
        })
    }

    /// Signals the process and all of its group.
    pub fn signal(&self, group: u32, signal: Signal) -> Result<()> {
        killpg(Pid::from_raw(raw(group)), signal)
            .map_err(|errno| Error::io(format!("cannot signal process group {group}"), errno.into()))
    }

    /// Whether a process that was started has ended; it is reaped.
    pub fn has_ended(&self, pid: u32) -> Result<bool> {
        let mut started = self.lock();
        let Some(found) = started.iter_mut().find(|found| found.child.id() == pid) else { return Ok(true) };
        let status =
            found.child.try_wait().map_err(|error| Error::io(format!("cannot wait for process {pid}"), error))?;
        Ok(status.is_some())
    }

    /// Kills a group and waits until every process of it is gone.
    pub fn end(&self, group: u32) {
        let group = Pid::from_raw(raw(group));
        for found in self.lock().iter_mut().filter(|found| found.group == group) {
            // Signalled one by one while unreaped: an id that the kernel has given to somebody else is never hit.
            let _ = found.child.kill();
            let _ = found.child.wait();
        }
    }

    /// Kills one process.
    pub fn end_one(&self, pid: u32) {
        for found in self.lock().iter_mut().filter(|found| found.child.id() == pid) {
            let _ = found.child.kill();
            let _ = found.child.wait();
        }
    }

    /// As [`Processes::end`], for everything; those that would not go within some seconds.
    pub fn end_all(&self) -> Vec<u32> {
        let mut started = self.lock();
        for found in started.iter_mut() {
            let _ = found.child.kill();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut left = Vec::new();
        for found in started.iter_mut() {
            while !matches!(found.child.try_wait(), Ok(Some(_))) {
                if Instant::now() > deadline {
                    left.push(found.child.id());
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        started.clear();
        left
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Started>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This binary, without what the caller's environment would configure.
#[expect(
    clippy::disallowed_methods,
    reason = "the demo's nodes are processes of this binary that it signals and reaps"
)]
fn this_binary() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")));
    for (name, _) in std::env::vars_os() {
        if name == "CSI_ENDPOINT" || name.to_string_lossy().starts_with("HAWSER_") {
            command.env_remove(name);
        }
    }
    command
}

fn raw(pid: u32) -> i32 {
    i32::try_from(pid).unwrap_or(i32::MAX)
}
