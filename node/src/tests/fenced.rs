//! Grants that are not this node's, and the end of a life by a fence.

use super::*;
use volume::{Epoch, Fence, FenceHow};

#[test]
fn nothing_is_staged_without_a_grant() {
    let lab = Lab::new();
    let id = lab.create("v", EXT4, Parameters::default());
    let volume = Volume { id: id.clone(), context: None, capability: capability(EXT4), is_read_only: false };
    refused(lab.stage(&volume, STAGING), ErrorKind::Held, "publish it to this node first");
    let context = lab.attach(&id, "n1", false).unwrap();
    for epoch in [Epoch(0), context.epoch.next(), Epoch(u64::MAX)] {
        let forged = Volume { context: Some(AttachContext::new(epoch)), ..volume.clone() };
        refused(lab.stage(&forged, STAGING), ErrorKind::Held, "epoch");
    }
    lab.stage(&volume, STAGING).unwrap();
    let forged = Volume { context: Some(AttachContext::new(Epoch(0))), ..volume.clone() };
    refused(lab.stage(&forged, STAGING), ErrorKind::Held, "epoch");
    refused(lab.publish(&forged, STAGING, TARGET), ErrorKind::Held, "epoch");
}

#[test]
fn a_fenced_node_comes_back_clean() {
    for kind in [EXT4, VolumeKind::FileSystem(FsType::Btrfs), VolumeKind::Block] {
        let lab = Lab::new();
        let volume = lab.attached("v", kind);
        lab.stage(&volume, STAGING).unwrap();
        lab.publish(&volume, STAGING, TARGET).unwrap();
        let shared = lab.attached("shared", VolumeKind::Directory);
        lab.publish(&shared, "/staging/shared", "/targets/shared").unwrap();
        let earlier = lab.service.identity().unwrap();
        let n1 = NodeId::parse("n1").unwrap();
        Fence::fence(&lab.backend, &n1, None, "test", FenceHow::Enforce).unwrap();

        // Before it has looked: the record itself refuses.
        refused(lab.publish(&volume, STAGING, "/targets/b"), ErrorKind::Held, "");
        {
            let _in_use = lab.host.open(Path::new(TARGET)).unwrap();
            assert!(lab.service.register().is_err());
            refused(lab.service.ready(), ErrorKind::Held, "fenced");
            refused(lab.stage(&volume, STAGING), ErrorKind::Held, "fenced");
        }
        lab.service.register().unwrap();
        lab.service.ready().unwrap();
        // A workload that is started again on what is left there gets errors, and no data is lost without a word.
        if kind != VolumeKind::Block {
            assert!(lab.host.write_file(&Path::new(TARGET).join("late"), b"lost").is_err());
        }
        assert!(lab.host.loops().unwrap().is_empty());
        assert_eq!(lab.state().iter().filter(|line| !line.contains(" Directory")).count(), 0, "{:?}", lab.state());
        assert_ne!(lab.service.identity().unwrap().incarnation, earlier.incarnation);
        let context = Some(lab.attach(&volume.id, "n1", false).unwrap());
        let volume = Volume { context, ..volume };
        let _ = lab.host.remove_target(Path::new(TARGET));
        lab.stage(&volume, STAGING).unwrap();
        lab.publish(&volume, STAGING, TARGET).unwrap();
    }
}

#[test]
fn two_nodes_of_one_machine_keep_their_hands_off_each_other() {
    // Both see all loops; in this fake they even share the mount table, so the other's volume is raw and unmounted.
    let lab = Lab::new();
    let volume = lab.attached("v", VolumeKind::Block);
    lab.stage(&volume, STAGING).unwrap();
    let other_state = tempfile::tempdir().unwrap();
    let other = service(&lab.host, &lab.backend, other_state.path(), lab.profile, "n2");
    other.register().unwrap();
    assert_eq!(other.reconcile().unwrap(), crate::Reconciled::default());
    Fence::fence(&lab.backend, &NodeId::parse("n2").unwrap(), None, "test", FenceHow::Enforce).unwrap();
    other.register().unwrap();
    assert_eq!(lab.host.loops().unwrap().len(), 1);
    lab.publish(&volume, STAGING, TARGET).unwrap();
}

/// A backend that cannot be reached at all.
struct Away;

impl Connector for Away {
    fn register(&self, _: &volume::NodeIdentity) -> Result<volume::NodeRecord> {
        Err(Error::new(ErrorKind::Unavailable, "the pool is away"))
    }
    fn volume(&self, _: &VolumeId) -> Result<volume::Volume> {
        Err(Error::new(ErrorKind::Unavailable, "the pool is away"))
    }
    fn connect(&self, _: &VolumeGuard, _: &volume::ConnectRequest<'_>) -> Result<volume::Connected> {
        Err(Error::new(ErrorKind::Unavailable, "the pool is away"))
    }
    fn disconnect(&self, _: &VolumeGuard, _: &VolumeId, _: &volume::NodeIdentity) -> Result<()> {
        Err(Error::new(ErrorKind::Unavailable, "the pool is away"))
    }
    fn connections(&self, _: &VolumeId) -> Result<Vec<volume::Connected>> {
        Ok(Vec::new())
    }
    fn observe_all(&self) -> Result<Vec<(VolumeId, volume::Connected)>> {
        Ok(Vec::new())
    }
    fn refresh_size(&self, _: &VolumeGuard, _: &VolumeId) -> Result<u64> {
        Err(Error::new(ErrorKind::Unavailable, "the pool is away"))
    }
    fn mark_staged(&self, _: &VolumeGuard, _: &VolumeId) -> Result<()> {
        Err(Error::new(ErrorKind::Unavailable, "the pool is away"))
    }
    fn max_volumes(&self) -> Option<u64> {
        None
    }
    fn topology(&self) -> Result<volume::Segments> {
        Ok(volume::Segments::default())
    }
}

#[test]
fn a_backend_that_is_away_holds_no_other_up() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    let with =
        |connectors| NodeConfig { connectors, ..config(&lab.host, &lab.backend, lab.state.path(), lab.profile, "n1") };
    let away = || (BackendName::parse("away").unwrap(), Arc::new(Away) as Arc<dyn Connector>);
    let here = || (lab.backend.name().clone(), Arc::new(lab.backend.connector()) as Arc<dyn Connector>);

    let alone = NodeService::new(with(vec![away()])).unwrap();
    refused(alone.register(), ErrorKind::Unavailable, "away");
    refused(alone.ready(), ErrorKind::Unavailable, "away");

    let both = NodeService::new(with(vec![away(), here()])).unwrap();
    refused(both.register(), ErrorKind::Unavailable, "registering with backend away");
    both.ready().unwrap();
    let request = StageRequest {
        volume: volume.id.clone(),
        context: volume.context.clone(),
        staging_target_path: at(STAGING),
        capability: volume.capability.clone(),
        parameters: None,
    };
    both.node.stage(&lock(&volume.id), &request, &mut Trace::new()).unwrap();
}
