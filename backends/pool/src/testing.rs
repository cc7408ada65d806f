//! What the tests of several modules use.

use crate::model::VolumeRecord;
use crate::{Pool, PoolConfig};
use conformance::backend::Subject;
use conformance::scratch::{ScratchPool, set_image_bytes};
use host::{Effects, LinuxHost};
use std::sync::Arc;
use volume::{BackendName, Epoch, FsType, Parameters, VolumeId, VolumeKind, VolumeName};

/// A pool on a file system of its own; says why and gives `None` on a machine that cannot have one.
pub(crate) fn lab(test: &str, fs: FsType) -> Option<(Subject, Arc<Pool>)> {
    let scratch = match ScratchPool::new(fs, 1 << 30) {
        Ok(scratch) => scratch,
        Err(reason) => {
            println!("SKIPPED: {test}: {reason}");
            return None;
        }
    };
    let config = PoolConfig::new(BackendName::parse("pool").unwrap(), scratch.path().join("pool"));
    let pool = Arc::new(Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap());
    let (another, volumes) = (pool.clone(), scratch.path().join("pool/volumes"));
    let subject = Subject {
        backend: pool.clone(),
        connector: pool.clone(),
        another: Box::new(move || another.clone()),
        write: conformance::backend::write_device(),
        set_image_bytes: Box::new(move |id, bytes| set_image_bytes(&volumes.join(id.as_str()), bytes)),
        keep: Box::new(scratch),
    };
    Some((subject, pool))
}

/// A fresh volume's record.
pub(crate) fn record(name: &str) -> VolumeRecord {
    let name = VolumeName::parse(name).unwrap();
    VolumeRecord {
        id: VolumeId::of_name(&BackendName::parse("pool").unwrap(), &name),
        name,
        size_bytes: 64 << 20,
        kind: VolumeKind::FileSystem(FsType::Ext4),
        thick: false,
        source: None,
        parameters: Parameters::default(),
        mutable: Default::default(),
        created_at_ms: 0,
        epoch: Epoch(0),
        image: None,
        fs_uuid: None,
        staged: false,
        attachment: None,
        releasing: false,
        connected: false,
        former: Vec::new(),
        deleting: false,
    }
}
