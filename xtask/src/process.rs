//! Starts programs: their output goes line by line into a step's log and to whoever counts it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Writes `target/xtask/<step>.log`.
pub(crate) struct Log {
    pub(crate) path: PathBuf,
    file: File,
}

impl Log {
    pub(crate) fn create(directory: &Path, step: &str) -> Result<Self, String> {
        let path = directory.join(format!("{step}.log"));
        let file = std::fs::create_dir_all(directory).and_then(|()| File::create(&path));
        match file {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(format!("cannot write {}: {error}", path.display())),
        }
    }

    pub(crate) fn line(&mut self, line: &str) {
        // A full disk will show in the step itself; losing a log line is no reason to stop it.
        let _ = writeln!(self.file, "{line}");
    }
}

/// Runs to the end or to the deadline, when the whole process tree is killed. `Err` says how it failed.
pub(crate) fn run(
    command: &mut Command,
    deadline: Duration,
    log: &mut Log,
    on_line: &mut dyn FnMut(&str),
) -> Result<(), String> {
    log.line(&format!("+ {}", shown(command)));
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
    let (sender, lines) = channel();
    if let Some(stdout) = child.stdout.take() {
        read_lines(stdout, sender.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        read_lines(stderr, sender);
    }
    let end = Instant::now() + deadline;
    let mut has_time = true;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                log.line(&line);
                on_line(&line);
            }
            Err(RecvTimeoutError::Timeout) => {
                kill_tree(&mut child);
                has_time = false;
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().map_err(|error| format!("cannot wait for {name}: {error}"))?;
    if !has_time {
        Err(format!("{name} did not end within {} s and was killed", deadline.as_secs()))
    } else if status.success() {
        Ok(())
    } else {
        Err(format!("{name}: {status}"))
    }
}

/// The standard output of a short program, or why there is none.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let name = shown(command);
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("cannot start {name}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Whether a program of this name is in PATH.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // sbin is missing in many users' PATH, and mkfs lives there.
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).any(|directory| directory.join(program).is_file())
}

fn read_lines(stream: impl Read + Send + 'static, sender: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { break };
            if sender.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                break;
            }
        }
    });
}

/// Children first learn nothing of it: each process of the tree is killed by its id, the root first, so that none is
/// started anew.
fn kill_tree(child: &mut Child) {
    let mut tree = vec![child.id()];
    let parents = parents();
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    let ids: Vec<String> = tree.iter().map(u32::to_string).collect();
    let _ = Command::new("kill").arg("-KILL").args(ids).stderr(Stdio::null()).status();
    let _ = child.kill();
}

/// Every process with its parent (proc_pid_stat(5), field 4).
fn parents() -> Vec<(u32, u32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, of(pid)?))).collect()
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_streams_the_exit_and_the_deadline() {
        let directory = std::env::temp_dir().join(format!("xtask-process-{}", std::process::id()));
        let mut log = Log::create(&directory, "sh").unwrap();
        let mut lines = Vec::new();
        let mut sh = Command::new("sh");
        sh.args(["-c", "echo out; echo err >&2; exit 3"]);
        let ended = run(&mut sh, Duration::from_secs(20), &mut log, &mut |line| lines.push(line.to_owned()));
        lines.sort();
        assert_eq!(lines, ["err", "out"]);
        assert!(ended.unwrap_err().contains("exit status: 3"));

        let started = Instant::now();
        let mut sleeper = Command::new("sh");
        sleeper.args(["-c", "sleep 60 & wait"]);
        let ended = run(&mut sleeper, Duration::from_millis(300), &mut log, &mut |_| {});
        assert!(ended.unwrap_err().contains("was killed"));
        assert!(started.elapsed() < Duration::from_secs(30));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
