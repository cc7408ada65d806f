//! `hawser bench` against `hawser serve` on the backend in memory: counts match, nothing is left, whatever happens.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test, and it runs the binary")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let mut command = hawser();
        command
            .args(["serve", "--set", "backend.type=memory", "--node-id", "n1", "--metrics-listen", "off"])
            .args(["--endpoint", &at("csi.sock"), "--state-dir", &at("state")])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap());
        let server = Self { child: command.spawn().unwrap(), dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(server.path("csi.sock")).is_err() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// With directories of this test's.
    fn bench_command(&self, arguments: &[&str]) -> Command {
        let mut command = hawser();
        command.args(["bench", "--endpoint", &format!("unix://{}", self.path("csi.sock").display())]);
        command.args(["--staging-dir", &self.path("staging").display().to_string()]);
        command.args(["--target-dir", &self.path("published").display().to_string()]);
        command.args(arguments);
        command
    }

    fn bench(&self, arguments: &[&str]) -> (Output, Value) {
        let output = self.bench_command(&[&["--json"], arguments].concat()).output().unwrap();
        let figures = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output, figures)
    }

    /// Volumes that the driver has, as it lists them itself.
    fn volumes(&self) -> usize {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let uri = format!("unix://{}", self.path("csi.sock").display());
            let channel = tonic::transport::Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
            let mut controller = csi_proto::csi::controller_client::ControllerClient::new(channel);
            let answer = controller.list_volumes(csi_proto::csi::ListVolumesRequest::default()).await.unwrap();
            answer.into_inner().entries.len()
        })
    }

    fn wait_for_volumes(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.volumes() < count {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn assert_nothing_is_left(&self) {
        for part in ["staging", "published"] {
            assert_eq!(names(&self.path(part)), Vec::<String>::new(), "{part}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hawser() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HAWSER_") || name == "CSI_ENDPOINT") {
        command.env_remove(name);
    }
    command
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn count(figures: &Value, call: &str) -> u64 {
    figures["calls"][call]["count"].as_u64().unwrap_or(0)
}

#[test]
fn every_call_is_counted_and_nothing_is_left() {
    let server = Server::start(&[]);
    let (output, figures) = server.bench(&["--volumes", "12", "--concurrency", "5", "--rounds", "2", "--fs", "xfs"]);
    assert!(output.status.success(), "{}", stderr(&output));
    for call in [
        "CreateVolume",
        "ControllerPublishVolume",
        "NodeStageVolume",
        "NodePublishVolume",
        "NodeUnpublishVolume",
        "NodeUnstageVolume",
        "ControllerUnpublishVolume",
        "DeleteVolume",
    ] {
        assert_eq!(count(&figures, call), 24, "{call}: {figures}");
        let of = |key: &str| figures["calls"][call][key].as_u64().unwrap();
        assert!(of("p50_us") <= of("p95_us") && of("p95_us") <= of("p99_us") && of("p99_us") <= of("max_us"));
    }
    assert_eq!((&figures["up"]["count"], &figures["down"]["count"]), (&24.into(), &24.into()));
    assert_eq!((&figures["failed"], &figures["errors"]), (&0.into(), &Value::Array(Vec::new())));
    assert_eq!(figures["driver"]["name"], "csi.hawser.dev");
    assert_eq!(server.volumes(), 0);
    server.assert_nothing_is_left();
}

#[test]
fn block_volumes_and_a_file_for_the_figures() {
    let server = Server::start(&[]);
    let file = server.path("figures.json");
    let output = server.bench_command(&["--block", "--volumes", "3", "--output", &file.display().to_string()]).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(text.contains("3 volumes (block, 1GiB)") && text.contains("whole path down"), "{text}");
    let figures: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!((&figures["access"], count(&figures, "NodeStageVolume")), (&"block".into(), 3));
    assert_eq!(server.volumes(), 0);
}

/// Swarm is not offered staging.
#[test]
fn what_is_not_advertised_is_not_called() {
    let server = Server::start(&["--profile", "swarm"]);
    let (output, figures) = server.bench(&["--volumes", "4", "--concurrency", "2"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!((count(&figures, "NodeStageVolume"), count(&figures, "NodeUnstageVolume")), (0, 0));
    assert_eq!((count(&figures, "NodePublishVolume"), count(&figures, "DeleteVolume")), (4, 4));
    server.assert_nothing_is_left();
}

#[test]
fn a_refusal_is_shown_and_what_was_made_before_is_removed() {
    let server = Server::start(&[]);
    let wrong = ["--volumes", "5", "--parameters", "nonsense=1"];
    let (output, figures) = server.bench(&wrong);
    assert_eq!(output.status.code(), Some(1));
    let error = &figures["errors"][0];
    assert_eq!(
        (&error["call"], &error["code"], &error["count"]),
        (&"CreateVolume".into(), &"InvalidArgument".into(), &1.into())
    );
    // The others were not begun, unless asked for.
    let (output, figures) = server.bench(&[&wrong[..], &["--keep-going"]].concat());
    assert_eq!((output.status.code(), &figures["errors"][0]["count"]), (Some(1), &5.into()));
    // A node of other storage does not know the volume that the controller made.
    let other = Server::start(&[]);
    let node_endpoint = other.path("csi.sock").display().to_string();
    let (output, figures) = server.bench(&["--volumes", "1", "--node-endpoint", &node_endpoint]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!((count(&figures, "ControllerPublishVolume"), count(&figures, "NodeStageVolume")), (1, 0), "{figures}");
    assert_eq!((count(&figures, "ControllerUnpublishVolume"), count(&figures, "DeleteVolume")), (1, 1), "{figures}");
    assert_eq!(figures["left_behind"], Value::Array(Vec::new()));
    assert_eq!(server.volumes(), 0);
    server.assert_nothing_is_left();
}

/// Also while volumes are on their way up.
#[test]
fn an_interrupt_removes_everything() {
    let server = Server::start(&[]);
    for hold in ["0", "600"] {
        let arguments = ["--json", "--volumes", "400", "--concurrency", "4", "--rounds", "100", "--hold", hold];
        let mut command = server.bench_command(&arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        server.wait_for_volumes(20);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("everything that was made is removed"), "{}", stderr(&output));
        let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(count(&figures, "CreateVolume"), count(&figures, "DeleteVolume"), "{figures}");
        assert_eq!(server.volumes(), 0);
        server.assert_nothing_is_left();
    }
}

/// When the driver dies for good, what stays is said.
#[test]
fn what_stays_is_said() {
    let mut server = Server::start(&[]);
    let arguments = ["--json", "--volumes", "3", "--hold", "600", "--timeout", "1"];
    let child = server.bench_command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.wait_for_volumes(3);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    let left = figures["left_behind"].as_array().unwrap();
    assert_eq!(left.len(), 3, "{figures}");
    assert!(left[0].as_str().unwrap().contains("Unavailable"), "{}", left[0]);
    assert!(stderr(&output).contains("left behind"), "{}", stderr(&output));
}

#[test]
fn more_than_a_node_takes_is_refused_before_anything_is_made() {
    let server = Server::start(&["--set", "backend.max_volumes_per_node=2"]);
    let (output, _) = server.bench(&["--volumes", "3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("takes at most 2 volumes"), "{}", stderr(&output));
    assert_eq!(server.bench(&["--volumes", "2"]).0.status.code(), Some(0));
}

#[test]
fn no_driver_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = dir.path().join("none.sock").display().to_string();
    let output = hawser().args(["bench", "--endpoint", &endpoint, "--timeout", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no driver is ready"), "{}", stderr(&output));
}
