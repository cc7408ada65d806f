//! The pool as the controller sees it.

use crate::Pool;
use host::file::{FileSystemKind, space};
use volume::{
    Backend, BackendName, Capacity, CapacityQuery, ChangedBlocks, Expand, GroupSnapshots, Modify, Page, PageRequest,
    Restrictions, Result, Segments, Snapshots, Volume, VolumeGuard, VolumeId, VolumeKind, VolumeSpec,
};

const NO_BLOCK: &str = "raw block volumes need a file system that can clone files (xfs or btrfs): a fence must fork \
                        their images";
const WEAK_FENCE: &str = "loop devices on other machines are out of sight: a fence forks the image, and what a fenced \
                          node still acknowledges is lost";

impl Backend for Pool {
    fn name(&self) -> &BackendName {
        &self.config.name
    }

    fn ensure_volume(&self, guard: &VolumeGuard, spec: &VolumeSpec) -> Result<Volume> {
        self.ensure(guard, spec)
    }

    fn find_volume(&self, id: &VolumeId) -> Result<Option<Volume>> {
        self.check_reachable()?;
        self.find(id)
    }

    fn delete_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        self.delete(guard, id)
    }

    fn list_volumes(&self, page: &PageRequest) -> Result<Page<Volume>> {
        self.list(page)
    }

    fn rebuild_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        self.rebuild_damaged(guard, id)
    }

    fn total_bytes(&self) -> Result<Option<u64>> {
        self.check_reachable()?;
        Ok(Some(space(&self.dir)?.total_bytes))
    }

    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        self.check_reachable()?;
        self.capacity_of(query)
    }

    fn topology(&self) -> Result<Vec<Segments>> {
        Ok(self.own_topology())
    }

    fn check(&self) -> Result<()> {
        self.check_reachable()?;
        self.note_fullness()
    }

    fn restrictions(&self) -> Restrictions {
        let network = matches!(self.file_system, FileSystemKind::Network(_));
        Restrictions {
            copies_are_full: !self.reflink,
            no_block: self.why_not(VolumeKind::Block),
            no_fence: (network && !self.config.allow_fork_only_fence).then_some(WEAK_FENCE),
            weak_fence: network.then_some(WEAK_FENCE),
        }
    }

    fn attach(&self) -> Option<&dyn volume::Attach> {
        Some(self)
    }

    fn fence(&self) -> Option<&dyn volume::Fence> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn group_snapshots(&self) -> Option<&dyn GroupSnapshots> {
        Some(self)
    }

    fn can_clone(&self) -> bool {
        true
    }

    fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
        // Whose extents are known to mean what they say.
        let knows = matches!(self.file_system, FileSystemKind::Ext4 | FileSystemKind::Xfs | FileSystemKind::Btrfs);
        knows.then_some(self as &dyn ChangedBlocks)
    }

    fn expand(&self) -> Option<&dyn Expand> {
        Some(self)
    }

    fn health(&self) -> Option<&dyn volume::Health> {
        Some(self)
    }

    fn trim(&self) -> Option<&dyn volume::Trim> {
        Some(self)
    }

    fn modify(&self) -> Option<&dyn Modify> {
        Some(self)
    }
}

impl Pool {
    /// Why volumes of this kind are not made here.
    pub(crate) fn why_not(&self, kind: VolumeKind) -> Option<&'static str> {
        (kind == VolumeKind::Block && !self.reflink).then_some(NO_BLOCK)
    }
}
