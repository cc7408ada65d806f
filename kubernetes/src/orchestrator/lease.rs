//! Which replica leads: one Lease, held by whom it names until it was not renewed for its duration. Nothing that protects
//! data rests on it.

use super::words;
use crate::names::Names;
use failover::{Clock, Mailbox, Told};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use std::time::Duration;
use tokio::sync::watch;

/// A dead leader is followed within it; a renewal that is late by less costs nothing, and a change of leader little: every
/// replica watches all the time.
const DURATION_SECONDS: i32 = 2;
const DURATION_MS: u64 = 2_000;
const RENEW_EVERY: Duration = Duration::from_millis(500);
const ASK_EVERY: Duration = Duration::from_millis(400);
/// An API server that takes longer has to be asked again while there is still time.
const REQUEST_LIMIT: Duration = Duration::from_millis(800);

pub(super) struct Election {
    pub(super) api: Api<Lease>,
    pub(super) name: String,
    pub(super) holder: String,
    pub(super) clock: Clock,
    pub(super) mailbox: Mailbox,
    seen: Seen,
    /// By this process. What the lease says may be of an earlier one of the same pod, which watched while this one did not.
    is_held: bool,
}

/// The lease as last seen, and since when it stands like that by our own clock: those of others are not relied on.
#[derive(Default)]
struct Seen {
    lease: Option<Lease>,
    since_ms: u64,
}

enum Outcome {
    HeldUntil(u64),
    Others,
}

/// What to do about a lease.
#[derive(Debug, PartialEq)]
enum Plan {
    Take,
    Wait,
}

impl Election {
    pub(super) fn new(client: Client, names: &Names, holder: String, clock: Clock, mailbox: Mailbox) -> Self {
        let api = Api::namespaced(client, &names.namespace);
        Self { api, name: names.supervisor(), holder, clock, mailbox, seen: Seen::default(), is_held: false }
    }

    /// Until it is asked to stop; then somebody else can lead at once.
    pub(super) async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let mut problem = String::new();
        loop {
            let outcome = tokio::time::timeout(REQUEST_LIMIT, self.ask()).await;
            let outcome = outcome.unwrap_or_else(|_| Err("the API server does not answer".to_owned()));
            let pause = match outcome {
                Ok(Outcome::HeldUntil(until_ms)) => {
                    if !std::mem::replace(&mut self.is_held, true) {
                        tracing::info!(holder = self.holder, lease = self.name, "this replica holds the lease");
                    }
                    problem.clear();
                    self.tell(Some(until_ms)).await;
                    RENEW_EVERY
                }
                Ok(Outcome::Others) => {
                    if std::mem::take(&mut self.is_held) {
                        tracing::warn!(lease = self.name, "another replica holds the lease");
                        self.tell(None).await;
                    }
                    problem.clear();
                    ASK_EVERY
                }
                // What is held stays held until it ends by itself; whether the request arrived is not known.
                Err(error) => {
                    if error != problem {
                        tracing::warn!(lease = self.name, error, "the lease cannot be asked for; trying again");
                        problem = error;
                    }
                    self.seen.lease = None;
                    ASK_EVERY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stopping.wait_for(|stop| *stop) => break,
            }
        }
        if self.is_held {
            self.tell(None).await;
            let released = tokio::time::timeout(REQUEST_LIMIT, self.release()).await;
            tracing::info!(lease = self.name, released = matches!(released, Ok(Ok(()))), "this replica leads no more");
        }
    }

    async fn tell(&self, until_ms: Option<u64>) {
        self.mailbox.tell(Told::Lease(until_ms)).await;
    }

    async fn ask(&mut self) -> Result<Outcome, String> {
        let is_ours = self.is_held && self.seen.lease.as_ref().is_some_and(|lease| holder(lease) == Some(&self.holder));
        // Whoever holds it need not look first: a change by somebody else fails the write.
        if !is_ours {
            self.look().await?;
        }
        let now_ms = (self.clock)();
        let Some(lease) = &self.seen.lease else { return self.make().await };
        let own = self.is_held.then_some(&self.holder);
        if plan(lease, own, now_ms.saturating_sub(self.seen.since_ms)) == Plan::Wait {
            return Ok(Outcome::Others);
        }
        let mut wanted = lease.clone();
        wanted.spec = Some(self.spec(lease.spec.as_ref()));
        match self.api.replace(&self.name, &PostParams::default(), &wanted).await {
            Ok(lease) => {
                self.see(Some(lease));
                Ok(Outcome::HeldUntil(now_ms + DURATION_MS))
            }
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
                self.look().await?;
                Ok(Outcome::Others)
            }
            Err(error) => Err(words(&error)),
        }
    }

    async fn make(&mut self) -> Result<Outcome, String> {
        let sent_ms = (self.clock)();
        let mut lease = Lease { spec: Some(self.spec(None)), ..Lease::default() };
        lease.metadata.name = Some(self.name.clone());
        match self.api.create(&PostParams::default(), &lease).await {
            Ok(lease) => {
                self.see(Some(lease));
                Ok(Outcome::HeldUntil(sent_ms + DURATION_MS))
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Outcome::Others),
            Err(error) => Err(words(&error)),
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        let found = self.api.get_opt(&self.name).await.map_err(|error| words(&error))?;
        self.see(found);
        Ok(())
    }

    fn see(&mut self, found: Option<Lease>) {
        let spec = |lease: &Option<Lease>| lease.as_ref().map(|lease| lease.spec.clone());
        if self.seen.lease.is_none() || spec(&found) != spec(&self.seen.lease) {
            self.seen.since_ms = (self.clock)();
        }
        self.seen.lease = found;
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let was_ours = before.is_some_and(|spec| spec.holder_identity.as_ref() == Some(&self.holder));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(now.clone()),
            acquire_time: before.filter(|_| was_ours).map_or(Some(now), |spec| spec.acquire_time.clone()),
            lease_transitions: Some(if was_ours || before.is_none() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }

    /// As client-go does it: held by nobody, for one second.
    async fn release(&mut self) -> Result<(), String> {
        let Some(mut lease) = self.seen.lease.take() else { return Ok(()) };
        if let Some(spec) = &mut lease.spec {
            (spec.holder_identity, spec.lease_duration_seconds) = (Some(String::new()), Some(1));
        }
        let replaced = self.api.replace(&self.name, &PostParams::default(), &lease).await;
        replaced.map(drop).map_err(|error| words(&error))
    }
}

/// `own`: whom the lease names while this process holds it. `still_ms`: how long the lease was seen without a change, by our
/// own clock.
fn plan(lease: &Lease, own: Option<&String>, still_ms: u64) -> Plan {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(DURATION_SECONDS);
    let duration_ms = u64::try_from(seconds).unwrap_or(0) * 1_000;
    match holder(lease) {
        None => Plan::Take,
        holder if holder == own => Plan::Take,
        Some(_) if still_ms > duration_ms => Plan::Take,
        Some(_) => Plan::Wait,
    }
}

fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_was_not_renewed() {
        let lease = |holder: Option<&str>| Lease {
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: Some(3),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        let a = "a".to_owned();
        let own = Some(&a);
        assert_eq!(plan(&Lease::default(), own, 0), Plan::Take);
        assert_eq!(plan(&lease(Some("")), own, 0), Plan::Take, "released");
        assert_eq!(plan(&lease(Some("a")), own, 0), Plan::Take);
        assert_eq!(plan(&lease(Some("a")), None, 0), Plan::Wait, "of an earlier process of this pod");
        assert_eq!(plan(&lease(Some("b")), own, 3_000), Plan::Wait);
        assert_eq!(plan(&lease(Some("b")), own, 3_001), Plan::Take);
    }
}
