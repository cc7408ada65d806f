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
    command(dir, arguments).stderr(log).spawn().unwrap()
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
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
        .current_dir(dir)
        .stdin(Stdio::null());
    command
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
    let other_state = server.path("other-state").display().to_string();
    let mut second = spawn(server.dir.path(), &["--metrics-listen", "off", "--state-dir", &other_state]);
    assert_eq!(second.wait().unwrap().code(), Some(1));
    assert!(server.log().contains("another process listens there"), "{}", server.log());
    assert!(server.get("/readyz").unwrap().starts_with("HTTP/1.1 200"));
    // A crash leaves the socket behind.
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert!(server.path("csi.sock").exists());
    server.child = spawn(server.dir.path(), &[]);
    server.wait(|server| server.get("/readyz").is_some_and(|page| page.starts_with("HTTP/1.1 200")));
    assert_eq!(server.terminate(), Some(0));
}

/// A second one would undo at its start what the first is doing, taking it for what a crash left.
#[test]
fn a_state_directory_is_of_one_process() {
    let mut server = Server::start(&[]);
    let endpoint = format!("unix://{}", server.path("other.sock").display());
    let arguments = ["--metrics-listen", "off", "--endpoint", &endpoint];
    let mut second = spawn(server.dir.path(), &arguments);
    assert_eq!(second.wait().unwrap().code(), Some(1));
    let (log, holder) = (server.log(), format!("pid {}, endpoint", server.child.id()));
    assert!(log.contains("in use by another hawser") && log.contains(&holder), "{log}");
    // A controller has no node's state.
    let mut controller = spawn(server.dir.path(), &[&arguments[..], &["--mode", "controller"]].concat());
    server.wait(|server| server.path("other.sock").exists());
    controller.kill().unwrap();
    controller.wait().unwrap();
    // Neither a crash nor a full stop leaves it locked.
    for end in [true, false] {
        if end {
            server.child.kill().unwrap();
            server.child.wait().unwrap();
        } else {
            server.terminate();
        }
        server.child = spawn(server.dir.path(), &[]);
        server.wait(|server| server.get("/readyz").is_some_and(|page| page.starts_with("HTTP/1.1 200")));
    }
}

/// As when the log's reader has died: nothing may depend on a line that is written.
#[test]
fn it_goes_on_without_anybody_who_reads_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = command(dir.path(), &[]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let mut server = Server { child, dir };
    std::fs::write(server.path("log"), "").unwrap();
    server.wait(|server| server.get("/readyz").is_some_and(|page| page.starts_with("HTTP/1.1 200")));
    assert_eq!(server.terminate(), Some(0));
}

/// Metrics and the log after calls: what was called, how long each step took, what is held.
#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_and_logged() {
    use csi_proto::csi::controller_client::ControllerClient;
    use csi_proto::csi::volume_capability::access_mode::Mode;
    use csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
    use csi_proto::csi::{ControllerPublishVolumeRequest, CreateVolumeRequest, VolumeCapability};

    let server = Server::start(&["--log-format", "json"]);
    let uri = format!("unix://{}", server.path("csi.sock").display());
    let channel = tonic::transport::Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    let mut controller = ControllerClient::new(channel);
    let capability = VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    };
    let request = CreateVolumeRequest {
        name: "db".to_owned(),
        volume_capabilities: vec![capability.clone()],
        ..Default::default()
    };
    let volume = controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
    let request = ControllerPublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        node_id: "n1".to_owned(),
        volume_capability: Some(capability),
        ..Default::default()
    };
    controller.controller_publish_volume(request).await.unwrap();
    // The answer may come before its line.
    server.wait(|server| server.log().contains("ControllerPublishVolume"));
    let counted = "hawser_rpc_duration_seconds_count{rpc=\"ControllerPublishVolume\"} 1";
    server.wait(|server| server.get("/metrics").is_some_and(|page| page.contains(counted)));
    let metrics = server.get("/metrics").unwrap();
    for line in [
        "hawser_rpcs_total{rpc=\"CreateVolume\",code=\"OK\"} 1",
        "hawser_rpc_step_duration_seconds_count{rpc=\"ControllerPublishVolume\",step=",
        "hawser_volumes{backend=\"pool\",kind=\"ext4\"} 1",
        "hawser_attachments{backend=\"pool\",node=\"n1\"} 1",
        "hawser_fenced_attachments{backend=\"pool\"} 0",
        "hawser_unhealthy_volumes{backend=\"pool\",severity=\"data_loss\"} 0",
        "hawser_orphan_bytes{backend=\"pool\"} 0",
        "hawser_available_bytes{backend=\"pool\"} ",
        &format!("hawser_provisioned_bytes{{backend=\"pool\"}} {}", volume.capacity_bytes),
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let log = server.log();
    let line = log.lines().find(|line| line.contains("ControllerPublishVolume")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["volume"], &line["node"]), (&volume.volume_id.into(), &"n1".into()), "{line}");
    assert!(line.to_string().contains("total_ms") && line.to_string().contains("OK"), "{line}");
}

/// What kubelet's plugin watcher does with a socket that it finds: GetInfo, the version's check, NodeGetInfo at the
/// endpoint it was told, NotifyRegistrationStatus.
#[tokio::test(flavor = "multi_thread")]
async fn kubelet_registers_it() {
    use csi_proto::csi::NodeGetInfoRequest;
    use csi_proto::csi::node_client::NodeClient;
    use csi_proto::registration::registration_client::RegistrationClient;
    use csi_proto::registration::{InfoRequest, RegistrationStatus};

    let registry = tempfile::tempdir().unwrap();
    let registry_path = registry.path().display().to_string();
    // Relative to the driver's working directory, which is not kubelet's.
    let mut server = Server::start(&["--kubelet-registration-dir", &registry_path, "--endpoint", "unix://./csi.sock"]);
    let socket = registry.path().join("csi.hawser.dev-reg.sock");
    server.wait(|_| socket.exists());
    let connect = async |path: &Path| {
        let uri = format!("unix://{}", path.display());
        tonic::transport::Endpoint::from_shared(uri).unwrap().connect().await.unwrap()
    };
    let mut kubelet = RegistrationClient::new(connect(&socket).await);
    let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.hawser.dev"));
    assert!(info.supported_versions.iter().any(|version| version.starts_with("1.")));
    assert!(Path::new(&info.endpoint).is_absolute());
    let mut node = NodeClient::new(connect(Path::new(&info.endpoint)).await);
    let node_info = node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(node_info.node_id, "n1");
    for (plugin_registered, error) in [(false, "no\nsuch luck"), (true, "")] {
        let status = RegistrationStatus { plugin_registered, error: error.to_owned() };
        kubelet.notify_registration_status(status).await.unwrap();
    }
    let log = server.log();
    assert!(log.contains("registered with kubelet") && log.contains("no\\nsuch luck"), "{log}");
    drop((kubelet, node));
    assert_eq!(server.terminate(), Some(0));
    assert!(!socket.exists());
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
