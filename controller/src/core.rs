//! What all calls of the controller share: its backends, its locks and its orchestrator's profile.

use rpc::{Profile, Rpc};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use volume::{Backend, BackendName, Backends, Error, ErrorKind, LockTable, Result, VolumeName};

pub(crate) struct Core {
    source: Arc<dyn Backends>,
    pub(crate) locks: LockTable,
    pub(crate) profile: Profile,
    /// Volumes whose creation ended without an answer, and where: they may be there.
    unsettled: Mutex<BTreeMap<VolumeName, BackendName>>,
}

impl Core {
    /// A list that never changes; the first backend is the default one.
    pub(crate) fn new(backends: Vec<Arc<dyn Backend>>, profile: Profile) -> Result<Self> {
        if backends.is_empty() {
            let message = "no storage backend is configured; the controller needs one";
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        let mut names: Vec<_> = backends.iter().map(|backend| backend.name()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid(format!("two storage backends are named {}; rename one", pair[0])));
        }
        Ok(Self::over(Arc::new(backends), profile))
    }

    pub(crate) fn over(source: Arc<dyn Backends>, profile: Profile) -> Self {
        Self { source, locks: LockTable::default(), profile, unsettled: Mutex::default() }
    }

    /// In the order of their names, which is the order of lists.
    pub(crate) fn backends(&self) -> Vec<Arc<dyn Backend>> {
        let mut backends = self.source.all();
        backends.sort_by(|a, b| a.name().cmp(b.name()));
        backends
    }

    /// Among which one is chosen where none is named, in order.
    pub(crate) fn defaults(&self) -> Vec<Arc<dyn Backend>> {
        self.source.defaults()
    }

    pub(crate) fn named(&self, name: &str) -> Option<Arc<dyn Backend>> {
        self.source.all().into_iter().find(|backend| backend.name().as_str() == name)
    }

    /// The backend of an id that is about to be read; `NotFound` when it is not configured.
    pub(crate) fn of_id(&self, backend: &str, id: &str) -> Result<Arc<dyn Backend>> {
        self.named(backend).map_or_else(|| Err(self.not_configured(backend, id, ErrorKind::NotFound)), Ok)
    }

    /// The backend of an id that is about to be deleted or detached. One of our ids whose backend is not configured
    /// (any more) may still have data: to say "gone" would make the orchestrator forget it.
    pub(crate) fn of_id_to_release(&self, backend: &str, id: &str) -> Result<Arc<dyn Backend>> {
        self.named(backend).map_or_else(|| Err(self.not_configured(backend, id, ErrorKind::FailedPrecondition)), Ok)
    }

    pub(crate) fn unsettled(&self) -> MutexGuard<'_, BTreeMap<VolumeName, BackendName>> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backend that a parameter names.
    pub(crate) fn of_parameter(&self, name: &str) -> Result<Arc<dyn Backend>> {
        self.named(name).map_or_else(
            || {
                self.complete(&format!("parameter backend is {name:?}"))?;
                Err(Error::invalid(format!("parameter backend is {name:?}; this driver has {}", self.names())))
            },
            Ok,
        )
    }

    /// Whether a call is served at all, for what `can` tells a backend does. `Unavailable` while one that is not known yet
    /// may do it.
    pub(crate) fn serves(&self, rpc: Rpc, can: impl Fn(&dyn Backend) -> bool) -> Result<bool> {
        if self.backends().iter().any(|backend| can(&**backend)) {
            return Ok(true);
        }
        self.complete(rpc.as_str()).map(|()| false)
    }

    /// `Unavailable` while there may be backends that are not known yet: what is not found may be on one of them.
    pub(crate) fn complete(&self, what: &str) -> Result<()> {
        let unheard = self.source.unheard();
        if unheard.is_empty() {
            return Ok(());
        }
        let message = format!("{what}: the storage of {} is not known yet, it has not answered", unheard.join(", "));
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    fn names(&self) -> String {
        let backends = self.backends();
        let names: Vec<_> = backends.iter().map(|backend| backend.name().as_str()).collect();
        names.join(", ")
    }

    fn not_configured(&self, backend: &str, id: &str, kind: ErrorKind) -> Error {
        self.complete(id).err().unwrap_or_else(|| {
            let names = self.names();
            Error::new(kind, format!("{id}: the backend {backend} is not configured here; this driver has {names}"))
        })
    }
}
