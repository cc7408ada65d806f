//! Sees when a failover reaches each of its steps, from outside of all that take part in it: the objects of the cluster, the
//! records of the pool and the recorder's ledger.

use super::clock::now_ns;
use super::mover::has_taint;
use super::pool::{self, Images};
use super::room::{Room, pool_of};
use super::workload::{Ack, Start, Workload};
use crate::failure::{Result, ensure};
use crate::kubernetes::Lab;
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A workload in a run, and where it was.
pub(super) struct Subject {
    pub(super) workload: Workload,
    pub(super) old: Start,
    /// Its PersistentVolume.
    pub(super) volume: String,
    /// Its volume in the pool.
    pub(super) directory: PathBuf,
    /// The pool's epoch of the holder that is to be fenced.
    pub(super) epoch: u64,
}

/// When what was seen first, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug, Default, Clone)]
pub(super) struct Moments {
    pub(super) fenced: Option<u64>,
    pub(super) tainted: Option<u64>,
    pub(super) evicted: Option<u64>,
    pub(super) created: Option<u64>,
    pub(super) scheduled: Option<u64>,
    pub(super) granted: Option<u64>,
    pub(super) attached: Option<u64>,
    pub(super) started: Option<u64>,
    pub(super) first: Option<u64>,
    /// The node of the first new ack.
    pub(super) node: Option<String>,
}

/// What was seen of one subject.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) moments: Moments,
    /// What the old writer had written, by image, as soon as the fence was seen.
    pub(super) at_fence: Option<Images>,
}

const BETWEEN_LOOKS: Duration = Duration::from_millis(25);
/// The objects of the cluster cost more to look at.
const LOOKS_PER_OBJECTS: u32 = 2;

/// Looks until each subject has written elsewhere, or the limit. `fenced_by_hand`: the fence has returned then, whatever the
/// records say.
pub(super) fn watch(
    lab: &Lab,
    namespace: &str,
    subjects: &[Subject],
    limit: Duration,
    fenced_by_hand: &dyn Fn() -> Option<u64>,
) -> Result<Vec<Seen>> {
    let began = Instant::now();
    let mut all: Vec<Seen> = subjects.iter().map(|_| Seen::default()).collect();
    let mut look = 0;
    while began.elapsed() < limit && all.iter().any(|seen| seen.moments.first.is_none()) {
        for (subject, seen) in subjects.iter().zip(&mut all) {
            seen.look_at_pool(subject, fenced_by_hand())?;
            seen.look_at_ledger(subject)?;
        }
        if look % LOOKS_PER_OBJECTS == 0 {
            look_at_objects(lab, namespace, subjects, &mut all)?;
        }
        look += 1;
        std::thread::sleep(BETWEEN_LOOKS);
    }
    Ok(all)
}

impl Seen {
    fn look_at_pool(&mut self, subject: &Subject, by_hand: Option<u64>) -> Result<()> {
        if self.moments.granted.is_some() && self.at_fence.is_some() {
            return Ok(());
        }
        let states = pool::states(&subject.directory)?;
        let fenced = pool::fenced_at(&states, subject.epoch).or(by_hand);
        if let Some(at_ns) = fenced
            && self.at_fence.is_none()
        {
            self.moments.fenced = Some(at_ns);
            self.at_fence = Some(subject.old_blocks()?);
        }
        let is_new = |state: &&pool::State| state.holder.as_ref().is_some_and(|held| held.epoch > subject.epoch);
        self.moments.granted = states.iter().find(is_new).map(|state| state.at_ns);
        Ok(())
    }

    fn look_at_ledger(&mut self, subject: &Subject) -> Result<()> {
        if self.moments.first.is_some() {
            return Ok(());
        }
        if let Some((start, Ack { end_ns, .. })) = subject.workload.first_ack_elsewhere(&subject.old.uid)? {
            self.moments.started = Some(start.at_ns);
            self.moments.first = Some(end_ns);
            self.moments.node = Some(start.node);
        }
        Ok(())
    }
}

impl Subject {
    /// Waits until it writes.
    pub(super) fn of(space: &Room, workload: Workload) -> Result<Self> {
        let old = workload.wait_writing(space)?;
        let volume = space.wait_bound(&workload.claim_name())?;
        let object = space.lab.cluster.get(&format!("/api/v1/persistentvolumes/{volume}"))?;
        let id = object["spec"]["csi"]["volumeHandle"].as_str().ok_or("a volume without a handle")?;
        let directory = pool_of(space.lab).join("volumes").join(id);
        let states = pool::states(&directory)?;
        let held = states.last().and_then(|state| state.holder.clone()).ok_or("a volume in use has no holder")?;
        Ok(Self { workload, old, volume, directory, epoch: held.epoch })
    }

    /// As [`Subject::of`]; an error unless it is where it was to start.
    pub(super) fn placed(space: &Room, workload: Workload, node: &str) -> Result<Self> {
        let subject = Self::of(space, workload)?;
        let placed = &subject.old.node;
        ensure(placed == node, || format!("{} was placed on {placed}, not on {node}", subject.old.pod))?;
        Ok(subject)
    }

    /// What the writers of the old pod have on the volume, wherever a fence put it.
    pub(super) fn old_blocks(&self) -> Result<Images> {
        let starts = self.workload.starts()?;
        let new: Vec<u64> = starts.iter().filter(|start| start.uid != self.old.uid).map(|start| start.epoch).collect();
        pool::scan(&self.directory, self.workload.nonce, |epoch| !new.contains(&epoch))
    }
}

fn look_at_objects(lab: &Lab, namespace: &str, subjects: &[Subject], all: &mut [Seen]) -> Result<()> {
    let now = now_ns()?;
    let pods = lab.cluster.list(&format!("/api/v1/namespaces/{namespace}/pods"))?;
    let attachments = lab.cluster.list("/apis/storage.k8s.io/v1/volumeattachments")?;
    for (subject, seen) in subjects.iter().zip(all) {
        let moments = &mut seen.moments;
        if moments.tainted.is_none() {
            let node = lab.cluster.find(&format!("/api/v1/nodes/{}", subject.old.node))?;
            moments.tainted = node.filter(has_taint).map(|_| now);
        }
        let of_workload = |pod: &&Value| pod["metadata"]["labels"]["workload"] == subject.workload.kind.name();
        let is_old = |pod: &&Value| pod["metadata"]["uid"] == *subject.old.uid;
        if moments.evicted.is_none() && !pods.iter().any(|pod| is_old(&pod)) {
            moments.evicted = Some(now);
        }
        let new = pods.iter().find(|pod| of_workload(pod) && !is_old(pod));
        if let Some(pod) = new {
            moments.created.get_or_insert(now);
            if pod["spec"]["nodeName"].is_string() {
                moments.scheduled.get_or_insert(now);
            }
            let is_attached = |one: &&Value| {
                one["spec"]["source"]["persistentVolumeName"] == *subject.volume
                    && one["spec"]["nodeName"] == pod["spec"]["nodeName"]
                    && one["status"]["attached"] == true
            };
            if attachments.iter().any(|one| is_attached(&one)) {
                moments.attached.get_or_insert(now);
            }
            // Where nodes attach it is when one had the grant.
            if !lab.place.attaches_by_controller() {
                moments.attached = moments.granted;
            }
        }
    }
    Ok(())
}
