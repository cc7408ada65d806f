//! Which backend a request means that names none: one that can be reached from where it is asked for.

use crate::core::Core;
use std::sync::Arc;
use volume::{Backend, ErrorKind, Parameters, Result, Segments, TopologyRequirement};

/// The backends on which a volume of these parameters can be made, the preferred one first. Topology is what each
/// backend says without being asked over a network.
pub(crate) fn candidates(
    core: &Core,
    parameters: &Parameters,
    wanted: &TopologyRequirement,
) -> Result<Vec<Arc<dyn Backend>>> {
    if let Some(name) = &parameters.backend {
        return Ok(vec![core.of_parameter(name)?]);
    }
    let fitting = fitting(core.defaults(), wanted);
    if !fitting.is_empty() {
        return Ok(fitting);
    }
    core.complete("no known storage is where the volume is asked for")?;
    // Else the default says why it cannot, as it does where it is the only one.
    let others = self::fitting(core.backends(), wanted).into_iter().chain(core.defaults());
    others.take(1).map(Ok).collect()
}

/// The backends that `place` can reach, in order; all of them where no place is given.
pub(crate) fn reachable_from(core: &Core, place: Option<&Segments>) -> Result<Vec<Arc<dyn Backend>>> {
    let requisite = place.cloned().into_iter().collect();
    candidates(core, &Parameters::default(), &TopologyRequirement { requisite, preferred: Vec::new() })
}

fn fitting(backends: Vec<Arc<dyn Backend>>, wanted: &TopologyRequirement) -> Vec<Arc<dyn Backend>> {
    let mut fitting: Vec<_> = backends.into_iter().filter(|backend| meets(&**backend, wanted)).collect();
    // Stable: among equals the given order.
    fitting.sort_by_key(|backend| rank(&**backend, wanted));
    fitting
}

/// A backend that cannot tell where it can be reached is left to say so itself.
pub(crate) fn meets(backend: &dyn Backend, wanted: &TopologyRequirement) -> bool {
    backend.topology().map_or(true, |accessible| wanted.is_met_by(&accessible))
}

/// Whether another backend may do instead after this error: it is full, or cannot be reached.
pub(crate) fn is_of_this_backend_alone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Exhausted | ErrorKind::Unavailable | ErrorKind::Timeout)
}

fn rank(backend: &dyn Backend, wanted: &TopologyRequirement) -> usize {
    let accessible = backend.topology().unwrap_or_default();
    let reaches = |place: &Segments| accessible.is_empty() || accessible.iter().any(|own| own.is_within(place));
    wanted.preferred.iter().position(reaches).unwrap_or(usize::MAX)
}

pub(crate) fn none() -> volume::Error {
    volume::Error::new(ErrorKind::Unavailable, "no storage is known yet: no agent of a pool has answered")
}
