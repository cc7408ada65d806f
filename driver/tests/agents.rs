//! One controller and two nodes as processes of their own, each node with a pool that only it has: the controller reaches
//! them over mutual TLS on the loopback address, and every call of a volume's life goes that way.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test, and it runs the binary")]

use csi_proto::csi::controller_client::ControllerClient;
use csi_proto::csi::group_controller_client::GroupControllerClient;
use csi_proto::csi::identity_client::IdentityClient;
use csi_proto::csi::node_client::NodeClient;
use csi_proto::csi::snapshot_metadata_client::SnapshotMetadataClient;
use csi_proto::csi::volume_capability::access_mode::Mode;
use csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use csi_proto::csi::volume_content_source::{SnapshotSource, Type};
use csi_proto::csi::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use volume::{BackendName, NodeId};

const MIB: i64 = 1 << 20;

struct Process {
    child: Child,
    dir: PathBuf,
}

impl Process {
    fn start(dir: &Path, config: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let file = dir.join("config.toml");
        let own = format!("endpoint = \"unix://{0}/csi.sock\"\nstate_dir = \"{0}/state\"\n", dir.display());
        std::fs::write(&file, own + config).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HAWSER_") || name == "CSI_ENDPOINT") {
            command.env_remove(name);
        }
        command.arg("--config").arg(&file).arg("serve").stdin(Stdio::null()).stderr(log);
        Self { child: command.spawn().unwrap(), dir: dir.to_owned() }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }

    /// Waits for a line of the log; what follows the words.
    fn logged(&mut self, words: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let log = self.log();
            if let Some((_, rest)) = log.split_once(words) {
                return rest.lines().next().unwrap_or_default().to_owned();
            }
            assert!(self.child.try_wait().unwrap().is_none(), "it has ended: {log}");
            assert!(Instant::now() < deadline, "{words:?} is not in {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn channel(&self) -> Channel {
        let uri = format!("unix://{}/csi.sock", self.dir.display());
        Endpoint::from_shared(uri).unwrap().connect().await.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Unmounted and let go whatever happens.
struct Mounts {
    targets: Vec<PathBuf>,
    root: PathBuf,
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for target in &self.targets {
            let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
        }
        for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
            let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if backing.starts_with(&*self.root.to_string_lossy()) {
                let _ = Command::new("losetup").arg("-d").arg(Path::new("/dev").join(entry.file_name())).status();
            }
        }
    }
}

fn credentials(certificates: &Path, name: &str) -> String {
    let at = |file: &str| certificates.join(file).display().to_string();
    let (ca, cert, key) = (at("ca.crt"), at(&format!("{name}.crt")), at(&format!("{name}.key")));
    format!("[agent]\nca = \"{ca}\"\ncert = \"{cert}\"\nkey = \"{key}\"\n")
}

fn node(root: &Path, id: &str, listen: &str) -> Process {
    let dir = root.join(id);
    let agent = credentials(&root.join("certificates"), &format!("node-{id}"));
    let pool = dir.join("pool").display().to_string();
    Process::start(
        &dir,
        &format!(
            "node_id = \"{id}\"\nmode = \"node\"\n{agent}listen = \"{listen}\"\n[[backend]]\nscope = \"local\"\ndirectory = \"{pool}\"\n"
        ),
    )
}

fn place(id: &str) -> Topology {
    Topology { segments: BTreeMap::from([("csi.hawser.dev/node".to_owned(), id.to_owned())]) }
}

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn create(name: &str, requisite: &[&str], preferred: &[&str]) -> CreateVolumeRequest {
    let places = |ids: &[&str]| ids.iter().map(|id| place(id)).collect();
    let requirement = TopologyRequirement { requisite: places(requisite), preferred: places(preferred) };
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: 64 * MIB, limit_bytes: 0 }),
        volume_capabilities: vec![capability()],
        accessibility_requirements: (!requisite.is_empty()).then_some(requirement),
        ..Default::default()
    }
}

fn backend_of(id: &str) -> String {
    BackendName::of_node(&NodeId::parse(id).unwrap()).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_controller_for_the_pools_of_all_nodes() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: loop devices and mounts need root");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let made = Command::new(env!("CARGO_BIN_EXE_hawser"))
        .args(["certificates", &root.join("certificates").display().to_string(), "--node", "n1", "--node", "n2"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let serving = "serving this node's backends to controllers over mutual TLS address=";
    let (mut n1, mut n2) = (node(root, "n1", "127.0.0.1:0"), node(root, "n2", "127.0.0.1:0"));
    let addresses = [n1.logged(serving), n2.logged(serving)];
    let agents = format!(
        "[[agents]]\nnode = \"n1\"\naddress = \"{}\"\n[[agents]]\nnode = \"n2\"\naddress = \"{}\"\n",
        addresses[0], addresses[1]
    );
    let config = format!("mode = \"controller\"\n{}{agents}", credentials(&root.join("certificates"), "controller"));
    let mut process = Process::start(&root.join("controller"), &config);
    process.logged("serving node=");
    process.logged("the agent is connected node=n1");
    process.logged("the agent is connected node=n2");
    let mut controller = ControllerClient::new(process.channel().await);
    let mut identity = IdentityClient::new(process.channel().await);
    let ready = identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_eq!(ready, Some(true));
    let capabilities = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap().into_inner();
    assert!(format!("{capabilities:?}").contains("VolumeAccessibilityConstraints"), "{capabilities:?}");

    // Where it is asked for, the preferred place first; without a wish on the first node.
    for (name, requisite, preferred, expected) in [
        ("on-n2", &["n2"][..], &["n2"][..], "n2"),
        ("prefers-n2", &["n1", "n2"], &["n2", "n1"], "n2"),
        ("anywhere", &[], &[], "n1"),
    ] {
        let volume =
            controller.create_volume(create(name, requisite, preferred)).await.unwrap().into_inner().volume.unwrap();
        assert!(volume.volume_id.starts_with(&backend_of(expected)), "{name}: {}", volume.volume_id);
        assert_eq!(volume.accessible_topology, [place(expected)]);
        assert!(root.join(expected).join("pool/volumes").join(&volume.volume_id).is_dir());
        // As often as it is asked, also when the preference has changed meanwhile.
        let again = controller.create_volume(create(name, requisite, &["n1"][..requisite.len().min(1)])).await.unwrap();
        assert_eq!(again.into_inner().volume.unwrap(), volume);
    }
    let refused = controller.create_volume(create("nowhere", &["n3"], &["n3"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{}", refused.message());

    let id = format!("{}.v", backend_of("n2"));
    let listed = controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    let ids: Vec<_> = listed.entries.iter().map(|entry| entry.volume.as_ref().unwrap().volume_id.clone()).collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(ids.iter().filter(|listed| listed.starts_with(&id)).count(), 2);
    let volume = controller.create_volume(create("on-n2", &["n2"], &[])).await.unwrap().into_inner().volume.unwrap();
    life_of_a_volume(root, &mut controller, &n2, &volume.volume_id).await;
    let capabilities = format!("{capabilities:?}");
    assert!(capabilities.contains("GroupControllerService") && capabilities.contains("SnapshotMetadataService"));
    let other = ids.iter().find(|listed| listed.starts_with(&id) && **listed != volume.volume_id).unwrap();
    upkeep(&process, other.clone()).await;

    // One node is lost: its storage is away at once, everything else goes on.
    n1.kill();
    process.logged("the agent is away node=n1");
    let asked = Instant::now();
    let away = controller.create_volume(create("late", &["n1"], &[])).await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable, "{}", away.message());
    assert!(away.message().contains("node n1"), "{}", away.message());
    let delete = DeleteVolumeRequest {
        volume_id: ids.iter().find(|id| id.starts_with(&backend_of("n1"))).unwrap().clone(),
        ..Default::default()
    };
    assert_eq!(controller.delete_volume(delete).await.unwrap_err().code(), Code::Unavailable);
    let health = controller.controller_list_volume_health(ControllerListVolumeHealthRequest::default()).await;
    assert_eq!(health.unwrap_err().code(), Code::Unavailable);
    // Half a list would be taken for the whole.
    assert_eq!(controller.list_volumes(ListVolumesRequest::default()).await.unwrap_err().code(), Code::Unavailable);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let capacity = async |controller: &mut ControllerClient<Channel>, id: &str| {
        let request = GetCapacityRequest { accessible_topology: Some(place(id)), ..Default::default() };
        controller.get_capacity(request).await.map(|capacity| capacity.into_inner().available_capacity)
    };
    assert_eq!(capacity(&mut controller, "n1").await.unwrap_err().code(), Code::Unavailable);
    assert!(capacity(&mut controller, "n2").await.unwrap() > 0);
    let elsewhere =
        controller.create_volume(create("elsewhere", &["n1", "n2"], &["n1", "n2"])).await.unwrap().into_inner();
    assert!(elsewhere.volume.unwrap().volume_id.starts_with(&backend_of("n2")));
    assert_eq!(identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));

    // Back at the same address, it is used again without anybody's doing.
    let mut n1 = node(root, "n1", &addresses[0]);
    n1.logged(serving);
    let deadline = Instant::now() + Duration::from_secs(20);
    while capacity(&mut controller, "n1").await.is_err() {
        assert!(Instant::now() < deadline, "{}", process.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let late = controller.create_volume(create("late", &["n1"], &[])).await.unwrap().into_inner().volume.unwrap();
    assert!(late.volume_id.starts_with(&backend_of("n1")));

    // A controller that starts while a node is away does not take its volumes for unknown ones.
    n1.kill();
    process.kill();
    let mut process = Process::start(&root.join("controller"), &config);
    process.logged("the agent is connected node=n2");
    let mut controller = ControllerClient::new(process.channel().await);
    let get = ControllerGetVolumeRequest { volume_id: late.volume_id };
    let unknown = controller.controller_get_volume(get).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable, "{}", unknown.message());
    assert!(unknown.message().contains("node n1"), "{}", unknown.message());
}

async fn life_of_a_volume(root: &Path, controller: &mut ControllerClient<Channel>, node: &Process, id: &str) {
    let (staging, target) = (root.join("staging"), root.join("target"));
    let _mounts = Mounts { targets: vec![target.clone(), staging.clone()], root: root.to_owned() };
    let (staging_path, target_path) = (staging.display().to_string(), target.display().to_string());
    std::fs::create_dir(&staging).unwrap();
    let volume_id = id.to_owned();
    let publish = ControllerPublishVolumeRequest {
        volume_id: volume_id.clone(),
        node_id: "n2".to_owned(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    // Nobody registers with a pool that is not theirs.
    let elsewhere = ControllerPublishVolumeRequest { node_id: "n1".to_owned(), ..publish.clone() };
    assert_eq!(controller.controller_publish_volume(elsewhere).await.unwrap_err().code(), Code::NotFound);
    let publish_context = controller.controller_publish_volume(publish).await.unwrap().into_inner().publish_context;
    let mut node = NodeClient::new(node.channel().await);
    let stage = NodeStageVolumeRequest {
        volume_id: volume_id.clone(),
        publish_context: publish_context.clone(),
        staging_target_path: staging_path.clone(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    node.node_stage_volume(stage.clone()).await.unwrap();
    let publish = NodePublishVolumeRequest {
        volume_id: volume_id.clone(),
        publish_context,
        staging_target_path: staging_path.clone(),
        target_path: target_path.clone(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    node.node_publish_volume(publish).await.unwrap();
    std::fs::write(target.join("file"), "precious").unwrap();

    let held = DeleteVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
    assert_eq!(controller.delete_volume(held.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    let snapshot =
        CreateSnapshotRequest { source_volume_id: volume_id.clone(), name: "s".to_owned(), ..Default::default() };
    let snapshot = controller.create_snapshot(snapshot).await.unwrap().into_inner().snapshot.unwrap();
    assert!(snapshot.ready_to_use && snapshot.snapshot_id.starts_with(&backend_of("n2")));
    let source = Type::Snapshot(SnapshotSource { snapshot_id: snapshot.snapshot_id.clone() });
    let restore = CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
        ..create("restored", &["n1", "n2"], &["n1", "n2"])
    };
    let restored = controller.create_volume(restore).await.unwrap().into_inner().volume.unwrap();
    assert!(restored.volume_id.starts_with(&backend_of("n2")), "where its source is");

    let capacity_range = Some(CapacityRange { required_bytes: 128 * MIB, limit_bytes: 0 });
    let grow = ControllerExpandVolumeRequest { volume_id: volume_id.clone(), capacity_range, ..Default::default() };
    let grown = controller.controller_expand_volume(grow).await.unwrap().into_inner();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (128 * MIB, true));
    // Not every place lets ext4 grow while it is mounted: here it does when it is staged again.
    node.node_unpublish_volume(NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path }).await.unwrap();
    let unstage = NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path: staging_path };
    node.node_unstage_volume(unstage.clone()).await.unwrap();
    node.node_stage_volume(stage).await.unwrap();
    let staged = nix::sys::statvfs::statvfs(&staging).unwrap();
    assert!(staged.blocks() * staged.fragment_size() > 100 << 20, "{staged:?}");
    assert_eq!(std::fs::read_to_string(staging.join("file")).unwrap(), "precious");
    node.node_unstage_volume(unstage).await.unwrap();
    let unpublish = ControllerUnpublishVolumeRequest { volume_id, node_id: "n2".to_owned(), ..Default::default() };
    controller.controller_unpublish_volume(unpublish).await.unwrap();
    controller.delete_volume(held).await.unwrap();
    let delete = DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
    controller.delete_snapshot(delete).await.unwrap();
    let delete = DeleteVolumeRequest { volume_id: restored.volume_id, ..Default::default() };
    controller.delete_volume(delete).await.unwrap();
}

/// What may be asked of a volume beside its life: changes, health, groups and blocks.
async fn upkeep(process: &Process, volume_id: String) {
    let mut controller = ControllerClient::new(process.channel().await);
    let mutable_parameters = BTreeMap::from([("readAheadKiB".to_owned(), "256".to_owned())]);
    let modify =
        ControllerModifyVolumeRequest { volume_id: volume_id.clone(), mutable_parameters, ..Default::default() };
    controller.controller_modify_volume(modify).await.unwrap();
    let health = controller.controller_list_volume_health(ControllerListVolumeHealthRequest::default()).await.unwrap();
    assert!(health.into_inner().entries.is_empty());
    let health = ControllerGetVolumeHealthRequest { volume_id: volume_id.clone(), ..Default::default() };
    let health = controller.controller_get_volume_health(health).await.unwrap().into_inner().volume_health.unwrap();
    assert!(health.volume_id == volume_id && health.health_statuses.is_empty());

    let mut groups = GroupControllerClient::new(process.channel().await);
    let source_volume_ids = vec![volume_id.clone()];
    let take = CreateVolumeGroupSnapshotRequest { name: "group".to_owned(), source_volume_ids, ..Default::default() };
    let group = groups.create_volume_group_snapshot(take).await.unwrap().into_inner().group_snapshot.unwrap();
    let snapshot_id = group.snapshots[0].snapshot_id.clone();
    let mut metadata = SnapshotMetadataClient::new(process.channel().await);
    let request = GetMetadataAllocatedRequest { snapshot_id: snapshot_id.clone(), ..Default::default() };
    let mut messages = metadata.get_metadata_allocated(request).await.unwrap().into_inner();
    while let Some(message) = messages.message().await.unwrap() {
        assert_eq!(message.volume_capacity_bytes, 64 * MIB);
    }
    let group_snapshot_id = group.group_snapshot_id;
    let snapshot_ids = vec![snapshot_id];
    let delete = DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, ..Default::default() };
    groups.delete_volume_group_snapshot(delete).await.unwrap();
}

/// Without the cluster there is nobody to ask for a certificate: the node serves all the same, and its agent as soon as
/// a kept certificate is of use.
#[tokio::test]
async fn a_node_in_kubernetes_serves_before_it_has_a_certificate() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("n1");
    let config = "node_id = \"n1\"\nmode = \"node\"\n[kubernetes]\nenabled = true\nnamespace = \"ns\"\nname = \"hawser\"\n[agent]\nlisten = \"127.0.0.1:0\"\n[[backend]]\ntype = \"memory\"\n";
    let mut node = Process::start(&dir, config);
    node.logged("serving node=n1");
    node.logged("does not run as a pod with a service account");
    let mut client = NodeClient::new(node.channel().await);
    assert_eq!(client.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner().node_id, "n1");
    assert!(!node.log().contains("to controllers"));
    node.kill();

    let made = scratch.path().join("certificates");
    let status =
        Command::new(env!("CARGO_BIN_EXE_hawser")).arg("certificates").arg(&made).args(["--node", "n1"]).status();
    assert!(status.unwrap().success());
    let read = |name: &str| std::fs::read_to_string(made.join(name)).unwrap();
    let own = dir.join("state/agent.pem");
    std::fs::write(&own, read("node-n1.crt") + &read("node-n1.key")).unwrap();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(dir.join("state/agent-ca.pem"), read("ca.crt")).unwrap();
    let mut node = Process::start(&dir, config);
    node.logged("serving this node's backends to controllers");
    node.logged("serving node=n1");
}
