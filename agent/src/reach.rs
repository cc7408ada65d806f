//! The way to a backend of other machines, through whichever agent is there.

use crate::describe::Described;
use crate::envelope::{Answer, Invocation};
use crate::link::{Link, Session};
use crate::operation::Operation;
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use tokio::runtime::Handle;
use volume::{BackendName, Error, ErrorKind, Result};

pub(crate) struct Reach {
    pub(crate) name: BackendName,
    routes: RwLock<Vec<Route>>,
    handle: Handle,
}

/// An agent, and what it said of the backend when it was last there.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) link: Arc<Link>,
    described: Arc<Described>,
}

impl Reach {
    pub(crate) fn new(name: BackendName, handle: Handle) -> Self {
        Self { name, routes: RwLock::default(), handle }
    }

    /// Notes what `link` says of the backend; `None`: it has none of the name any more. Whether any agent has.
    pub(crate) fn update(&self, link: &Arc<Link>, described: Option<Described>) -> bool {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let at = routes.iter().position(|route| Arc::ptr_eq(&route.link, link));
        match (at, described) {
            (Some(at), Some(described)) => routes[at].described = Arc::new(described),
            (Some(at), None) => drop(routes.remove(at)),
            (None, Some(described)) => {
                routes.push(Route { link: Arc::clone(link), described: Arc::new(described) });
                if let Err(conflict) = self.agree(&routes) {
                    tracing::error!(error = conflict.chain(), "a backend cannot be used");
                }
            }
            (None, None) => {}
        }
        !routes.is_empty()
    }

    fn routes(&self) -> Vec<Route> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is known of the backend, whether an agent is there or not.
    pub(crate) fn described(&self) -> Option<Arc<Described>> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner).first().map(|route| Arc::clone(&route.described))
    }

    /// Two agents have one backend only when it can be reached from the same places. Else they are two that were given
    /// one name, and a volume of one would be looked for, not found and given up on the other.
    fn agree(&self, routes: &[Route]) -> Result<()> {
        let Some((first, others)) = routes.split_first() else { return Ok(()) };
        match others.iter().find(|other| other.described.topology != first.described.topology) {
            None => Ok(()),
            Some(other) => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "the agents of nodes {} and {} both have a backend named {}, and not the same one; give each a name of its own",
                    first.link.node, other.link.node, self.name
                ),
            )),
        }
    }

    /// The first agent that is there; the first one's error when none is.
    pub(crate) fn session(&self) -> Result<(Route, Arc<Session>)> {
        let routes = self.routes();
        self.agree(&routes)?;
        let mut away = None;
        for route in routes {
            match route.link.session() {
                Ok(session) => return Ok((route, session)),
                Err(error) => drop(away.get_or_insert(error)),
            }
        }
        let gone = || Error::new(ErrorKind::Unavailable, format!("no agent has the backend {} any more", self.name));
        Err(away.unwrap_or_else(gone))
    }

    pub(crate) fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        let (route, session) = self.session()?;
        let json = Invocation::new(Some(&self.name), O::NAME, operation)?.to_json()?;
        let (send, receive) = mpsc::sync_channel(1);
        self.handle.spawn(async move {
            // Nobody waits when the process ends.
            let _ = send.send(session.invoke(json).await);
        });
        let answered =
            receive.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the driver is stopping; retry")));
        let at = |error: Error| error.context(format!("{} at the agent of node {}", O::NAME, route.link.node));
        Answer::read(&answered.map_err(at)?)
    }
}
