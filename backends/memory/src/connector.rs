//! The node's half: loop devices of the fake host, labelled `<volume id>@<epoch>`.

use crate::now_ms;
use crate::state::{Image, State, VolumeRecord};
use crate::{MemoryBackend, Storage};
use host::{Host, LoopDevice, LoopRequest};
use std::sync::Arc;
use volume::{
    Attach, Attachment, ConnectRequest, Connected, Connector, Epoch, Error, ErrorKind, HealthProblem, NodeIdentity,
    NodeRecord, NodeState, Result, Segments, Volume, VolumeGuard, VolumeHealth, VolumeId, VolumeKind,
};

pub struct MemoryConnector {
    backend: MemoryBackend,
    storage: Arc<Storage>,
}

impl MemoryConnector {
    pub(crate) fn new(backend: MemoryBackend) -> Self {
        Self { storage: Arc::clone(&backend.storage), backend }
    }

    /// This volume's loops, the latest epoch last.
    fn loops(&self, id: &VolumeId) -> Result<Vec<(Epoch, LoopDevice)>> {
        let loops = self.storage.host.loops()?.into_iter();
        let own = |device: LoopDevice| match parse_label(&device.label) {
            Some((volume, epoch)) if volume == *id => Some((epoch, device)),
            _ => None,
        };
        let mut found: Vec<_> = loops.filter_map(own).collect();
        found.sort_by_key(|(epoch, _)| *epoch);
        Ok(found)
    }

    fn attach_loop(
        &self,
        id: &VolumeId,
        request: &ConnectRequest<'_>,
        epoch: Epoch,
        image: &Image,
    ) -> Result<LoopDevice> {
        let is_this =
            |device: &LoopDevice| device.backing_inode == image.identity.inode && device.size_limit_bytes == 0;
        match self.loops(id)?.into_iter().find(|(found, device)| *found == epoch && is_this(device)) {
            Some((_, device)) if device.read_only == request.read_only => Ok(device),
            Some((_, device)) => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "volume {id} is connected as {} with another access; disconnect it first",
                    device.path.display()
                ),
            )),
            None => self.storage.host.attach_loop(&LoopRequest {
                image: &image.path,
                identity: &image.identity,
                label: &format!("{id}@{epoch}"),
                read_only: request.read_only,
            }),
        }
    }
}

impl Connector for MemoryConnector {
    fn register(&self, node: &NodeIdentity) -> Result<NodeRecord> {
        let mut state = self.storage.state();
        let earlier = state.nodes.get(&node.id).filter(|record| record.identity.incarnation == node.incarnation);
        let record = NodeRecord {
            identity: node.clone(),
            state: earlier.map_or(NodeState::Live, |record| record.state.clone()),
            topology: Segments::default(),
            registered_at_ms: earlier.map_or_else(now_ms, |record| record.registered_at_ms),
        };
        state.nodes.insert(node.id.clone(), record.clone());
        Ok(record)
    }

    fn show_life(&self, node: &NodeIdentity) -> Result<()> {
        *self.storage.state().signs_of_life.entry(node.id.clone()).or_default() += 1;
        Ok(())
    }

    fn grants(&self) -> Option<&dyn Attach> {
        Some(&self.backend)
    }

    fn volume(&self, id: &VolumeId) -> Result<Volume> {
        self.storage.state().volume(id).map(|record| record.volume.clone())
    }

    fn connect(&self, guard: &VolumeGuard, request: &ConnectRequest<'_>) -> Result<Connected> {
        let id = request.volume;
        guard.check(id.as_str())?;
        let grant = granted(&self.storage.state(), request)?;
        let Some((epoch, image)) = grant else {
            return Ok(Connected::Directory { path: self.storage.data_directory(id) });
        };
        let device = self.attach_loop(id, request, epoch, &image)?;
        // A fence that ran meanwhile did not see this loop, or has limited it.
        let still = granted(&self.storage.state(), request);
        if !matches!(&still, Ok(Some((now, same))) if *now == epoch && *same == image) {
            self.storage.host.detach_loop(&device)?;
            still?;
            return Err(Error::new(ErrorKind::Held, format!("volume {id} was given away while it was connected")));
        }
        Ok(connected(epoch, device))
    }

    fn disconnect(&self, guard: &VolumeGuard, id: &VolumeId, node: &NodeIdentity) -> Result<()> {
        guard.check(id.as_str())?;
        let held = self.storage.state().volumes.get(id).and_then(|record| record.volume.attachment.clone());
        let (own, others) = match &held {
            Some(held) if held.holder.node == node.id => (Some(held.epoch), None),
            Some(held) => (None, Some(held.epoch)),
            None => (None, None),
        };
        for (epoch, device) in self.loops(id)? {
            if Some(epoch) == others {
                continue;
            }
            match self.storage.host.detach_loop(&device) {
                // What an earlier holder has still mounted is its to let go of.
                Err(error) if error.kind() == ErrorKind::FailedPrecondition && own.is_some_and(|own| own != epoch) => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn connections(&self, id: &VolumeId) -> Result<Vec<Connected>> {
        let loops = self.loops(id)?;
        if !loops.is_empty() {
            return Ok(loops.into_iter().rev().map(|(epoch, device)| connected(epoch, device)).collect());
        }
        let state = self.storage.state();
        let is_directory = state.volumes.get(id).is_some_and(|record| record.volume.kind == VolumeKind::Directory);
        Ok(is_directory.then(|| Connected::Directory { path: self.storage.data_directory(id) }).into_iter().collect())
    }

    fn observe_all(&self) -> Result<Vec<(VolumeId, Connected)>> {
        let own = |device: LoopDevice| {
            let (id, epoch) = parse_label(&device.label)?;
            (id.backend() == self.storage.name.as_str()).then(|| (id, connected(epoch, device)))
        };
        Ok(self.storage.host.loops()?.into_iter().filter_map(own).collect())
    }

    fn refresh_size(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<u64> {
        guard.check(id.as_str())?;
        let volume = self.volume(id)?;
        if volume.kind == VolumeKind::Directory {
            return Ok(volume.size_bytes);
        }
        let (_, device) = self
            .loops(id)?
            .pop()
            .ok_or_else(|| Error::new(ErrorKind::FailedPrecondition, format!("volume {id} is not connected here")))?;
        self.storage.host.refresh_loop(&device)?;
        self.storage.host.device_size(&device.path)
    }

    /// Images are formatted when they are made and never after, so there is nothing to note.
    fn mark_staged(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        guard.check(id.as_str())?;
        self.storage.state().volume(id).map(|_| ())
    }

    fn storage_health(&self) -> Result<Vec<HealthProblem>> {
        Ok(self.storage.full(&self.storage.state()).into_iter().collect())
    }

    fn volume_health(&self, id: &VolumeId) -> Result<VolumeHealth> {
        self.storage.health_of(id)
    }

    /// Of the mutable parameters and the grant, which is all that the node looks at again.
    fn record_mark(&self, id: &VolumeId) -> Result<Option<u64>> {
        let state = self.storage.state();
        let record = state.volume(id)?;
        Ok(Some(record.modified << 32 | record.volume.epoch.0 & u64::from(u32::MAX)))
    }

    fn max_volumes(&self) -> Option<u64> {
        self.storage.max_volumes
    }

    fn topology(&self) -> Result<Segments> {
        Ok(Segments::default())
    }
}

/// The epoch and image that the record grants to this node; `None` for a directory. `Held` when it grants nothing.
fn granted(state: &State, request: &ConnectRequest<'_>) -> Result<Option<(Epoch, Image)>> {
    let id = request.volume;
    let refused = |why: String| Err(Error::new(ErrorKind::Held, format!("volume {id} is not connected: {why}")));
    let VolumeRecord { volume, image, .. } = state.volume(id)?;
    let node = state.node(&request.node.id)?;
    if node.identity.incarnation != request.node.incarnation || node.is_fenced() {
        return refused(format!("node {} is fenced, or has started a new life", request.node.id));
    }
    let Some(image) = image else { return Ok(None) };
    let Some(Attachment { holder, epoch, read_only, proof, .. }) = &volume.attachment else {
        return refused("no node holds it; publish it to this node first".to_owned());
    };
    if (&holder.node, holder.incarnation) != (&request.node.id, request.node.incarnation) || proof.is_some() {
        return refused(format!("{holder} holds it (epoch {epoch})"));
    }
    if let Some(context) = request.context.filter(|context| context.epoch != *epoch) {
        return refused(format!("the call is of epoch {} and the volume is at {epoch}", context.epoch));
    }
    if *read_only && !request.read_only {
        return refused("it is granted read-only".to_owned());
    }
    Ok(Some((*epoch, image.clone())))
}

fn connected(epoch: Epoch, device: LoopDevice) -> Connected {
    Connected::Device { path: device.path, number: device.number, read_only: device.read_only, epoch }
}

fn parse_label(label: &str) -> Option<(VolumeId, Epoch)> {
    let (id, epoch) = label.split_once('@')?;
    Some((VolumeId::parse(id).ok()?, Epoch(epoch.parse().ok()?)))
}
