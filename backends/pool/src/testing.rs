//! What the tests of several modules use.

use crate::model::VolumeRecord;
use volume::{BackendName, Epoch, FsType, Parameters, VolumeId, VolumeKind, VolumeName};

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
