//! `hawser serve` from outside, on the backend in memory: readiness, pages, sockets and a graceful stop.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test, and it runs the binary")]

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(dir.path(), arguments);
        let server = Self { child, dir };
        server.wait(|server| server.get("/readyz").is_some_and(|page| page.starts_with("HTTP/1.1 200")));
        server.wait(|server| server.path("csi.sock").exists());
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn wait(&self, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < deadline, "log: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    fn get(&self, page: &str) -> Option<String> {
        let mut connection = UnixStream::connect(self.path("http.sock")).ok()?;
        write!(connection, "GET {page} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        connection.read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, arguments: &[&str]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let at = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HAWSER_") || name == "CSI_ENDPOINT") {
        command.env_remove(name);
    }
    command
        .args(["serve", "--set", "backend.type=memory", "--node-id", "n1"])
        .args(["--endpoint", &format!("unix://{}", at("csi.sock")), "--state-dir", &at("state")])
        .args(["--metrics-listen", &format!("unix://{}", at("http.sock"))])
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

#[test]
fn pages_tell_of_the_process_and_its_storage() {
    let server = Server::start(&[]);
    assert!(server.get("/healthz").unwrap().ends_with("ok\n"));
    let metrics = server.get("/metrics").unwrap();
    for line in
        ["hawser_storage_observed 1", "hawser_nodes{backend=\"pool\",state=\"live\"} 1", "hawser_rpcs_in_flight 0"]
    {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"));
    assert!(server.get("/").unwrap().starts_with("HTTP/1.1 404"));
}

#[test]
fn it_stops_when_asked_and_takes_its_sockets_along() {
    let registry = tempfile::tempdir().unwrap();
    let mut server = Server::start(&["--kubelet-registration-dir", &registry.path().display().to_string()]);
    let socket = std::fs::metadata(server.path("csi.sock")).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let registration = registry.path().join("csi.hawser.dev-reg.sock");
    server.wait(|_| registration.exists());
    assert_eq!(server.terminate(), Some(0), "{}", server.log());
    for gone in [server.path("csi.sock"), server.path("http.sock"), registration] {
        assert!(!gone.exists(), "{}", gone.display());
    }
}

#[test]
fn a_second_driver_never_takes_a_living_ones_socket_but_replaces_a_dead_ones() {
    let mut server = Server::start(&[]);
    let mut second = spawn(server.dir.path(), &["--metrics-listen", "off"]);
    assert_eq!(second.wait().unwrap().code(), Some(1));
    assert!(server.log().contains("csi.sock"), "{}", server.log());
    assert!(server.get("/readyz").unwrap().starts_with("HTTP/1.1 200"));
    // A crash leaves the socket behind.
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert!(server.path("csi.sock").exists());
    server.child = spawn(server.dir.path(), &[]);
    server.wait(|server| server.get("/readyz").is_some_and(|page| page.starts_with("HTTP/1.1 200")));
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_wrong_endpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn(dir.path(), &["--endpoint", "tcp://0.0.0.0:1"]);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(std::fs::read_to_string(dir.path().join("log")).unwrap().contains("unix socket"));
}

#[test]
fn logs_as_json_are_one_object_a_line() {
    let mut server = Server::start(&["--log-format", "json", "--log-level", "debug"]);
    server.terminate();
    let log = server.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}
