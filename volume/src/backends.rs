//! Which backends there are: a fixed list, or one that grows as the agents of pools answer.

use crate::Backend;
use std::sync::Arc;

/// Asked anew for every call. Never waits.
pub trait Backends: Send + Sync {
    /// No two have the same name.
    fn all(&self) -> Vec<Arc<dyn Backend>>;

    /// Those of [`Backends::all`] among which one is chosen for a volume that names none, in order. Several are equals of
    /// different places, such as the pools of nodes.
    fn defaults(&self) -> Vec<Arc<dyn Backend>>;

    /// Who may have backends that [`Backends::all`] does not tell yet, in words ("node n2"); empty when it is complete.
    /// Until then an unknown backend is not "not configured", and a list over all of them is not whole.
    fn unheard(&self) -> Vec<String>;
}

impl Backends for Vec<Arc<dyn Backend>> {
    fn all(&self) -> Vec<Arc<dyn Backend>> {
        self.clone()
    }

    fn defaults(&self) -> Vec<Arc<dyn Backend>> {
        self.first().cloned().into_iter().collect()
    }

    fn unheard(&self) -> Vec<String> {
        Vec::new()
    }
}
