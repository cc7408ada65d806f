//! The loop devices of a volume's images on this kernel, and whose they are.
//!
//! A loop is told by what the kernel says of it: the device and inode of its image, which cannot be used again while
//! the loop is there, and the label that it was attached with, `v<hash>@<epoch>`.

use crate::Pool;
use crate::model::{VolumeRecord, label_epoch};
use host::LoopDevice;
use host::file::Dir;
use volume::{Epoch, ImageIdentity, NodeId, Result, VolumeId};

/// A fence leaves less than one block of the loop; nothing else limits loops of this driver.
const FENCED_BELOW_BYTES: u64 = 4096;

impl Pool {
    /// Every loop of the volume's images: the current one, those of fenced holders, and whatever carries its label.
    pub(crate) fn loops_of_volume(&self, dir: &Dir, record: &VolumeRecord) -> Result<Vec<LoopDevice>> {
        let images = record.image.iter().chain(record.former.iter().filter_map(|former| former.image.as_ref()));
        let inodes: Vec<u64> = images.map(|image| image.inode).collect();
        self.loops_where(dir, |device| {
            inodes.contains(&device.backing_inode) || label_epoch(&record.id, &device.label).is_some()
        })
    }

    /// By label alone, when there is no record to read.
    pub(crate) fn loops_labelled(&self, id: &VolumeId) -> Result<Vec<LoopDevice>> {
        self.loops_where(&self.volumes, |device| label_epoch(id, &device.label).is_some())
    }

    pub(crate) fn loops_of_image(&self, dir: &Dir, image: &ImageIdentity) -> Result<Vec<LoopDevice>> {
        self.loops_where(dir, |device| device.backing_inode == image.inode)
    }

    /// Of the file system that `dir` is on.
    pub(crate) fn loops_where(&self, dir: &Dir, keep: impl Fn(&LoopDevice) -> bool) -> Result<Vec<LoopDevice>> {
        let on = dir.device()?;
        let mut loops = self.host.loops()?;
        loops.retain(|device| device.backing_device == on && keep(device));
        Ok(loops)
    }
}

/// Whether the loop passes no write on any more.
pub(crate) fn is_cut_off(device: &LoopDevice) -> bool {
    (1..FENCED_BELOW_BYTES).contains(&device.size_limit_bytes)
}

/// Whether the loop is known to be another node's.
pub(crate) fn is_of_another(record: &VolumeRecord, device: &LoopDevice, node: &NodeId) -> bool {
    let epoch = label_epoch(&record.id, &device.label);
    epoch.and_then(|epoch| record.node_of(epoch)).is_some_and(|holder| holder != node)
}

/// What a holder of `epoch` may have attached: its own loops and older ones. A loop without our label counts too, since
/// nobody knows who made it; one of a later epoch belongs to a successor and must not be touched.
pub(crate) fn is_not_newer(record: &VolumeRecord, device: &LoopDevice, epoch: Epoch) -> bool {
    label_epoch(&record.id, &device.label).is_none_or(|labelled| labelled <= epoch)
}
