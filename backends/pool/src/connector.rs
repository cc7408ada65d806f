//! The node's half: from a grant to a loop device on this machine.
//!
//! A grant is read before the loop is attached and once more after. A fence or a detach writes its mark before it looks for
//! loops; so either it sees the loop, or the second reading here sees the mark and lets go.

use crate::attach::no_volume;
use crate::config::DEFAULT_LEASE_MS;
use crate::create::DATA;
use crate::loops::{Look, is_cut_off};
use crate::model::{VolumeRecord, label_epoch, loop_label};
use crate::record::RecordDir;
use crate::{Pool, Scope};
use host::{LoopDevice, LoopRequest};
use std::time::Duration;
use volume::{
    Attachment, ConnectRequest, Connected, Connector, Error, ErrorKind, HealthProblem, Holder, ImageIdentity,
    NodeIdentity, NodeRecord, Result, Segments, Volume, VolumeGuard, VolumeHealth, VolumeId,
};

impl Connector for Pool {
    fn register(&self, node: &NodeIdentity) -> Result<NodeRecord> {
        self.register_node(node, &Connector::topology(self)?)
    }

    fn show_life(&self, node: &NodeIdentity) -> Result<()> {
        self.mark_alive(&node.id)
    }

    fn lease(&self) -> Option<Duration> {
        let is_alone =
            !self.sees_all_loops() && self.config.allow_fork_only_fence && self.config.scope == Scope::Shared;
        let ms = self.config.shut_down_after_ms.or(is_alone.then_some(DEFAULT_LEASE_MS));
        ms.filter(|ms| *ms > 0).map(Duration::from_millis)
    }

    fn grants(&self) -> Option<&dyn volume::Attach> {
        Some(self)
    }

    fn volume(&self, id: &VolumeId) -> Result<Volume> {
        self.check_reachable()?;
        // Not as it is listed: a record that cannot be read says nothing of the volume's kind.
        match RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())? {
            Some(state) if !state.record().deleting => Ok(self.to_volume(state.dir(), state.record())),
            _ => Err(no_volume(id)),
        }
    }

    fn connect(&self, guard: &VolumeGuard, request: &ConnectRequest<'_>) -> Result<Connected> {
        guard.check(request.volume.as_str())?;
        self.check_reachable()?;
        let granted = self.granted(request, false)?;
        let Some((held, image)) = &granted.device else {
            granted.state.dir().sync()?;
            let data = granted.state.dir().child(DATA)?;
            return Ok(Connected::Directory { path: data.path().to_owned() });
        };
        match self.describe_current(&granted.state) {
            // A full pool is no reason to keep a workload down.
            Err(error) if error.kind() == ErrorKind::Exhausted => {
                tracing::warn!(volume = %request.volume, error = error.chain(), "its image does not say what it is");
            }
            described => described.map_err(|error| self.granted(request, false).err().unwrap_or(error))?,
        }
        if !self.sees_all_loops() {
            self.note_connected(request, true)?;
        }
        let attached = self.attach_image(&granted.state, held, image, request.read_only);
        let (device, is_new) = match attached {
            Ok(attached) => attached,
            // A fence may have moved the image away: then that is what to say.
            Err(error) => return Err(self.granted(request, false).err().unwrap_or(error)),
        };
        // This look is the one that what is written from now on depends on, so what it sees has to last.
        let again = self.granted(request, true).and_then(|again| match &again.device {
            Some((held_now, image_now)) if held_now.epoch == held.epoch && image_now == image => Ok(()),
            _ => Err(refused(request, "it was fenced or moved while it was connected".to_owned())),
        });
        if let Err(error) = again {
            if is_new && let Err(left) = self.host.detach_loop(&device) {
                tracing::error!(volume = %request.volume, error = left.chain(), "a refused connection stays behind");
            }
            return Err(error);
        }
        Ok(Connected::Device {
            path: device.path,
            number: device.number,
            read_only: device.read_only,
            epoch: held.epoch,
        })
    }

    fn disconnect(&self, guard: &VolumeGuard, id: &VolumeId, node: &NodeIdentity) -> Result<()> {
        guard.check(id.as_str())?;
        let (own, _) = self.own_loops(id, Some(node), Look::Anew)?;
        for device in own.known {
            self.host.detach_loop(&device)?;
        }
        for device in own.strays {
            if let Err(error) = self.host.detach_loop(&device) {
                tracing::info!(volume = %id, error = error.chain(), "a device of an earlier volume of this name stays");
            }
        }
        if !self.sees_all_loops() {
            RecordDir::<VolumeRecord>::change(&self.volumes, id.as_str(), |state| {
                let record = state.record();
                let own = record.attachment.as_ref().is_some_and(|held| held.holder.node == node.id);
                Ok((own && record.connected).then(|| VolumeRecord { connected: false, ..record.clone() }))
            })?;
        }
        Ok(())
    }

    fn connections(&self, id: &VolumeId) -> Result<Vec<Connected>> {
        let found = self.connections_in(id, Look::WithContent)?;
        // A loop whose image was emptied is connected too, and has that image open.
        if found.is_empty() && !self.is_surely_unconnected(id)? {
            return self.connections_in(id, Look::Anew);
        }
        Ok(found)
    }

    /// Of an image that nobody has open no loop is there, and so no mount. A fenced holder's image is another one; then
    /// the long look decides.
    fn is_surely_unconnected(&self, id: &VolumeId) -> Result<bool> {
        let Some(state) = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())? else { return Ok(false) };
        let record = state.record();
        let image = record.image.as_ref().filter(|_| record.former.is_empty() && record.kind.is_single_node());
        Ok(image.is_some_and(|image| self.has_surely_no_loop(state.dir(), image)))
    }

    fn observe_all(&self) -> Result<Vec<(VolumeId, Connected)>> {
        let listing = self.list_loops(&self.volumes)?;
        let mut ids: Vec<VolumeId> = Vec::new();
        for device in listing.devices() {
            let short = device.label.split_once('@').map_or("", |(short, _)| short);
            ids.extend(VolumeId::parse(&format!("{}.{short}", self.config.name)).ok());
        }
        ids.sort_unstable();
        ids.dedup();
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            for connected in self.connections_in(&id, Look::In(&listing))? {
                found.push((id.clone(), connected));
            }
        }
        Ok(found)
    }

    fn refresh_size(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<u64> {
        guard.check(id.as_str())?;
        let state = RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str())?.ok_or_else(|| no_volume(id))?;
        let record = state.record();
        let current = record.image.as_ref().map(|image| image.inode);
        for device in self.own_loops(id, None, Look::WithContent)?.0.all() {
            if Some(device.backing_inode) == current && !is_cut_off(&device) {
                self.host.refresh_loop(&device)?;
            }
        }
        Ok(record.size_bytes)
    }

    /// The grant has done so already; not so those of earlier versions of this driver.
    fn mark_staged(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<()> {
        guard.check(id.as_str())?;
        let state = RecordDir::<VolumeRecord>::change_or_peek(&self.volumes, id.as_str(), |state| {
            let record = state.record();
            Ok((!record.staged).then(|| VolumeRecord { staged: true, ..record.clone() }))
        })?;
        state.map(drop).ok_or_else(|| no_volume(id))
    }

    fn storage_health(&self) -> Result<Vec<HealthProblem>> {
        self.pool_health()
    }

    fn volume_health(&self, id: &VolumeId) -> Result<VolumeHealth> {
        volume::Health::volume_health(self, id)
    }

    fn record_mark(&self, id: &VolumeId) -> Result<Option<u64>> {
        self.mark_of(id)
    }

    fn max_volumes(&self) -> Option<u64> {
        self.config.max_volumes_per_node
    }

    fn topology(&self) -> Result<Segments> {
        let mut all = Segments::default();
        for segments in self.own_topology() {
            all.0.extend(segments.0);
        }
        Ok(all)
    }
}

/// A grant to the node that asks, as its record says now.
struct Granted {
    state: RecordDir<VolumeRecord>,
    /// `None` for directory volumes.
    device: Option<(Attachment, ImageIdentity)>,
}

impl Pool {
    /// `Held` unless the record grants the volume to this incarnation under the epoch of the context.
    fn granted(&self, request: &ConnectRequest<'_>, makes_durable: bool) -> Result<Granted> {
        let plan = |state: &RecordDir<VolumeRecord>| {
            if state.record().deleting {
                return Err(no_volume(request.volume));
            }
            // After the volume's record: a fence writes here first.
            self.check_life(request)?;
            self.check_grant(state, request)
        };
        let (volumes, id) = (&self.volumes, request.volume.as_str());
        let adopted = match makes_durable {
            true => RecordDir::<VolumeRecord>::change(volumes, id, plan),
            false => RecordDir::<VolumeRecord>::change_or_peek(volumes, id, plan),
        };
        let state = adopted?.ok_or_else(|| no_volume(request.volume))?;
        let device = match (&state.record().attachment, &state.record().image) {
            (Some(held), Some(image)) => Some((held.clone(), image.clone())),
            _ if !state.record().kind.is_single_node() => None,
            _ => return Err(refused(request, "its record names no image".to_owned())),
        };
        Ok(Granted { state, device })
    }

    fn check_life(&self, request: &ConnectRequest<'_>) -> Result<()> {
        let node = match self.find_node(&request.node.id)? {
            Some(node) if node.identity.incarnation == request.node.incarnation => node,
            _ => {
                let what = format!("incarnation {} of the node is not the registered one", request.node.incarnation);
                return Err(refused(request, format!("{what}; restart the driver of this node")));
            }
        };
        if node.is_fenced() {
            return Err(refused(request, "the node is fenced; it comes back once its old mounts are gone".to_owned()));
        }
        Ok(())
    }

    /// A record to swap to when the grant is of this node's earlier life, which is over: the orchestrator's own record
    /// of the attachment outlived the reboot, and it will not ask for another.
    fn check_grant(
        &self,
        state: &RecordDir<VolumeRecord>,
        request: &ConnectRequest<'_>,
    ) -> Result<Option<VolumeRecord>> {
        let record = state.record();
        if !record.kind.is_single_node() {
            return Ok(None);
        }
        let refuse = |what: String| Err(refused(request, what));
        let Some(held) = &record.attachment else {
            return refuse("it is granted to no node; publish it to this node first".to_owned());
        };
        if held.holder.node != request.node.id {
            return refuse(format!("node {} holds it (epoch {})", held.holder.node, held.epoch));
        }
        match request.context {
            Some(context) if context.epoch != held.epoch => {
                return refuse(format!(
                    "the publish_context is of epoch {} and the grant of epoch {}; publish it to this node again",
                    context.epoch, held.epoch
                ));
            }
            _ => {}
        }
        if held.read_only && !request.read_only {
            return refuse("it is granted read-only and asked for read-write".to_owned());
        }
        if record.releasing {
            return refuse("it is being detached from this node".to_owned());
        }
        if held.holder.incarnation != request.node.incarnation {
            self.check_earlier_life(state, held, request)?;
            let holder = Holder { incarnation: request.node.incarnation, ..held.holder.clone() };
            let attachment = Some(Attachment { holder, proof: None, ..held.clone() });
            return Ok(Some(VolumeRecord { attachment, connected: false, ..record.clone() }));
        }
        if held.proof.is_some() {
            return refuse("this node was fenced from it; publish it to this node again".to_owned());
        }
        Ok(None)
    }

    /// The node says that everything of its earlier life is gone; here is the look.
    fn check_earlier_life(
        &self,
        state: &RecordDir<VolumeRecord>,
        held: &Attachment,
        request: &ConnectRequest<'_>,
    ) -> Result<()> {
        let loops = self.loops_of_volume(state.dir(), state.record())?;
        match loops.iter().find(|device| label_epoch(self.tag(), request.volume, &device.label) == Some(held.epoch)) {
            None => Ok(()),
            Some(device) => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "volume {} still has {} of this node's earlier life; unmount and detach it first",
                    request.volume,
                    device.path.display()
                ),
            )),
        }
    }

    /// The loop of this grant, and whether it is new. Loops of earlier grants are in the way unless they are cut off.
    fn attach_image(
        &self,
        state: &RecordDir<VolumeRecord>,
        held: &Attachment,
        image: &ImageIdentity,
        read_only: bool,
    ) -> Result<(LoopDevice, bool)> {
        let id = &state.record().id;
        let label = loop_label(self.tag(), id, held.epoch);
        // As it was made before labels named their pool.
        let old_label = label.split_once('#').map_or(label.as_str(), |(old, _)| old);
        let mut found = None;
        for device in self.loops_of_image(state.dir(), image)? {
            let own = device.label == label || device.label == old_label;
            if own && !is_cut_off(&device) && device.read_only == read_only && found.is_none() {
                found = Some(device);
            } else if own || !is_cut_off(&device) {
                let path = device.path.display().to_string();
                self.host.detach_loop(&device).map_err(|error| {
                    error.context(format!(
                        "volume {id} is still connected as {path} ({}, for epoch {}); unmount and detach that first",
                        device.label, held.epoch
                    ))
                })?;
            }
        }
        if let Some(device) = found {
            return Ok((device, false));
        }
        let path = state.dir().path().join(&image.name);
        let request = LoopRequest { image: &path, identity: image, label: &label, read_only };
        Ok((self.host.attach_loop(&request)?, true))
    }

    /// Where detaching cannot see this machine's loops, the record says that there is one.
    fn note_connected(&self, request: &ConnectRequest<'_>, connected: bool) -> Result<()> {
        RecordDir::<VolumeRecord>::change(&self.volumes, request.volume.as_str(), |state| {
            self.check_life(request)?;
            self.check_grant(state, request)?;
            let record = state.record();
            Ok((record.connected != connected).then(|| VolumeRecord { connected, ..record.clone() }))
        })?;
        Ok(())
    }

    /// The loop of the current image first, then the latest epoch.
    fn connections_in(&self, id: &VolumeId, look: Look<'_>) -> Result<Vec<Connected>> {
        let (own, state) = self.own_loops(id, None, look)?;
        let current = state.and_then(|state| state.record().image.as_ref().map(|image| image.inode));
        let mut loops: Vec<LoopDevice> = own.all().collect();
        loops.sort_by_key(|device| (Some(device.backing_inode) == current, label_epoch(self.tag(), id, &device.label)));
        Ok(loops.into_iter().rev().map(|device| self.connected(id, device)).collect())
    }

    fn connected(&self, id: &VolumeId, device: LoopDevice) -> Connected {
        let epoch = label_epoch(self.tag(), id, &device.label).unwrap_or_default();
        Connected::Device { path: device.path, number: device.number, read_only: device.read_only, epoch }
    }
}

fn refused(request: &ConnectRequest<'_>, what: String) -> Error {
    Error::new(
        ErrorKind::Held,
        format!("volume {} is not connected on node {}: {what}", request.volume, request.node.id),
    )
}
