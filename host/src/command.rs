//! The one function that starts programs. Each has a deadline, a clean environment, and an error that says what ran,
//! how it ended and what it printed.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use volume::{Error, ErrorKind, Result};

/// Where programs are looked for, whatever PATH the driver was started with.
const DIRECTORIES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Kept of each of stdout and stderr; what comes after is read and dropped, so the program never blocks on a full pipe.
const MAX_OUTPUT_BYTES: usize = 64 << 10;
/// How long a killed program may take to end. One that sits in an uninterruptible call is left to a thread.
const REAP: Duration = Duration::from_secs(2);

/// A program to run, for [`run`].
#[derive(Debug, Clone)]
pub struct Command {
    program: &'static str,
    arguments: Vec<Argument>,
    deadline: Duration,
    accepted: Vec<i32>,
}

#[derive(Clone)]
enum Argument {
    Plain(OsString),
    Secret(OsString),
}

/// What a program that ended as expected said. Output is cut at 64 KiB and made valid UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub exit_code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program to its end, without stdin, in a process group of its own that dies with the driver.
///
/// `Unsupported` when it is not installed (names the Debian package), `Timeout` when the deadline passed (its process
/// group is killed), `Internal` for an exit status that is not accepted or a signal, with the command line and stderr.
pub fn run(command: &Command) -> Result<Output> {
    let failed = |what: &str, error: std::io::Error| Error::io(format!("{what} `{command}`"), error);
    let mut child = spawn(command)?;
    let mut pipes = [Pipe::new(child.stdout.take()), Pipe::new(child.stderr.take())];
    let (pid_fd, ended) = match pid_fd(&child) {
        Ok(fd) => {
            let ended = watch(&mut pipes, &fd, command.deadline);
            (Some(fd), ended)
        }
        Err(error) => (None, Err(error)),
    };
    // The leader is not reaped yet, so its process group id cannot belong to anybody else. Children that it left
    // behind go too.
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    if !matches!(ended, Ok(true)) {
        reap(child, pid_fd);
        ended.map_err(|e| failed("watch", e))?;
        let [_, stderr] = pipes.map(Pipe::into_text);
        return Err(Error::new(
            ErrorKind::Timeout,
            format!("`{command}` did not end in {:?} and was killed{}", command.deadline, said(&stderr)),
        ));
    }
    let status = child.wait().map_err(|e| failed("reap", e))?;
    let [stdout, stderr] = pipes.map(Pipe::into_text);
    match status.code() {
        Some(exit_code) if command.accepted.contains(&exit_code) => Ok(Output { exit_code, stdout, stderr }),
        _ => Err(Error::internal(format!("`{command}` {}{}", how(status), said(&stderr)))),
    }
}

impl Command {
    /// `program` is a name without a slash, looked for in the usual directories.
    pub fn new(program: &'static str, deadline: Duration) -> Self {
        Self { program, arguments: Vec::new(), deadline, accepted: vec![0] }
    }

    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(Argument::Plain(argument.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn args<A: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = A>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// An argument that no error or log may show. Other processes can still read it in /proc, so this is for what an
    /// outsider should not learn from a log, never for keys and passwords.
    #[must_use]
    pub fn secret_arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(Argument::Secret(argument.as_ref().to_owned()));
        self
    }

    /// Exit codes besides 0 that are answers and not failures.
    #[must_use]
    pub fn accept(mut self, exit_codes: &[i32]) -> Self {
        self.accepted.extend_from_slice(exit_codes);
        self
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program)?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {argument:?}"))
    }
}

impl fmt::Debug for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(_) => f.write_str("[redacted]"),
            Self::Plain(text) => {
                let text = text.to_string_lossy();
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@".contains(c);
                if !text.is_empty() && text.chars().all(is_plain) { f.write_str(&text) } else { write!(f, "{text:?}") }
            }
        }
    }
}

fn spawn(command: &Command) -> Result<Child> {
    let program = find(command.program)?;
    #[expect(clippy::disallowed_methods, reason = "this is the one place that starts programs")]
    let mut child = std::process::Command::new(program);
    child
        .args(command.arguments.iter().map(|argument| match argument {
            Argument::Plain(text) | Argument::Secret(text) => text,
        }))
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .env("LANG", "C")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec and makes two system calls, both async-signal-safe; it allocates
    // nothing.
    unsafe {
        child.pre_exec(move || {
            // prctl(2): sent when the *thread* that forked ends, and that one is in `run` until the program ended.
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            if libc::getppid() as u32 != parent {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    child.spawn().map_err(|e| Error::io(format!("start `{command}`"), e))
}

fn find(program: &'static str) -> Result<PathBuf> {
    let found = DIRECTORIES.iter().map(|directory| Path::new(directory).join(program)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let hint = match debian_package(program) {
            Some(package) => format!("; install it (Debian: apt-get install {package})"),
            None => String::new(),
        };
        Error::new(ErrorKind::Unsupported, format!("the program {program} is not in {}{hint}", DIRECTORIES.join(":")))
    })
}

fn debian_package(program: &str) -> Option<&'static str> {
    match program {
        "mkfs.ext4" | "mke2fs" | "e2fsck" | "resize2fs" | "tune2fs" | "dumpe2fs" | "debugfs" => Some("e2fsprogs"),
        "mkfs.xfs" | "xfs_admin" | "xfs_repair" | "xfs_growfs" | "xfs_db" | "xfs_io" => Some("xfsprogs"),
        "mkfs.btrfs" | "btrfs" | "btrfstune" => Some("btrfs-progs"),
        _ => None,
    }
}

/// pidfd_open(2): readable once the process has ended, whoever waits for it.
fn pid_fd(child: &Child) -> std::io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked and a new descriptor that nothing else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, child.id(), 0);
        if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

/// Reads until the program has ended; false when the deadline came first. What it wrote is in the pipes when it ends,
/// and processes that it left behind with the pipes open are not waited for.
fn watch(pipes: &mut [Pipe; 2], pid_fd: &OwnedFd, deadline: Duration) -> std::io::Result<bool> {
    let started = Instant::now();
    while let Some(left) = deadline.checked_sub(started.elapsed()) {
        let fds = std::iter::once(pid_fd.as_raw_fd()).chain(pipes.iter().filter_map(Pipe::fd));
        let ended = poll_in(fds, left)?;
        for pipe in pipes.iter_mut() {
            pipe.drain()?;
        }
        if ended {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits a little for a killed child, then leaves it to a thread: a process in an uninterruptible call cannot be
/// waited for without hanging with it.
fn reap(mut child: Child, pid_fd: Option<OwnedFd>) {
    if pid_fd.is_some_and(|fd| poll_in([fd.as_raw_fd()], REAP).unwrap_or(false)) {
        let _ = child.wait();
    } else {
        std::thread::spawn(move || child.wait());
    }
}

/// poll(2) for reading; whether the first descriptor is ready.
fn poll_in(fds: impl IntoIterator<Item = RawFd>, timeout: Duration) -> std::io::Result<bool> {
    let mut fds: Vec<_> = fds.into_iter().map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // Rounded up, so that the last turns do not spin; capped, because the argument is an int.
    let timeout_ms = timeout.as_millis().min(60_000) as i32 + 1;
    // SAFETY: the pointer and the length are those of one vector that outlives the call.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    match ready {
        0.. => Ok(fds.first().is_some_and(|fd| fd.revents != 0)),
        _ => match std::io::Error::last_os_error() {
            interrupted if interrupted.kind() == std::io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

/// The driver's end of a pipe, read without blocking.
struct Pipe {
    file: Option<std::fs::File>,
    kept: Vec<u8>,
}

impl Pipe {
    fn new(end: Option<impl Into<OwnedFd>>) -> Self {
        let file = end.map(|end| std::fs::File::from(end.into()));
        if let Some(file) = &file {
            // SAFETY: a descriptor that we own and no pointers. Failure leaves a blocking pipe, which poll guards.
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        }
        Self { file, kept: Vec::new() }
    }

    fn fd(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn drain(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 8 << 10];
        while let Some(file) = &mut self.file {
            match file.read(&mut buffer) {
                Ok(0) => self.file = None,
                Ok(count) => {
                    let room = MAX_OUTPUT_BYTES.saturating_sub(self.kept.len());
                    self.kept.extend(buffer.iter().take(count.min(room)));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn into_text(self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

fn said(stderr: &str) -> String {
    if stderr.trim().is_empty() { String::new() } else { format!(": {}", stderr.trim()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        Command::new("sh", Duration::from_secs(10)).arg("-c").arg(script)
    }

    #[test]
    fn output_and_environment() {
        let output = run(&sh("echo $LANG$HOME; echo oops >&2; cat; exit 3").accept(&[3])).unwrap();
        assert_eq!(output, Output { exit_code: 3, stdout: "C\n".into(), stderr: "oops\n".into() });
    }

    #[test]
    fn failures_say_what_ran_and_hide_secrets() {
        let error = run(&sh("echo no such volume >&2; exit 4").secret_arg("hunter2")).unwrap_err().chain();
        assert!(error.contains("ended with status 4: no such volume") && error.contains("[redacted]"), "{error}");
        assert!(!error.contains("hunter2") && !format!("{:?}", sh("").secret_arg("hunter2")).contains("hunter2"));
        assert!(run(&sh("kill -9 $$")).unwrap_err().chain().contains("signal 9"));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let missing = Command { program: "no-such-program", ..sh("") };
        assert_eq!(run(&missing).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(debian_package("btrfstune"), Some("btrfs-progs"));
    }

    #[test]
    fn the_deadline_ends_the_whole_group() {
        let directory = tempfile::tempdir().unwrap();
        let alive = directory.path().join("alive");
        let script = format!("(sleep 1; touch {}) & echo waiting >&2; sleep 30", alive.display());
        let started = Instant::now();
        let error = run(&Command { deadline: Duration::from_millis(200), ..sh(&script) }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.chain().contains("waiting") && started.elapsed() < Duration::from_secs(5), "{}", error.chain());
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!alive.exists(), "a grandchild went on after the deadline");
    }

    #[test]
    fn floods_are_cut_and_do_not_block() {
        let output = run(&sh("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2")).unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES));
    }

    #[test]
    fn what_a_daemon_holds_open_is_not_waited_for() {
        let started = Instant::now();
        assert_eq!(run(&sh("setsid sleep 5 & echo started")).unwrap().stdout, "started\n");
        assert!(started.elapsed() < Duration::from_secs(4));
    }
}
