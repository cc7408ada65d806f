//! What an agent has: told when it is connected, and remembered while it is away.

use crate::words::Words;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use volume::{Backend, BackendName, NodeId, Restrictions, Result, Segments};

/// The operation without a backend.
pub(crate) const DESCRIBE: &str = "describe";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) node: NodeId,
    /// The first is the node's default.
    pub(crate) backends: Vec<Described>,
}

/// All of a backend that does not change while it is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Described {
    pub(crate) name: BackendName,
    pub(crate) topology: Vec<Segments>,
    pub(crate) has: Abilities,
    restrictions: WireRestrictions,
}

/// The optional objects that are there. One that an older agent does not tell of is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Abilities {
    pub(crate) attach: bool,
    pub(crate) snapshots: bool,
    pub(crate) clone: bool,
    pub(crate) group_snapshots: bool,
    pub(crate) changed_blocks: bool,
    pub(crate) expand: bool,
    pub(crate) modify: bool,
    pub(crate) health: bool,
    pub(crate) fence: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WireRestrictions {
    copies_are_full: bool,
    no_block: Option<String>,
    no_fence: Option<String>,
    weak_fence: Option<String>,
}

impl Description {
    pub(crate) fn of(node: &NodeId, backends: &[Arc<dyn Backend>]) -> Result<Self> {
        let backends = backends.iter().map(|backend| Described::of(&**backend)).collect::<Result<_>>()?;
        Ok(Self { node: node.clone(), backends })
    }
}

impl Described {
    fn of(backend: &dyn Backend) -> Result<Self> {
        let Restrictions { copies_are_full, no_block, no_fence, weak_fence } = backend.restrictions();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self {
            name: backend.name().clone(),
            topology: backend.topology()?,
            has: Abilities {
                attach: backend.attach().is_some(),
                snapshots: backend.snapshots().is_some(),
                clone: backend.can_clone(),
                group_snapshots: backend.group_snapshots().is_some(),
                changed_blocks: backend.changed_blocks().is_some(),
                expand: backend.expand().is_some(),
                modify: backend.modify().is_some(),
                health: backend.health().is_some(),
                fence: backend.fence().is_some(),
            },
            restrictions: WireRestrictions {
                copies_are_full,
                no_block: owned(no_block),
                no_fence: owned(no_fence),
                weak_fence: owned(weak_fence),
            },
        })
    }

    pub(crate) fn restrictions(&self, words: &Words) -> Restrictions {
        let keep = |text: &Option<String>| text.as_ref().map(|text| words.keep(text, "its agent says so"));
        let told = &self.restrictions;
        Restrictions {
            copies_are_full: told.copies_are_full,
            no_block: keep(&told.no_block),
            no_fence: keep(&told.no_fence),
            weak_fence: keep(&told.weak_fence),
        }
    }
}
