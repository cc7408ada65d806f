//! The stale actor: a controller is stopped right after an effect of its call, another one does the same call on the same
//! pool, then the first goes on. Whatever it then does, the state is that of one undisturbed call.

use crate::calls::{Access, Subject};
use crate::client::Call;
use crate::crash::{Sweep, Undisturbed};
use crate::failure::{Context, Result, ensure};
use crate::lab::{Lab, Options, PoolFs};
use crate::report::Report;
use crate::scenario::{self, NODE, give_back};
use crate::{missing_privilege, state};
use std::path::Path;
use std::time::Duration;
use tonic::Code;

const OTHER: &str = "n2";
const STOP_PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("stale-actor", &reason);
        return Ok(());
    }
    let mut sweep = Sweep::new(hawser)?;
    let names: Vec<(&str, bool)> =
        scenario::all(&sweep.lab, "").iter().map(|s| (s.name, is_of_controller(&s.call))).collect();
    for (index, (name, is_of_controller)) in names.into_iter().enumerate() {
        if !is_of_controller || !report.wants_some(&format!("stale-{name}")) {
            continue;
        }
        let undisturbed = match sweep.learn(index) {
            Ok(undisturbed) => undisturbed,
            Err(failure) => {
                report.failed(&format!("stale-{name}-undisturbed"), &failure.to_string());
                sweep = Sweep::new(hawser)?;
                continue;
            }
        };
        for effect in undisturbed.start + 1..=undisturbed.effects {
            let mut has_passed = false;
            report.test(&format!("stale-{name}-stopped-after-{effect}"), || {
                overtaken(&mut sweep, index, effect, &undisturbed)?;
                has_passed = true;
                Ok(())
            });
            if !has_passed {
                sweep = Sweep::new(hawser)?;
            }
        }
    }
    grants(report, hawser)
}

/// Scenarios whose work stops file systems that are in use.
const FREEZING: [&str; 2] = ["create-snapshot-mounted", "create-group-mounted"];

/// These can be done by any controller on the pool; the node's calls belong to their node.
fn is_of_controller(call: &Call) -> bool {
    match call {
        Call::CreateVolume(_)
        | Call::DeleteVolume(_)
        | Call::ControllerPublish(_)
        | Call::ControllerUnpublish(_)
        | Call::ControllerExpand(_)
        | Call::ControllerModify(_)
        | Call::CreateSnapshot(_)
        | Call::DeleteSnapshot(_)
        | Call::CreateGroup(_)
        | Call::DeleteGroup(_) => true,
        Call::NodeStage(_)
        | Call::NodeUnstage(_)
        | Call::NodePublish(_)
        | Call::NodeUnpublish(_)
        | Call::NodeExpand(_) => false,
    }
}

fn overtaken(sweep: &mut Sweep, index: usize, effect: u64, undisturbed: &Undisturbed) -> Result<()> {
    let (scenario, tag) = sweep.scenario(index)?;
    sweep.prepared(&scenario)?;
    let mut stale = sweep.lab.start(&Options::node(NODE).effect(format!("stop:{effect}")))?;
    let pending = stale.client.call_later(&scenario.call);
    ensure(stale.wait_stopped(STOP_PATIENCE), || format!("it was to stop after effect {effect}, and did not"))?;
    // A controller alone: a node service would register itself, which is no part of this.
    let other = sweep.lab.start(&Options { mode: "controller", ..Options::node(OTHER) })?;
    if FREEZING.contains(&scenario.name) {
        // A file system stays frozen as long as the snapshotter does, and only says: retry.
        match other.client.call(&scenario.call) {
            Err(status) if status.code() == Code::Aborted => {}
            answer => drop(answer.context(|| "the other controller".to_owned())?),
        }
    } else {
        other.client.call_until_done(&scenario.call).context(|| "the other controller".to_owned())?;
    }
    stale.resume()?;
    // It may have done its work, or find that it was overtaken; it must answer.
    if let Err(status) = pending.answer() {
        ensure(status.code() != Code::DeadlineExceeded && status.code() != Code::Unknown, || {
            format!("the stale actor: {status:?}")
        })?;
    }
    other.client.call_until_done(&scenario.call).context(|| "once more".to_owned())?;
    let found = state::observe(&sweep.lab, &other.client, &scenario, &tag)?;
    stale.stop()?;
    // What a stale actor left half done is removed when a driver starts.
    let server = sweep.lab.start(&Options::node(NODE))?;
    let cleaned = state::observe(&sweep.lab, &server.client, &scenario, &tag)?;
    ensure(cleaned == undisturbed.state, || {
        format!(
            "another end state: {} (before the restart: {})",
            state::difference(&undisturbed.state, &cleaned),
            state::difference(&undisturbed.state, &found)
        )
    })?;
    scenario.tear_down(&sweep.lab, &server.client)?;
    server.stop()?;
    other.stop()?;
    sweep.lab.ensure_clean()
}

/// A controller is stopped within a grant to one node while another controller grants to another node: one of them wins.
fn grants(report: &Report, hawser: &Path) -> Result<()> {
    if !report.wants_some("stale-grant") {
        return Ok(());
    }
    let lab = Lab::new(hawser, PoolFs::Xfs, 4096)?;
    let other = lab.start(&Options::node(OTHER))?;
    let effects = learn_grant(&lab)?;
    for effect in 1..=effects {
        report.test(&format!("stale-grant-stopped-after-{effect}"), || {
            let subject = Subject::new(format!("wanted-{effect}"), Access::Ext4);
            other.client.call_until_done(&subject.create())?;
            let mut stale = lab.spawn(&Options::node(NODE).effect(format!("stop:{effect}")))?;
            // Stopped while it starts, it asks for nothing.
            let pending =
                if stale_is_ready(&mut stale) { Some(stale.client.call_later(&subject.attach(NODE))) } else { None };
            ensure(stale.wait_stopped(STOP_PATIENCE), || format!("it was to stop after effect {effect}, and did not"))?;
            let by_other = other.client.call_until_done(&subject.attach(OTHER));
            stale.resume()?;
            let by_stale = match pending {
                Some(pending) => pending.answer(),
                None => {
                    stale.wait_ready()?;
                    stale.client.call_until_done(&subject.attach(NODE))
                }
            };
            ensure(by_other.is_ok() != by_stale.is_ok(), || format!("other: {by_other:?}; stale: {by_stale:?}"))?;
            for status in [&by_other, &by_stale].into_iter().filter_map(|answer| answer.as_ref().err()) {
                ensure(matches!(status.code(), Code::FailedPrecondition | Code::Aborted), || format!("{status:?}"))?;
            }
            let winner = if by_other.is_ok() { OTHER } else { NODE };
            let held: Vec<_> = other.client.volumes()?.into_iter().filter(|(id, ..)| *id == subject.id()).collect();
            ensure(held.iter().all(|(_, _, nodes)| nodes == &[winner]), || {
                format!("{winner} won, recorded: {held:?}")
            })?;
            for node in [NODE, OTHER] {
                give_back(&lab, &other.client, &subject, node)?;
            }
            other.client.call_until_done(&subject.delete())?;
            stale.stop()?;
            lab.ensure_clean()
        });
    }
    other.stop()
}

/// Not answering within a moment: it is stopped already.
fn stale_is_ready(stale: &mut crate::lab::Hawser) -> bool {
    for _ in 0..400 {
        if stale.wait_stopped(Duration::from_millis(5)) {
            return false;
        }
        if stale.client.probe_within(Duration::from_millis(200)) {
            return true;
        }
    }
    false
}

fn learn_grant(lab: &Lab) -> Result<u64> {
    let mut effects = 0;
    // Twice: a node that registers for the first time has more to write.
    for round in 0..2 {
        let subject = Subject::new(format!("wanted-first-{round}"), Access::Ext4);
        let log = lab.path("effects.log");
        let _ = std::fs::remove_file(&log);
        {
            let creator = lab.start(&Options { mode: "controller", ..Options::node("n3") })?;
            creator.client.call_until_done(&subject.create())?;
            creator.stop()?;
        }
        let server = lab.start(&Options::node(NODE).effect(format!("log:{}", log.display())))?;
        server.client.call(&subject.attach(NODE))?;
        effects = std::fs::read_to_string(&log).unwrap_or_default().lines().count() as u64;
        server.client.call_until_done(&subject.detach(NODE))?;
        server.client.call_until_done(&subject.delete())?;
        server.stop()?;
    }
    ensure(effects > 0, || "the grant announced no effect".to_owned())?;
    Ok(effects)
}
