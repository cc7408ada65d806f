//! Start-up reconciliation: what a crash left half done is finished or undone, by what is there now.
//!
//! The rule: an unfinished stage is undone and an unfinished unstage finished, unless the volume is published; an
//! unfinished unpublish is finished; an unfinished publish loses the empty target it made. Published mounts stay.

use crate::crew;
use crate::node::{Node, check_granted};
use crate::observe::View;
use crate::register::Survey;
use crate::target::is_same_place;
use host::deadline;
use journal::{Entry, Intent, Operation};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use volume::{Connected, Connector, ErrorKind, NodeIdentity, Result, Volume, VolumeId, VolumeKind};

/// What reconciliation did and what it had to leave, in words.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reconciled {
    pub done: Vec<String>,
    pub leftovers: Vec<String>,
}

/// What is known of one volume when the node starts.
#[derive(Debug, Clone)]
struct Found {
    intent: Option<Intent>,
    /// `None`: its record is gone.
    kind: Option<VolumeKind>,
    /// Whether its record gives it to this life of the node, as it is connected.
    is_granted: bool,
    is_connected: bool,
    /// Whether its record names this node, and the node takes grants itself: nobody else gives it back.
    is_ours_to_give_back: bool,
    /// Where it is mounted.
    places: Vec<PathBuf>,
    /// Where publish stages it, where the orchestrator does not.
    own_staging: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Unmount(PathBuf),
    /// When it is empty and nothing is mounted on it.
    Remove(PathBuf),
    Disconnect,
    /// Of a volume that is not connected here.
    GiveBack,
    /// Removes the journal's note.
    Forget,
    Report(&'static str),
}

impl Node {
    /// To be called after [`Node::register`]; calls may be served meanwhile, for each volume is looked at under its lock.
    /// A volume that hangs keeps its lock, is reported, and holds nobody else up.
    pub(crate) fn reconcile(self: &Arc<Self>) -> Result<Reconciled> {
        let identity = self.identity()?;
        let mut report = Reconciled::default();
        let survey = Arc::new(self.survey(&identity)?);
        let mut volumes = survey.volumes.clone();
        for entry in self.journal.entries()? {
            match entry {
                Entry::Intent(intent) => {
                    volumes.insert(intent.volume);
                }
                Entry::Unreadable { path, reason } => report.leftovers.push(format!(
                    "journal entry {} is kept, it cannot be read: {}",
                    path.display(),
                    reason.chain()
                )),
            }
        }
        for held in self.granted_to_us() {
            match held {
                Ok(held) => volumes.extend(held),
                Err(error) => {
                    report.leftovers.push(format!("grants to this node are not looked at: {}", error.chain()))
                }
            }
        }
        let work = {
            let node = self.clone();
            move |id: &VolumeId| {
                let (node, identity, survey, own_id) = (node.clone(), identity.clone(), survey.clone(), id.clone());
                deadline::run(node.step_deadline_ms, id.as_str(), move || {
                    node.reconcile_volume(&own_id, &identity, &survey)
                })
                .map_err(|error| format!("volume {id}: {}", error.chain()))
            }
        };
        for reconciled in crew::run(volumes, work) {
            match reconciled {
                Ok(one) => {
                    report.done.extend(one.done);
                    report.leftovers.extend(one.leftovers);
                }
                Err(left) => report.leftovers.push(left),
            }
        }
        Ok(report)
    }

    fn reconcile_volume(&self, id: &VolumeId, identity: &NodeIdentity, survey: &Survey) -> Result<Reconciled> {
        let guard = self.locks.try_lock([id.as_str()])?;
        let connector = self.connector(id)?;
        let connections = survey.connections.get(id).cloned().unwrap_or_default();
        let surveyed = View::of(self, connector, id, connections, &survey.mounts)?;
        let mut report = Reconciled::default();
        let (volume, found) = self.find(connector, id, identity, &surveyed)?;
        let mut steps = plan_reconcile(&found);
        self.thaw(id, &surveyed, &mut report)?;
        if steps.is_empty() {
            if let (Some(volume), Some(Connected::Device { path, number, .. }), true) =
                (&volume, &surveyed.connected, found.is_granted)
            {
                self.tune_connected(&guard, volume, path, *number);
            }
        } else {
            // The survey is of before the lock, and older with each volume. Nothing is done on its word.
            let view = View::read(self, connector, id)?;
            steps = plan_reconcile(&self.find(connector, id, identity, &view)?.1);
        }
        for step in steps {
            let done = match &step {
                Step::Unmount(path) => self.unmount_ours(connector, id, path),
                Step::Remove(path) => self.remove_unmounted(path),
                Step::Disconnect => self.disconnect(&guard, connector, id),
                Step::GiveBack => self.give_back(&guard, connector, id),
                Step::Forget => {
                    self.forget(&guard, id);
                    continue;
                }
                Step::Report(what) => {
                    report.leftovers.push(format!("volume {id}: {what}"));
                    continue;
                }
            };
            match done {
                Ok(()) => report.done.push(format!("volume {id}: {step:?}")),
                Err(error) => {
                    // The note stays, and with it the rest of the work for the next start or the next call.
                    report.leftovers.push(format!("volume {id}: {step:?}: {}", error.chain()));
                    break;
                }
            }
        }
        Ok(report)
    }

    fn find(
        &self,
        connector: &dyn Connector,
        id: &VolumeId,
        identity: &NodeIdentity,
        view: &View,
    ) -> Result<(Option<Volume>, Found)> {
        let volume = match connector.volume(id) {
            Ok(volume) => Some(volume),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let found = Found {
            // Under the lock: a call that came in meanwhile has settled its note.
            intent: self.journal.find(id)?,
            kind: volume.as_ref().map(|volume| volume.kind),
            is_granted: volume
                .as_ref()
                .is_some_and(|volume| check_granted(volume, identity, view.connected.as_ref(), None).is_ok()),
            is_connected: view.connected.is_some(),
            is_ours_to_give_back: self.takes_grants()
                && volume
                    .as_ref()
                    .and_then(|volume| volume.attachment.as_ref())
                    .is_some_and(|a| a.holder.node == self.id),
            places: view.places().into_iter().map(Into::into).collect(),
            own_staging: (!self.is_staged_by_caller).then(|| self.own_staging_path(id)),
        };
        Ok((volume, found))
    }

    /// A file system that is mounted or may be, somewhere; what a raw device holds is nobody's to thaw.
    fn thaw(&self, id: &VolumeId, view: &View, report: &mut Reconciled) -> Result<()> {
        let Some(Connected::Device { number, .. }) = &view.connected else { return Ok(()) };
        let mounted_at = view.file_system_at();
        if (mounted_at.is_some() || !view.has_raw_targets()) && self.host.thaw_left_over(*number, mounted_at)? {
            report.done.push(format!("volume {id}: thawed, a snapshot that was cut short had left it frozen"));
        }
        Ok(())
    }
}

fn plan_reconcile(found: &Found) -> Vec<Step> {
    let mut steps = Vec::new();
    let Some(intent) = &found.intent else { return plan_without_intent(found) };
    let target = intent.target_path.as_deref();
    match intent.operation {
        Operation::Stage | Operation::Unstage => {
            let staging = intent.staging_target_path.as_deref();
            if found.published(staging, None).next().is_some() {
                steps.push(Step::Report("a stage or unstage was interrupted, but it is published and stays as it is"));
            } else {
                found.take_down(staging, &mut steps);
            }
        }
        Operation::Publish => {
            // A target that is mounted was published; its caller repeats the call, or unpublishes it.
            if let Some(target) = target
                && !found.is_mounted(target)
            {
                steps.push(Step::Remove(target.to_owned()));
            }
            found.take_down_own_staging(None, &mut steps);
        }
        Operation::Unpublish => {
            if let Some(target) = target {
                if found.is_mounted(target) {
                    steps.push(Step::Unmount(target.to_owned()));
                }
                steps.push(Step::Remove(target.to_owned()));
            }
            found.take_down_own_staging(target, &mut steps);
        }
    }
    found.give_back(&mut steps);
    steps.push(Step::Forget);
    steps
}

fn plan_without_intent(found: &Found) -> Vec<Step> {
    let mut steps = Vec::new();
    if !found.places.is_empty() {
        if !found.is_granted {
            steps.push(Step::Report(
                "it is mounted here, but its record does not give it to this life of the node; unpublish and unstage it",
            ));
        }
        found.take_down_own_staging(None, &mut steps);
    } else if found.is_connected {
        match found.kind {
            // Staged by its orchestrator, and not published yet.
            Some(VolumeKind::Block) if found.is_granted && found.own_staging.is_none() => {}
            // A file system's device that is not mounted serves nobody; staging connects it again.
            _ => steps.push(Step::Disconnect),
        }
    }
    found.give_back(&mut steps);
    steps
}

impl Found {
    fn is_mounted(&self, path: &Path) -> bool {
        self.places.iter().any(|place| place == path)
    }

    /// Where it is mounted apart from its staging and one target.
    fn published<'a>(
        &'a self,
        staging: Option<&'a Path>,
        besides: Option<&'a Path>,
    ) -> impl Iterator<Item = &'a PathBuf> {
        let is_at = |place: &Path, path: Option<&Path>| path.is_some_and(|path| is_same_place(place, path));
        self.places.iter().filter(move |place| !is_at(place, staging) && !is_at(place, besides))
    }

    fn take_down(&self, staging: Option<&Path>, steps: &mut Vec<Step>) {
        if let Some(staging) = staging
            && self.is_mounted(staging)
        {
            steps.push(Step::Unmount(staging.to_owned()));
        }
        if self.is_connected {
            steps.push(Step::Disconnect);
        }
    }

    /// A grant that nothing here uses any more, or that a stage had only just taken.
    fn give_back(&self, steps: &mut Vec<Step>) {
        let is_unused = self.places.is_empty() && !self.is_connected;
        if self.is_ours_to_give_back && (is_unused || steps.contains(&Step::Disconnect)) {
            steps.push(Step::GiveBack);
        }
    }

    /// Where publish stages: takes the staging down when no target but `besides` shows the volume.
    fn take_down_own_staging(&self, besides: Option<&Path>, steps: &mut Vec<Step>) {
        let Some(staging) = self.own_staging.as_deref() else { return };
        if self.published(Some(staging), besides).next().is_none() {
            self.take_down(Some(staging), steps);
            steps.push(Step::Remove(staging.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Step::{Disconnect, Forget, GiveBack};
    use volume::{BackendName, Epoch, FsType, VolumeName};

    const FS: VolumeKind = VolumeKind::FileSystem(FsType::Ext4);

    fn found(kind: VolumeKind, places: &[&str], operation: Option<Operation>) -> Found {
        let id = VolumeId::of_name(&BackendName::parse("pool").unwrap(), &VolumeName::parse("v").unwrap());
        let intent = operation.map(|operation| Intent {
            staging_target_path: Some("/s".into()),
            target_path: Some("/t".into()),
            ..Intent::new(&id, operation, Epoch(1))
        });
        Found {
            intent,
            kind: Some(kind),
            is_granted: true,
            is_connected: true,
            is_ours_to_give_back: false,
            places: places.iter().map(Into::into).collect(),
            own_staging: None,
        }
    }

    fn unmount(path: &str) -> Step {
        Step::Unmount(path.into())
    }

    fn remove(path: &str) -> Step {
        Step::Remove(path.into())
    }

    #[test]
    fn interrupted_calls() {
        use Operation::{Publish, Stage, Unpublish, Unstage};
        for (operation, places, expected) in [
            (Stage, &[][..], vec![Disconnect, Forget]),
            (Stage, &["/s"], vec![unmount("/s"), Disconnect, Forget]),
            (Unstage, &["/s"], vec![unmount("/s"), Disconnect, Forget]),
            (Unstage, &[], vec![Disconnect, Forget]),
            (Publish, &["/s"], vec![remove("/t"), Forget]),
            (Publish, &["/s", "/t"], vec![Forget]),
            (Unpublish, &["/s", "/t"], vec![unmount("/t"), remove("/t"), Forget]),
            (Unpublish, &["/s", "/u"], vec![remove("/t"), Forget]),
        ] {
            assert_eq!(plan_reconcile(&found(FS, places, Some(operation))), expected, "{operation:?} {places:?}");
        }
        // Published mounts stay, whatever was begun.
        for operation in [Stage, Unstage] {
            let steps = plan_reconcile(&found(FS, &["/s", "/u"], Some(operation)));
            assert!(matches!(&steps[..], [Step::Report(_), Forget]), "{steps:?}");
        }
        let gone = Found { is_connected: false, ..found(FS, &[], Some(Stage)) };
        assert_eq!(plan_reconcile(&gone), [Forget]);
    }

    #[test]
    fn interrupted_calls_where_publish_stages() {
        let own =
            |places: &[&str], operation| Found { own_staging: Some("/s".into()), ..found(FS, places, Some(operation)) };
        let down = |first: Vec<Step>| [first, vec![unmount("/s"), Disconnect, remove("/s"), Forget]].concat();
        assert_eq!(plan_reconcile(&own(&["/s"], Operation::Publish)), down(vec![remove("/t")]));
        assert_eq!(plan_reconcile(&own(&["/s", "/t"], Operation::Publish)), [Forget]);
        assert_eq!(plan_reconcile(&own(&["/s", "/u"], Operation::Publish)), [remove("/t"), Forget]);
        assert_eq!(plan_reconcile(&own(&["/s", "/t"], Operation::Unpublish)), down(vec![unmount("/t"), remove("/t")]));
        assert_eq!(
            plan_reconcile(&own(&["/s", "/t", "/u"], Operation::Unpublish)),
            [unmount("/t"), remove("/t"), Forget]
        );
    }

    #[test]
    fn grants_that_the_node_took() {
        let taken = |is_connected, places: &[&str], operation| Found {
            is_ours_to_give_back: true,
            is_connected,
            ..found(FS, places, operation)
        };
        let plan = |found: Found| plan_reconcile(&found);
        assert_eq!(plan(taken(false, &[], None)), [GiveBack], "a crash after the grant");
        assert_eq!(plan(taken(false, &[], Some(Operation::Stage))), [GiveBack, Forget]);
        assert_eq!(plan(taken(true, &[], None)), [Disconnect, GiveBack]);
        assert_eq!(plan(taken(true, &["/s"], Some(Operation::Unstage))), [unmount("/s"), Disconnect, GiveBack, Forget]);
        for places in [&["/s"][..], &["/s", "/t"]] {
            assert!(plan(taken(true, places, None)).is_empty(), "it is in use: {places:?}");
        }
        let raw = Found { kind: Some(VolumeKind::Block), ..taken(true, &[], None) };
        assert!(plan(raw).is_empty(), "a raw device that is staged");
        assert_eq!(plan(Found { is_ours_to_give_back: false, ..taken(false, &[], None) }), []);
    }

    #[test]
    fn without_a_note() {
        let plan = |found: Found| plan_reconcile(&found);
        assert!(plan(found(FS, &["/s"], None)).is_empty(), "staged");
        assert!(plan(found(FS, &["/s", "/t"], None)).is_empty(), "published");
        assert_eq!(plan(found(FS, &[], None)), [Disconnect]);
        assert!(plan(found(VolumeKind::Block, &[], None)).is_empty(), "staged");
        assert_eq!(plan(Found { is_granted: false, ..found(VolumeKind::Block, &[], None) }), [Disconnect]);
        assert_eq!(plan(Found { kind: None, ..found(VolumeKind::Block, &[], None) }), [Disconnect]);
        let foreign = plan(Found { is_granted: false, ..found(FS, &["/s", "/t"], None) });
        assert!(matches!(&foreign[..], [Step::Report(_)]), "{foreign:?}");
        let own = |kind, places: &[&str]| Found { own_staging: Some("/s".into()), ..found(kind, places, None) };
        assert_eq!(plan(own(FS, &["/s"])), [unmount("/s"), Disconnect, remove("/s")]);
        assert!(plan(own(FS, &["/s", "/t"])).is_empty());
        assert_eq!(plan(own(VolumeKind::Block, &[])), [Disconnect]);
    }
}
