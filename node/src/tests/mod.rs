//! The node over the fake host and the memory backend: what an orchestrator does, what goes wrong, and crashes.

mod crash;
mod fenced;
mod file_system;
mod granting;
mod health;
mod lease;
mod lifecycle;
mod paths;
mod real;
mod tuning;
mod wire;

use crate::expand::ExpandRequest;
use crate::node::Node;
use crate::publish::PublishRequest;
use crate::stage::StageRequest;
use crate::target::NodePath;
use crate::{NodeConfig, NodeService};
use host::{Effects, FakeHost, Host};
use memory::MemoryBackend;
use rpc::{Metrics, Profile, Runtime, Trace};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use volume::{
    AccessMode, AccessType, Attach, AttachContext, AttachRequest, Attacher, Backend, BackendName, Connector, Error,
    ErrorKind, FsType, LockTable, NodeId, Parameters, Result, SizeRange, TopologyRequirement, VolumeCapability,
    VolumeGuard, VolumeId, VolumeKind, VolumeName, VolumeSpec,
};

/// Enough for every file system.
const SIZE: u64 = 320 << 20;
const STAGING: &str = "/staging/a";
const TARGET: &str = "/targets/a";
const EXT4: VolumeKind = VolumeKind::FileSystem(FsType::Ext4);

/// One machine with one pool, and the node services on it.
struct Lab {
    host: Arc<FakeHost>,
    backend: MemoryBackend,
    state: tempfile::TempDir,
    profile: Profile,
    attacher: Attacher,
    service: NodeService,
}

impl Lab {
    fn new() -> Self {
        Self::of(Profile::Kubernetes)
    }

    fn of(profile: Profile) -> Self {
        Self::with(profile, Attacher::Controller)
    }

    fn with(profile: Profile, attacher: Attacher) -> Self {
        let host = Arc::new(FakeHost::new(Effects::default()));
        for directory in ["/staging", "/targets"] {
            host.create_directory(Path::new(directory)).unwrap();
        }
        let backend = MemoryBackend::new(BackendName::parse("pool").unwrap(), host.clone(), 1 << 40, None);
        let state = tempfile::tempdir().unwrap();
        let config = config(&host, &backend, state.path(), profile, "n1");
        let service = NodeService::new(NodeConfig { attacher, ..config }).unwrap();
        service.register().unwrap();
        service.reconcile().unwrap();
        Self { host, backend, state, profile, attacher, service }
    }

    /// A new process on the same machine with the same state.
    fn restart(&mut self) -> Result<crate::Reconciled> {
        self.host.restart();
        let config = config(&self.host, &self.backend, self.state.path(), self.profile, "n1");
        self.service = NodeService::new(NodeConfig { attacher: self.attacher, ..config })?;
        self.service.register()?;
        self.service.reconcile()
    }

    fn node(&self) -> &Node {
        &self.service.node
    }

    fn create(&self, name: &str, kind: VolumeKind, parameters: Parameters) -> VolumeId {
        let name = VolumeName::parse(name).unwrap();
        let id = VolumeId::of_name(self.backend.name(), &name);
        let size = SizeRange { required_bytes: Some(SIZE), limit_bytes: None };
        let topology = TopologyRequirement::default();
        let spec = VolumeSpec {
            id: id.clone(),
            name,
            size,
            kind,
            source: None,
            parameters,
            mutable: Default::default(),
            topology,
        };
        self.backend.ensure_volume(&lock(&id), &spec).unwrap();
        id
    }

    /// Creates a volume and attaches it to this node, unless that does so itself.
    fn attached(&self, name: &str, kind: VolumeKind) -> Volume {
        let id = self.create(name, kind, Parameters::default());
        let context = (self.attacher == Attacher::Controller).then(|| self.attach(&id, "n1", false).unwrap());
        Volume { id, context, capability: capability(kind), is_read_only: false }
    }

    fn holder(&self, id: &VolumeId) -> Option<NodeId> {
        self.backend.find_volume(id).unwrap().unwrap().attachment.map(|held| held.holder.node)
    }

    fn attach(&self, id: &VolumeId, node: &str, read_only: bool) -> Result<AttachContext> {
        let node = NodeId::parse(node).unwrap();
        Attach::attach(&self.backend, &lock(id), &AttachRequest { volume: id, node: &node, read_only })
    }

    fn stage(&self, volume: &Volume, path: &str) -> Result<()> {
        let request = StageRequest {
            volume: volume.id.clone(),
            context: volume.context.clone(),
            staging_target_path: at(path),
            capability: volume.capability.clone(),
            parameters: None,
        };
        self.node().stage(&lock(&volume.id), &request, &mut Trace::new())
    }

    fn publish(&self, volume: &Volume, staging: &str, target: &str) -> Result<()> {
        let request = PublishRequest {
            volume: volume.id.clone(),
            context: volume.context.clone(),
            staging_target_path: NodePath::parse_optional("staging_target_path", staging).unwrap(),
            target_path: at(target),
            capability: volume.capability.clone(),
            is_read_only: volume.is_read_only,
            parameters: None,
        };
        self.node().publish(&lock(&volume.id), &request, &mut Trace::new())
    }

    fn unpublish(&self, id: &VolumeId, target: &str) -> Result<()> {
        self.node().unpublish(&lock(id), id, &at(target), &mut Trace::new())
    }

    fn unstage(&self, id: &VolumeId, path: &str) -> Result<()> {
        self.node().unstage(&lock(id), id, &at(path), &mut Trace::new())
    }

    fn expand(&self, id: &VolumeId, path: &str, required_bytes: u64) -> Result<u64> {
        let request = ExpandRequest {
            volume: id.clone(),
            volume_path: at(path),
            staging_target_path: None,
            size: SizeRange { required_bytes: Some(required_bytes), limit_bytes: None },
            capability: None,
        };
        self.node().expand(&lock(id), &request, &mut Trace::new())
    }

    /// Everything of volumes that is mounted or connected, and the empty targets that were left.
    fn state(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for entry in self.host.mounts().unwrap() {
            if entry.id > 2 && !entry.mounted_at.starts_with("/dev") && entry.mounted_at != Path::new("/") {
                let access = if entry.read_only { "ro" } else { "rw" };
                lines.push(format!("{} {} {access}", entry.mounted_at.display(), entry.fs_type));
            }
        }
        lines.extend(self.host.loops().unwrap().into_iter().map(|device| format!("loop {}", device.label)));
        for directory in ["/targets", "/staging"] {
            let found = self.host.observe_path(Path::new(directory)).unwrap();
            lines.push(format!("{directory} {found:?}"));
        }
        lines.extend(std::fs::read_dir(self.state.path().join("journal")).unwrap().map(|e| format!("note {e:?}")));
        let state = self.state.path().to_str().unwrap();
        let mut lines: Vec<_> = lines.into_iter().map(|line| line.replace(state, "/state")).collect();
        lines.sort();
        lines
    }

    fn write(&self, path: &str, bytes: &str) -> Result<()> {
        self.host.write_file(Path::new(path), bytes.as_bytes())
    }

    fn read(&self, path: &str) -> String {
        String::from_utf8(self.host.read_file(Path::new(path)).unwrap()).unwrap()
    }

    /// The image or device of a volume that is connected.
    fn device(&self, id: &VolumeId) -> PathBuf {
        let connected = self.backend.connector().observe(id).unwrap();
        match connected {
            Some(volume::Connected::Device { path, .. }) => path,
            other => panic!("{id} is {other:?}"),
        }
    }
}

/// A volume as an orchestrator has it.
#[derive(Clone)]
struct Volume {
    id: VolumeId,
    context: Option<AttachContext>,
    capability: VolumeCapability,
    is_read_only: bool,
}

impl Volume {
    fn mode(&self, access_mode: AccessMode) -> Self {
        Self { capability: VolumeCapability { access_mode, ..self.capability.clone() }, ..self.clone() }
    }

    fn flags(&self, flags: &[&str]) -> Self {
        let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let access_type = AccessType::Mount { fs_type: None, mount_flags, mount_group: None };
        Self { capability: VolumeCapability { access_type, ..self.capability.clone() }, ..self.clone() }
    }

    fn read_only(&self) -> Self {
        Self { is_read_only: true, ..self.clone() }
    }
}

fn service(host: &Arc<FakeHost>, backend: &MemoryBackend, state: &Path, profile: Profile, node: &str) -> NodeService {
    NodeService::new(config(host, backend, state, profile, node)).unwrap()
}

fn config(host: &Arc<FakeHost>, backend: &MemoryBackend, state: &Path, profile: Profile, node: &str) -> NodeConfig {
    let connector: Arc<dyn Connector> = Arc::new(backend.connector());
    NodeConfig {
        node_id: NodeId::parse(node).unwrap(),
        connectors: vec![(backend.name().clone(), connector)],
        host: host.clone(),
        locks: LockTable::default(),
        profile,
        attacher: Attacher::Controller,
        state_dir: state.to_owned(),
        effects: Effects::default(),
        io_limit_cgroups: vec!["kubepods".into()],
        runtime: Runtime::new(Metrics::new(), Duration::from_secs(10)),
        step_deadline: Duration::from_secs(10),
    }
}

fn capability(kind: VolumeKind) -> VolumeCapability {
    let access_type = match kind {
        VolumeKind::Block => AccessType::Block,
        VolumeKind::FileSystem(_) | VolumeKind::Directory => {
            AccessType::Mount { fs_type: None, mount_flags: vec![], mount_group: None }
        }
    };
    let access_mode = match kind {
        VolumeKind::Directory => AccessMode::MultiNodeMultiWriter,
        VolumeKind::FileSystem(_) | VolumeKind::Block => AccessMode::SingleNodeWriter,
    };
    VolumeCapability { access_mode, access_type }
}

fn lock(id: &VolumeId) -> VolumeGuard {
    LockTable::default().try_lock([id.as_str()]).unwrap()
}

fn at(path: &str) -> NodePath {
    NodePath::parse("path", path).unwrap()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, says: &str) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", error.chain());
    assert!(error.chain().contains(says), "{:?} is not in {}", says, error.chain());
    error
}
