//! What all calls of the controller share: its backends, its locks and its orchestrator's profile.

use rpc::Profile;
use std::sync::Arc;
use volume::{Backend, Error, ErrorKind, LockTable, Result};

pub(crate) struct Core {
    /// In the order of their names, which is the order of lists.
    backends: Vec<Arc<dyn Backend>>,
    default: Arc<dyn Backend>,
    pub(crate) locks: LockTable,
    pub(crate) profile: Profile,
}

impl Core {
    /// The first backend is the default one.
    pub(crate) fn new(backends: Vec<Arc<dyn Backend>>, profile: Profile) -> Result<Self> {
        let default = backends.first().cloned().ok_or_else(|| {
            Error::new(ErrorKind::FailedPrecondition, "no storage backend is configured; the controller needs one")
        })?;
        let mut backends = backends;
        backends.sort_by(|a, b| a.name().cmp(b.name()));
        if let Some(pair) = backends.windows(2).find(|pair| pair[0].name() == pair[1].name()) {
            return Err(Error::invalid(format!("two storage backends are named {}; rename one", pair[0].name())));
        }
        Ok(Self { backends, default, locks: LockTable::default(), profile })
    }

    pub(crate) fn backends(&self) -> &[Arc<dyn Backend>] {
        &self.backends
    }

    pub(crate) fn default_backend(&self) -> &Arc<dyn Backend> {
        &self.default
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Arc<dyn Backend>> {
        self.backends.iter().find(|backend| backend.name().as_str() == name)
    }

    /// The backend of an id that is about to be read; `NotFound` when it is not configured.
    pub(crate) fn of_id(&self, backend: &str, id: &str) -> Result<&Arc<dyn Backend>> {
        self.named(backend).ok_or_else(|| Error::not_found(self.not_configured(backend, id)))
    }

    /// The backend of an id that is about to be deleted or detached. One of our ids whose backend is not configured
    /// (any more) may still have data: to say "gone" would make the orchestrator forget it.
    pub(crate) fn of_id_to_release(&self, backend: &str, id: &str) -> Result<&Arc<dyn Backend>> {
        self.named(backend).ok_or_else(|| Error::new(ErrorKind::FailedPrecondition, self.not_configured(backend, id)))
    }

    pub(crate) fn names(&self) -> String {
        let names: Vec<_> = self.backends.iter().map(|backend| backend.name().as_str()).collect();
        names.join(", ")
    }

    fn not_configured(&self, backend: &str, id: &str) -> String {
        format!("{id}: the backend {backend} is not configured here; this driver has {}", self.names())
    }
}
