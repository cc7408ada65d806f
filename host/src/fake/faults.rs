//! Faults at chosen effects.

use std::collections::BTreeSet;
use volume::{DeviceNumber, Error, ErrorKind, Result};

#[derive(Default)]
pub(super) struct Faults {
    /// Names of effects since they were last announced.
    done: Vec<&'static str>,
    pub(super) count: u64,
    pub(super) fail: Option<(u64, ErrorKind)>,
    pub(super) crash: Option<u64>,
    pub(super) crashed: bool,
    pub(super) hang: Option<u64>,
    /// Reads of these devices hang, and of what is mounted from them.
    pub(super) hung: BTreeSet<DeviceNumber>,
}

/// Why a verb stopped before its next effect.
pub(super) enum Stop {
    Failed(Error),
    Hung,
}

impl Faults {
    /// The driver process is gone: nothing it asks for happens any more.
    pub(super) fn check(&self) -> Result<()> {
        if self.crashed {
            Err(Error::new(ErrorKind::Internal, "the driver crashed here; nothing happens before it is restarted"))
        } else {
            Ok(())
        }
    }

    /// Called right before each effect: the verb carries it out when this is `Ok`.
    pub(super) fn effect(&mut self, name: &'static str) -> Result<(), Stop> {
        self.check()?;
        if let Some(left) = &mut self.hang {
            if *left == 0 {
                return Err(Stop::Hung);
            }
            *left -= 1;
        }
        if let Some((left, kind)) = &mut self.fail {
            if *left == 0 {
                let kind = *kind;
                self.fail = None;
                return Err(Stop::Failed(Error::new(kind, format!("{name}: a fault was asked for here"))));
            }
            *left -= 1;
        }
        if let Some(left) = &mut self.crash {
            *left = left.saturating_sub(1);
            self.crashed = *left == 0;
        }
        self.count += 1;
        self.done.push(name);
        Ok(())
    }

    /// Back to a driver that runs without faults; the count goes on.
    pub(super) fn clear(&mut self) {
        *self = Self { count: self.count, ..Self::default() };
    }

    pub(super) fn take_done(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.done)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
