//! The way to a backend of other machines, through whichever agent is there.

use crate::describe::Described;
use crate::envelope::{Answer, Invocation};
use crate::link::{Link, Session};
use crate::operation::Operation;
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use tokio::runtime::Handle;
use volume::{BackendName, Error, ErrorKind, NodeId, Result};

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

/// Which agent a call is for, where several have the backend.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Choice<'a> {
    Any,
    /// That of this node, if it is well.
    Rather(&'a NodeId),
    /// Any but that of this node.
    Not(&'a NodeId),
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
                // Whichever answered first, and alike in every controller.
                routes.sort_by(|a, b| a.link.node.cmp(&b.link.node));
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

    /// Among those that are there and by `choice` may be asked: one where the backend is usable, whose heartbeats are on
    /// time, that is preferred, in this order, and else the first. So all calls go to the same one while nothing is the
    /// matter, whose locks keep a retry from what it began. The first one's error when none is there.
    pub(crate) fn session(&self, choice: Choice<'_>) -> Result<(Route, Arc<Session>)> {
        self.pick(choice, None)
    }

    fn pick(&self, choice: Choice<'_>, tried: Option<&Arc<Link>>) -> Result<(Route, Arc<Session>)> {
        let routes = self.routes();
        self.agree(&routes)?;
        let (mut away, mut best) = (None, None::<(_, Route, Arc<Session>)>);
        for route in routes {
            if choice.forbids(&route.link.node) || tried.is_some_and(|tried| Arc::ptr_eq(tried, &route.link)) {
                continue;
            }
            match route.link.session() {
                Ok(session) => {
                    let is_preferred = choice.prefers(&route.link.node);
                    let rank = (!session.has_usable(&self.name), session.staleness(), !is_preferred);
                    if best.as_ref().is_none_or(|(best, ..)| rank < *best) {
                        best = Some((rank, route, session));
                    }
                }
                Err(error) => drop(away.get_or_insert(error)),
            }
        }
        if let Some((_, route, session)) = best {
            return Ok((route, session));
        }
        let none = || match choice {
            Choice::Not(node) => format!("no agent but that of node {node} itself has the backend {}", self.name),
            Choice::Any | Choice::Rather(_) => format!("no agent has the backend {} any more", self.name),
        };
        Err(away.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, none())))
    }

    /// Whether there is more than one agent to choose from.
    pub(crate) fn has_choice(&self) -> bool {
        self.routes.read().unwrap_or_else(PoisonError::into_inner).len() > 1
    }

    pub(crate) fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        self.call_at(operation, Choice::Any)
    }

    /// What only reads and lost its connection is asked of another agent, once. What changes something may have been
    /// carried out: that is for the caller to find out.
    pub(crate) fn call_at<O: Operation>(&self, operation: &O, choice: Choice<'_>) -> Result<O::Reply> {
        let json = Invocation::new(Some(&self.name), O::NAME, operation)?.to_json()?;
        let (mut route, session) = self.pick(choice, None)?;
        let mut answered = self.ask(session, json.clone());
        let is_lost = answered.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable);
        if is_lost
            && operation.only_reads()
            && let Ok((other, session)) = self.pick(choice, Some(&route.link))
        {
            tracing::info!(from = %route.link.node, to = %other.link.node, operation = O::NAME, "asked of another agent");
            (route, answered) = (other, self.ask(session, json));
        }
        let at = |error: Error| error.context(format!("{} at the agent of node {}", O::NAME, route.link.node));
        Answer::read(&answered.map_err(at)?)
    }

    fn ask(&self, session: Arc<Session>, json: Vec<u8>) -> Result<Vec<u8>> {
        let (send, receive) = mpsc::sync_channel(1);
        self.handle.spawn(async move {
            // Nobody waits when the process ends.
            let _ = send.send(session.invoke(json).await);
        });
        receive.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the driver is stopping; retry")))
    }
}

impl Choice<'_> {
    fn prefers(self, node: &NodeId) -> bool {
        matches!(self, Self::Rather(preferred) if preferred == node)
    }

    fn forbids(self, node: &NodeId) -> bool {
        matches!(self, Self::Not(forbidden) if forbidden == node)
    }
}
