//! The registry of nodes: `nodes/<id>/record.*`. "Fenced" stands here before any volume of the node is touched.

use crate::ballast::with_ballast;
use crate::model::NodeRecordFile;
use crate::record::{RecordDir, is_entry};
use crate::{Pool, now_ms};
use host::file::Dir;
use volume::{Error, ErrorKind, FenceHow, Incarnation, NodeId, NodeIdentity, NodeRecord, NodeState, Result, Segments};

const MAX_ATTEMPTS: u32 = 8;

impl Pool {
    /// Records who the node is in this life. An incarnation that is fenced stays so; a new one starts live, because a
    /// node takes one only after a reboot or once everything of its old life is verified gone.
    pub(crate) fn register_node(&self, identity: &NodeIdentity, topology: &Segments) -> Result<NodeRecord> {
        self.check_reachable()?;
        let fresh = NodeRecord {
            identity: identity.clone(),
            state: NodeState::Live,
            topology: topology.clone(),
            registered_at_ms: now_ms(),
        };
        let name = identity.id.as_str();
        for _ in 0..MAX_ATTEMPTS {
            let known = RecordDir::<NodeRecordFile>::change(&self.nodes, name, |state| {
                let known = &state.record().0;
                Ok(if known.identity.incarnation != identity.incarnation {
                    Some(NodeRecordFile(fresh.clone()))
                } else if known.identity == *identity && known.topology == *topology {
                    None
                } else {
                    let (identity, topology) = (identity.clone(), topology.clone());
                    Some(NodeRecordFile(NodeRecord { identity, topology, ..known.clone() }))
                })
            })?;
            if let Some(state) = known {
                // Of no weight for the node itself: it is registered, marked or not.
                if let Err(error) = with_ballast(&self.nodes, || self.prepare_mark(state.dir())) {
                    tracing::warn!(node = %name, error = error.chain(), "the node can leave no sign of life in the pool");
                }
                return Ok(state.record().0.clone());
            }
            let fill = |dir: &Dir| self.prepare_mark(dir).map(|()| NodeRecordFile(fresh.clone()));
            if let Some(made) = RecordDir::create(&self.nodes, name, fill)? {
                return Ok(made.record().0.clone());
            }
        }
        Err(Error::new(ErrorKind::Busy, format!("the record of node {name} comes and goes; retry")))
    }

    pub(crate) fn find_node(&self, id: &NodeId) -> Result<Option<NodeRecord>> {
        Ok(RecordDir::<NodeRecordFile>::find(&self.nodes, id.as_str())?.map(|state| state.record().0.clone()))
    }

    /// `NotFound` says what makes a node known.
    pub(crate) fn known_node(&self, id: &NodeId) -> Result<NodeRecord> {
        self.find_node(id)?.ok_or_else(|| {
            Error::not_found(format!(
                "pool {} knows no node {id}; a node registers when its driver starts with this pool configured",
                self.config.name
            ))
        })
    }

    /// In the order of ids. A damaged record hides no other: it is logged and left out.
    pub(crate) fn all_nodes(&self) -> Result<Vec<NodeRecord>> {
        let mut nodes = Vec::new();
        for name in self.nodes.names()?.iter().filter(|name| is_entry(name)) {
            match RecordDir::<NodeRecordFile>::find(&self.nodes, name) {
                Ok(found) => nodes.extend(found.map(|state| state.record().0.clone())),
                Err(error) => tracing::error!(node = %name, error = error.chain(), "a node's record cannot be read"),
            }
        }
        Ok(nodes)
    }

    /// Step one of a fence. An administrator's word that the machine is off is added to a fence that stands.
    pub(crate) fn mark_fenced(
        &self,
        id: &NodeId,
        expected: Option<Incarnation>,
        actor: &str,
        how: FenceHow,
    ) -> Result<NodeRecord> {
        let powered_off = how == FenceHow::PoweredOff;
        let fenced = NodeState::Fenced { actor: actor.to_owned(), at_ms: now_ms(), powered_off };
        let state = RecordDir::<NodeRecordFile>::change(&self.nodes, id.as_str(), |state| {
            let known = &state.record().0;
            known.check_life(expected)?;
            let stands = match &known.state {
                NodeState::Live => false,
                NodeState::Fenced { powered_off: known, .. } => *known || !powered_off,
            };
            Ok((!stands).then(|| NodeRecordFile(NodeRecord { state: fenced.clone(), ..known.clone() })))
        })?;
        match state {
            Some(state) => Ok(state.record().0.clone()),
            None => self.known_node(id),
        }
    }

    /// The last step of an unfence: lifts the fence that `seen` shows, and no later one.
    pub(crate) fn mark_live(&self, seen: &NodeRecord) -> Result<()> {
        let id = &seen.identity.id;
        RecordDir::<NodeRecordFile>::change(&self.nodes, id.as_str(), |state| {
            let known = &state.record().0;
            if known.state != seen.state || known.identity.incarnation != seen.identity.incarnation {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("node {id} changed while it was unfenced; look again"),
                ));
            }
            Ok(Some(NodeRecordFile(NodeRecord { state: NodeState::Live, ..known.clone() })))
        })?;
        Ok(())
    }
}
