//! A backend in memory that notes what is asked of it, keeps signs of life, and can be out of reach.

use super::world::Journal;
use memory::{MemoryBackend, MemoryConnector};
use std::collections::BTreeMap;
use std::sync::Mutex;
use volume::{
    Attach, AttachContext, AttachRequest, Backend, BackendName, Capacity, CapacityQuery, Connector, Error, ErrorKind,
    Fence, FenceHow, FenceReport, Incarnation, NodeId, NodeIdentity, NodeRecord, Orphan, Page, PageRequest,
    Restrictions, Result, Segments, Volume, VolumeGuard, VolumeId, VolumeSpec,
};

pub(super) struct Shelf {
    pub(super) memory: MemoryBackend,
    pub(super) connector: MemoryConnector,
    pub(super) state: Mutex<State>,
    journal: Journal,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) is_away: bool,
    pub(super) signs: BTreeMap<NodeId, u64>,
    /// Fences are answered, and leave nothing.
    pub(super) lies: bool,
}

impl Shelf {
    pub(super) fn new(name: &str, journal: Journal) -> Self {
        let name = BackendName::parse(name).unwrap();
        let memory = MemoryBackend::new(name, std::sync::Arc::default(), 4 << 30, None);
        let connector = memory.connector();
        Self { memory, connector, state: Mutex::default(), journal }
    }

    pub(super) fn register(&self, node: &NodeId, incarnation: Incarnation) {
        let identity = NodeIdentity { id: node.clone(), incarnation, boot_id: incarnation.to_string() };
        self.connector.register(&identity).unwrap();
    }

    fn reach(&self) -> Result<()> {
        match self.state.lock().unwrap().is_away {
            true => Err(Error::new(ErrorKind::Unavailable, "it is away")),
            false => Ok(()),
        }
    }
}

impl Backend for Shelf {
    fn name(&self) -> &BackendName {
        self.memory.name()
    }
    fn ensure_volume(&self, guard: &VolumeGuard, spec: &VolumeSpec) -> Result<Volume> {
        self.memory.ensure_volume(guard, spec)
    }
    fn find_volume(&self, id: &VolumeId) -> Result<Option<Volume>> {
        self.reach()?;
        self.memory.find_volume(id)
    }
    fn delete_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        self.memory.delete_volume(guard, id)
    }
    fn list_volumes(&self, page: &PageRequest) -> Result<Page<Volume>> {
        self.memory.list_volumes(page)
    }
    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        self.memory.capacity(query)
    }
    fn topology(&self) -> Result<Vec<Segments>> {
        self.memory.topology()
    }
    fn check(&self) -> Result<()> {
        self.reach()
    }
    fn restrictions(&self) -> Restrictions {
        self.memory.restrictions()
    }
    fn attach(&self) -> Option<&dyn Attach> {
        Some(self)
    }
    fn fence(&self) -> Option<&dyn Fence> {
        Some(self)
    }
}

impl Attach for Shelf {
    fn attach(&self, guard: &VolumeGuard, request: &AttachRequest<'_>) -> Result<AttachContext> {
        Attach::attach(&self.memory, guard, request)
    }
    fn detach(&self, guard: &VolumeGuard, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        self.memory.detach(guard, id, node)
    }
    fn nodes(&self) -> Result<Vec<NodeRecord>> {
        self.reach()?;
        self.memory.nodes()
    }
    fn held_by(&self, node: &NodeId) -> Result<Vec<Volume>> {
        self.reach()?;
        self.journal.note(format!("read {node}"));
        self.memory.held_by(node)
    }
    fn signs_of_life(&self) -> Result<Option<Vec<(NodeId, u64)>>> {
        self.reach()?;
        Ok(Some(self.state.lock().unwrap().signs.clone().into_iter().collect()))
    }
}

impl Fence for Shelf {
    fn fence(&self, node: &NodeId, expected: Option<Incarnation>, actor: &str, how: FenceHow) -> Result<FenceReport> {
        self.reach()?;
        assert!(expected.is_some(), "a supervisor never fences just any life");
        self.journal.note(format!("fence {node}"));
        if self.state.lock().unwrap().lies {
            let node = self.memory.nodes()?.into_iter().find(|record| record.identity.id == *node).unwrap();
            return Ok(FenceReport { node, volumes: vec![] });
        }
        Fence::fence(&self.memory, node, expected, actor, how)
    }
    fn unfence(&self, node: &NodeId, expected: Option<Incarnation>, actor: &str) -> Result<()> {
        self.reach()?;
        assert!(expected.is_some(), "a supervisor never lets just any life in");
        self.journal.note(format!("unfence {node}"));
        self.memory.unfence(node, expected, actor)
    }
    fn orphans(&self) -> Result<Vec<Orphan>> {
        self.memory.orphans()
    }
    fn remove_orphans(&self, volume: Option<&VolumeId>) -> Result<Vec<Orphan>> {
        self.memory.remove_orphans(volume)
    }
}
