//! The loop devices of a volume's images on this kernel, and whose they are.
//!
//! A loop is told by what the kernel says of it: the device and inode of its image, which cannot be used again while
//! the loop is there, and the label that it was attached with, `v<hash>@<epoch>#<pool>`.

use crate::Pool;
use crate::model::{PoolTag, VolumeRecord, label_epoch, orphan_name};
use crate::record::RecordDir;
use host::LoopDevice;
use host::file::{Access, Dir, FileSystemKind, identity, is_open_here_alone};
use std::fs::File;
use volume::{Epoch, ErrorKind, ImageIdentity, NodeId, NodeIdentity, Result, VolumeId};

/// A fence leaves less than one block of the loop; nothing else limits loops of this driver.
const FENCED_BELOW_BYTES: u64 = 4096;

/// The loops of one file system on this kernel, as one listing found them.
pub(crate) struct Listing {
    devices: Vec<LoopDevice>,
    /// Of the pool that asked.
    tag: PoolTag,
}

impl Listing {
    /// Every loop of the volume's images: the current one, those of fenced holders, and whatever carries its label.
    fn of_volume(&self, id: &VolumeId, images_there: &[u64]) -> Vec<LoopDevice> {
        let is_its = |device: &&LoopDevice| {
            images_there.contains(&device.backing_inode) || label_epoch(self.tag, id, &device.label).is_some()
        };
        self.devices.iter().filter(is_its).cloned().collect()
    }

    pub(crate) fn labelled(&self, id: &VolumeId) -> Vec<LoopDevice> {
        let is_its = |device: &&LoopDevice| label_epoch(self.tag, id, &device.label).is_some();
        self.devices.iter().filter(is_its).cloned().collect()
    }

    pub(crate) fn devices(&self) -> &[LoopDevice] {
        &self.devices
    }
}

/// Where to look for a volume's loops.
#[derive(Clone, Copy)]
pub(crate) enum Look<'a> {
    /// In a listing that was made already.
    In(&'a Listing),
    /// Among those that show a sector.
    WithContent,
    /// Among all.
    Anew,
}

/// Loops of a volume that are not known to be another node's.
pub(crate) struct Own {
    pub(crate) known: Vec<LoopDevice>,
    /// Those that carry the volume's label and whose image is none of its: of a deleted volume of this name.
    pub(crate) strays: Vec<LoopDevice>,
}

impl Pool {
    /// Of the file system that `dir` is on.
    pub(crate) fn list_loops(&self, dir: &Dir) -> Result<Listing> {
        self.on_device_of(dir, self.host.loops()?)
    }

    /// As [`Pool::list_loops`], less those that show not a sector: for a look that nobody's safety rests on.
    pub(crate) fn list_loops_with_content(&self, dir: &Dir) -> Result<Listing> {
        self.on_device_of(dir, self.host.loops_with_content()?)
    }

    fn on_device_of(&self, dir: &Dir, mut devices: Vec<LoopDevice>) -> Result<Listing> {
        let on = dir.device()?;
        devices.retain(|device| device.backing_device == on);
        Ok(Listing { devices, tag: self.tag() })
    }

    pub(crate) fn loops_of_volume(&self, dir: &Dir, record: &VolumeRecord) -> Result<Vec<LoopDevice>> {
        let images = images_there(dir, record)?;
        Ok(self.list_loops(dir)?.of_volume(&record.id, &images))
    }

    /// For a fence, which takes no word for it: it looks at every loop there is.
    pub(crate) fn list_loops_of_image(&self, dir: &Dir, image: &ImageIdentity) -> Result<Vec<LoopDevice>> {
        let mut loops = self.list_loops(dir)?.devices;
        loops.retain(|device| device.backing_inode == image.inode);
        Ok(loops)
    }

    /// As [`Pool::list_loops_of_image`], without a look at every loop where the kernel vouches that there is none.
    pub(crate) fn loops_of_image(&self, dir: &Dir, image: &ImageIdentity) -> Result<Vec<LoopDevice>> {
        if self.has_surely_no_loop(dir, image) {
            return Ok(Vec::new());
        }
        self.list_loops_of_image(dir, image)
    }

    pub(crate) fn has_surely_no_loop(&self, dir: &Dir, image: &ImageIdentity) -> bool {
        self.open_image(dir, image).is_ok_and(|file| self.is_surely_without_loop(&file))
    }

    /// A loop holds its image open. So where nobody else has the image open, there is none. On the file systems of which
    /// it is known that a file is open as often as its inode says.
    pub(crate) fn is_surely_without_loop(&self, image: &File) -> bool {
        matches!(self.file_system, FileSystemKind::Xfs | FileSystemKind::Ext4 | FileSystemKind::Btrfs)
            && is_open_here_alone(image)
    }

    /// A listing that is made here is made after the record was read.
    pub(crate) fn own_loops(
        &self,
        id: &VolumeId,
        node: Option<&NodeIdentity>,
        look: Look<'_>,
    ) -> Result<(Own, Option<RecordDir<VolumeRecord>>)> {
        let node = node.map(|node| &node.id).or(self.config.node.as_ref());
        let state = match RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str()) {
            // What is connected can be taken down without the record; a device in use is not.
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => None,
            found => found?,
        };
        let dir = state.as_ref().map_or(&self.volumes, RecordDir::dir);
        let fresh;
        let listing = match look {
            Look::In(listing) => listing,
            Look::WithContent => {
                fresh = self.list_loops_with_content(dir)?;
                &fresh
            }
            Look::Anew => {
                fresh = self.list_loops(dir)?;
                &fresh
            }
        };
        let Some(state) = state else {
            return Ok((Own { known: listing.labelled(id), strays: Vec::new() }, None));
        };
        let record = state.record();
        let there = images_there(state.dir(), record)?;
        let mut loops = listing.of_volume(id, &there);
        loops.retain(|device| node.is_none_or(|node| !is_of_another(self.tag(), record, device, node)));
        let is_known = |device: &LoopDevice| {
            let epoch = label_epoch(self.tag(), id, &device.label);
            there.contains(&device.backing_inode) || epoch.is_some_and(|epoch| record.node_of(epoch).is_some())
        };
        let (known, strays) = loops.into_iter().partition(is_known);
        Ok((Own { known, strays }, Some(state)))
    }
}

impl Own {
    pub(crate) fn all(self) -> impl Iterator<Item = LoopDevice> {
        self.known.into_iter().chain(self.strays)
    }
}

/// The inodes of the volume's images that are still there. Of one that is gone no loop is left, unless it carries the
/// volume's label, and its number may be that of somebody else's file by now.
pub(crate) fn images_there(dir: &Dir, record: &VolumeRecord) -> Result<Vec<u64>> {
    let images = record.image.iter().chain(record.former.iter().filter_map(|former| former.image.as_ref()));
    let mut inodes = Vec::new();
    for image in images {
        for name in [Some(image.name.clone()), orphan_name(&image.name)].into_iter().flatten() {
            match dir.open_file(&name, Access::Read) {
                Ok(file) => {
                    let found = identity(&file)?;
                    if (found.inode, found.generation) == (image.inode, image.generation) {
                        inodes.push(image.inode);
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(inodes)
}

/// Whether the loop passes no write on any more.
pub(crate) fn is_cut_off(device: &LoopDevice) -> bool {
    (1..FENCED_BELOW_BYTES).contains(&device.size_limit_bytes)
}

/// Whether the loop is known to be another node's.
pub(crate) fn is_of_another(tag: PoolTag, record: &VolumeRecord, device: &LoopDevice, node: &NodeId) -> bool {
    let epoch = label_epoch(tag, &record.id, &device.label);
    epoch.and_then(|epoch| record.node_of(epoch)).is_some_and(|holder| holder != node)
}

/// What a holder of `epoch` may have attached: its own loops and older ones. A loop without our label counts too, since
/// nobody knows who made it; one of a later epoch belongs to a successor and must not be touched.
pub(crate) fn is_not_newer(tag: PoolTag, record: &VolumeRecord, device: &LoopDevice, epoch: Epoch) -> bool {
    label_epoch(tag, &record.id, &device.label).is_none_or(|labelled| labelled <= epoch)
}

#[cfg(test)]
mod tests {
    use crate::model::{Former, VolumeRecord};
    use crate::record::RecordDir;
    use crate::testing::lab;
    use crate::{Pool, PoolConfig};
    use host::LoopRequest;
    use host::file::Access;
    use std::sync::Arc;
    use volume::{
        Attach, AttachRequest, Backend, Connector, Epoch, Fence, FenceHow, FsType, Holder, ImageIdentity, LockTable,
    };

    /// What the short look rests on: a loop keeps its image open, read-only ones too, whoever attached it and however
    /// it is labelled.
    #[test]
    fn a_loop_has_its_image_open() {
        for fs in [FsType::Xfs, FsType::Ext4, FsType::Btrfs] {
            let Some((s, pool)) = lab("a_loop_has_its_image_open", fs) else { return };
            let id = s.create("v").id;
            let state = RecordDir::<VolumeRecord>::find(&pool.volumes, id.as_str()).unwrap().unwrap();
            let image = state.record().image.clone().unwrap();
            let path = state.dir().path().join(&image.name);
            assert!(pool.is_surely_unconnected(&id).unwrap(), "{fs}");
            for read_only in [false, true] {
                let request = LoopRequest { image: &path, identity: &image, label: "somebody else's", read_only };
                let device = pool.host.attach_loop(&request).unwrap();
                assert!(!pool.is_surely_unconnected(&id).unwrap(), "{fs}, read-only: {read_only}");
                assert!(pool.loops_of_image(state.dir(), &image).unwrap().contains(&device), "{fs}");
                pool.host.detach_loop(&device).unwrap();
                // The kernel lets go of the file a moment after the loop.
                let is_alone = |_| {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    pool.is_surely_unconnected(&id).unwrap()
                };
                assert!((0..500).any(is_alone), "{fs}, read-only: {read_only}");
            }
        }
    }

    /// An image that was emptied (by whatever accident) leaves its loop without a sector.
    #[test]
    fn a_loop_without_content_is_still_seen() {
        let Some((s, pool)) = lab("a_loop_without_content_is_still_seen", FsType::Xfs) else { return };
        let (id, n1) = (s.create("v").id, s.register("n1"));
        s.attach(&id, &n1).unwrap();
        let device = s.connect(&id, &n1, None).unwrap();
        let state = RecordDir::<VolumeRecord>::find(&pool.volumes, id.as_str()).unwrap().unwrap();
        let image = state.record().image.clone().unwrap();
        let file = state.dir().open_file(&image.name, Access::ReadWrite).unwrap();
        file.set_len(0).unwrap();
        drop(file);
        let attached = pool.loops_of_image(state.dir(), &image).unwrap().remove(0);
        pool.host.refresh_loop(&attached).unwrap();
        assert!(!pool.host.loops_with_content().unwrap().contains(&attached));
        assert_eq!(pool.observe(&id).unwrap(), Some(device));
        s.disconnect(&id, &n1);
        assert_eq!(pool.observe(&id).unwrap(), None);
    }

    /// Volumes of one name have one hash, in whichever pool.
    #[test]
    fn pools_on_one_file_system_keep_their_hands_off_each_other() {
        let test = "pools_on_one_file_system_keep_their_hands_off_each_other";
        let Some((s, pool)) = lab(test, FsType::Xfs) else { return };
        let beside = pool.dir.path().parent().unwrap().join("beside");
        let open = |directory: &std::path::Path| {
            let config = PoolConfig::new(pool.config.name.clone(), directory);
            Arc::new(Pool::open(config, Arc::clone(&pool.host), host::Effects::default()).unwrap())
        };
        let other = open(&beside);
        let (id, n1) = (s.create("v").id, s.register("n1"));
        s.attach(&id, &n1).unwrap();
        let device = s.connect(&id, &n1, None).unwrap();
        other.register(&n1).unwrap();
        let guard = LockTable::default().try_lock([id.as_str()]).unwrap();
        let spec = s.spec("v");
        // Not yet there, there and free, and held: it sees its own loops alone.
        let sees_nothing = |when: &str| {
            assert_eq!(other.observe_all().unwrap(), [], "{when}");
            assert_eq!(other.connections(&id).unwrap(), [], "{when}");
            other.disconnect(&guard, &id, &n1).unwrap();
            assert_eq!(pool.observe(&id).unwrap().as_ref(), Some(&device), "{when}");
        };
        sees_nothing("without such a volume");
        let made = Backend::ensure_volume(&*other, &guard, &spec).unwrap();
        assert_eq!((&made.id, made.epoch), (&id, Epoch(0)), "the other pool's epochs are not its own");
        sees_nothing("with a volume of that name");
        let request = AttachRequest { volume: &id, node: &n1.id, read_only: false };
        Attach::attach(&*other, &guard, &request).unwrap();
        Attach::detach(&*other, &guard, &id, Some(&n1.id)).unwrap();
        Attach::attach(&*other, &guard, &request).unwrap();
        let report = Fence::fence(&*other, &n1.id, None, "test", FenceHow::Enforce).unwrap();
        assert!(report.volumes[0].proof.as_ref().unwrap().evidence[0].starts_with("no loop device"), "{report:?}");
        Fence::unfence(&*other, &n1.id, None, "test").unwrap();
        sees_nothing("after a fence");
        // The negative control: the very same pool, opened once more.
        assert_eq!(open(pool.dir.path()).observe(&id).unwrap(), Some(device));
        s.disconnect(&id, &n1);
        assert_eq!(pool.observe(&id).unwrap(), None);
    }

    /// A driver of before labels named their pool was replaced by this one while its volumes were in use.
    #[test]
    fn a_loop_of_before_labels_named_their_pool() {
        let Some((s, pool)) = lab("a_loop_of_before_labels_named_their_pool", FsType::Xfs) else { return };
        let (id, n1) = (s.create("v").id, s.register("n1"));
        let epoch = s.attach(&id, &n1).unwrap().epoch;
        let state = RecordDir::<VolumeRecord>::find(&pool.volumes, id.as_str()).unwrap().unwrap();
        let image = state.record().image.clone().unwrap();
        let path = state.dir().path().join(&image.name);
        let label = format!("{}@{epoch}", id.as_str().split_once('.').unwrap().1);
        let request = LoopRequest { image: &path, identity: &image, label: &label, read_only: false };
        let old = pool.host.attach_loop(&request).unwrap();
        let volume::Connected::Device { number, epoch: seen, .. } = s.connect(&id, &n1, None).unwrap() else {
            panic!()
        };
        assert_eq!((number, seen), (old.number, epoch), "it is found, and not attached twice");
        s.disconnect(&id, &n1);
        assert_eq!(pool.list_loops(&pool.volumes).unwrap().labelled(&id), []);
    }

    /// An orphan is removed in time, and its inode number goes to the next image that is made.
    #[test]
    fn the_number_of_an_inode_that_is_gone_means_nothing() {
        let Some((s, pool)) = lab("the_number_of_an_inode_that_is_gone_means_nothing", FsType::Xfs) else { return };
        let (first, second) = (s.create("first").id, s.create("second").id);
        let (n1, n2) = (s.register("n1"), s.register("n2"));
        s.attach(&second, &n2).unwrap();
        let device = s.connect(&second, &n2, None).unwrap();
        let reused = RecordDir::<VolumeRecord>::find(&pool.volumes, second.as_str()).unwrap().unwrap();
        let inode = reused.record().image.as_ref().unwrap().inode;
        RecordDir::<VolumeRecord>::change(&pool.volumes, first.as_str(), |state| {
            let image = ImageIdentity { name: "image.0000000000000007".to_owned(), inode, generation: 1 };
            let holder = Holder { node: n1.id.clone(), incarnation: n1.incarnation };
            let former = vec![Former { holder, epoch: Epoch(7), image: Some(image), fenced_at_ms: 0 }];
            Ok(Some(VolumeRecord { former, ..state.record().clone() }))
        })
        .unwrap();
        assert_eq!(pool.observe(&first).unwrap(), None, "it is another volume's");
        s.disconnect(&first, &n1);
        assert_eq!(pool.observe(&second).unwrap(), Some(device), "and it is still there");
        s.disconnect(&second, &n2);
    }

    /// A fenced node keeps its device while the volume is deleted and another of the same name is made.
    #[test]
    fn a_new_volume_of_an_old_name_is_not_taken_for_the_old() {
        let Some((s, pool)) = lab("a_new_volume_of_an_old_name_is_not_taken_for_the_old", FsType::Xfs) else { return };
        let id = s.create("v").id;
        let (n1, n2) = (s.register("n1"), s.register("n2"));
        s.attach(&id, &n1).unwrap();
        let old = s.connect(&id, &n1, None).unwrap();
        let volume::Connected::Device { path, epoch, .. } = &old else { panic!("{old:?}") };
        // As a mount has it.
        let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_EXCL;
        let mounted = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()).unwrap();
        Fence::fence(&*pool, &n1.id, None, "test", FenceHow::Enforce).unwrap().volumes.remove(0).proof.unwrap();
        s.delete(&id).unwrap();
        s.create("v");
        let granted = s.attach(&id, &n2).unwrap();
        assert!(granted.epoch > *epoch, "both have epoch {epoch}");
        let new = s.connect(&id, &n2, None).unwrap();
        assert_ne!(new, old);
        assert_eq!(pool.observe(&id).unwrap(), Some(new));
        // What the old node still has in use keeps nobody from disconnecting and detaching the new volume.
        s.disconnect(&id, &n2);
        s.detach(&id, Some(&n2)).unwrap();
        drop(mounted);
        s.disconnect(&id, &n2);
        assert_eq!(pool.list_loops(&pool.volumes).unwrap().labelled(&id), []);
    }
}
