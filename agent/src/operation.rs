//! What can be asked of a backend from afar. Each operation is one type: what is sent, what comes back, which ids it
//! locks at the agent, and what it does there.

use crate::envelope::Invocation;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use volume::{Backend, Error, ErrorKind, Result, VolumeGuard};

pub(crate) trait Operation: Serialize + DeserializeOwned + Send + 'static {
    const NAME: &'static str;
    type Reply: Serialize + DeserializeOwned;

    /// The controller's guard is of another process, so the agent locks these for itself.
    fn keys(&self) -> Vec<String>;

    /// Whether it can be asked twice without anybody noticing.
    fn only_reads(&self) -> bool {
        self.keys().is_empty() && !CHANGES_WITHOUT_KEYS.contains(&Self::NAME)
    }

    fn run(&self, backend: &dyn Backend, guard: &VolumeGuard) -> Result<Self::Reply>;
}

/// They are about a whole node, or about what no volume needs.
pub(crate) const CHANGES_WITHOUT_KEYS: [&str; 3] = ["fence", "unfence", "remove_orphans"];

/// An operation as the agent carries it out.
pub(crate) struct Prepared {
    pub(crate) name: &'static str,
    pub(crate) keys: Vec<String>,
    pub(crate) run: Work,
}

pub(crate) type Work = Box<dyn FnOnce(&dyn Backend, &VolumeGuard) -> Result<Value> + Send>;

/// One operation in the agent's table of all.
pub(crate) struct Known {
    pub(crate) name: &'static str,
    pub(crate) prepare: fn(&Invocation) -> Result<Prepared>,
}

impl Known {
    pub(crate) const fn of<O: Operation>() -> Self {
        Self { name: O::NAME, prepare: prepare::<O> }
    }
}

fn prepare<O: Operation>(invocation: &Invocation) -> Result<Prepared> {
    let operation: O = invocation.request()?;
    let keys = operation.keys();
    let run = Box::new(move |backend: &dyn Backend, guard: &VolumeGuard| {
        let reply = operation.run(backend, guard)?;
        serde_json::to_value(reply).map_err(|error| Error::internal(format!("cannot write the answer: {error}")))
    });
    Ok(Prepared { name: O::NAME, keys, run })
}

/// For what a backend may lack. The controller asks only for what the backend was described to have.
pub(crate) fn lacking(backend: &dyn Backend, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("backend {} has no {what}", backend.name()))
}

macro_rules! operations {
    ($($(#[$meta:meta])* $type:ident($name:literal) { $($field:ident: $of:ty),* } -> $reply:ty, $keys:expr, $run:expr;)+) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Serialize, Deserialize)]
            pub(crate) struct $type { $(pub(crate) $field: $of),* }

            impl Operation for $type {
                const NAME: &'static str = $name;
                type Reply = $reply;

                fn keys(&self) -> Vec<String> {
                    let keys: fn(&Self) -> Vec<String> = $keys;
                    keys(self)
                }

                fn run(&self, backend: &dyn Backend, guard: &VolumeGuard) -> Result<$reply> {
                    let run: fn(&Self, &dyn Backend, &VolumeGuard) -> Result<$reply> = $run;
                    run(self, backend, guard)
                }
            }
        )+

        /// Every operation that an agent of this version knows.
        pub(crate) const ALL: &[Known] = &[$(Known::of::<$type>()),+];
    };
}
pub(crate) use operations;
