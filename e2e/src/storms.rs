//! Many calls at once. Each answers OK, or ABORTED because other work on the same volume is under way; in the end the
//! state is that of calls one after the other.

use crate::calls::{Access, Subject};
use crate::client::{Answer, Call};
use crate::failure::{Context, Result, ensure};
use crate::lab::{Hawser, Lab, Options, PoolFs};
use crate::missing_privilege;
use crate::report::Report;
use crate::scenario::{NODE, give_back, make_directories, remove_directories};
use std::path::Path;
use tonic::{Code, Status};

const CALLS: usize = 64;

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("storms", &reason);
        return Ok(());
    }
    // A lab each, so that what one leaves behind is not blamed on the next.
    let storm = |name: &str, work: &dyn Fn(&Lab, &Hawser) -> Result<()>| {
        report.test(name, || {
            let lab = Lab::new(hawser, PoolFs::Xfs, 8192)?;
            let server = lab.start(&Options::node(NODE))?;
            work(&lab, &server)?;
            server.stop()?;
            lab.ensure_clean()
        });
    };
    for access in [Access::Ext4, Access::Block, Access::Directory] {
        storm(&format!("storm-one-volume-{access:?}"), &|lab, server| one_volume(lab, server, access));
        storm(&format!("storm-{CALLS}-volumes-{access:?}"), &|lab, server| many_volumes(lab, server, access));
    }
    storm("storm-create-and-delete", &create_and_delete);
    storm("storm-two-nodes-one-volume", &two_nodes);
    Ok(())
}

/// The same call 64 times at once, for each step of a volume's life.
fn one_volume(lab: &Lab, server: &Hawser, access: Access) -> Result<()> {
    let subject = Subject::new(format!("one-{access:?}"), access);
    make_directories(lab, &subject, NODE)?;
    for call in life(lab, &subject) {
        let answers = server.client.call_all(&vec![call.clone(); CALLS]);
        only_ok_or_aborted(&call, &answers)?;
        ensure(answers.iter().any(|answer| answer.is_ok()), || format!("none of {CALLS} succeeded: {call:?}"))?;
    }
    server.client.call_until_done(&subject.delete())?;
    remove_directories(lab, &subject, NODE);
    lab.ensure_clean()
}

/// 64 volumes side by side: none waits for another, so none is aborted.
fn many_volumes(lab: &Lab, server: &Hawser, access: Access) -> Result<()> {
    let subjects: Vec<Subject> = (0..CALLS).map(|n| Subject::new(format!("many-{n}-{access:?}"), access)).collect();
    for subject in &subjects {
        make_directories(lab, subject, NODE)?;
    }
    let lives: Vec<Vec<Call>> = subjects.iter().map(|subject| life(lab, subject)).collect();
    for step in 0..lives.first().map_or(0, Vec::len) {
        let calls: Vec<Call> = lives.iter().filter_map(|life| life.get(step).cloned()).collect();
        for (call, answer) in calls.iter().zip(server.client.call_all(&calls)) {
            answer.context(|| format!("{call:?}"))?;
        }
    }
    let deletes: Vec<Call> = subjects.iter().map(Subject::delete).collect();
    for answer in server.client.call_all(&deletes) {
        answer.context(|| "deleting".to_owned())?;
    }
    subjects.iter().for_each(|subject| remove_directories(lab, subject, NODE));
    lab.ensure_clean()
}

fn create_and_delete(lab: &Lab, server: &Hawser) -> Result<()> {
    let subject = Subject::new("there-and-gone", Access::Ext4);
    let calls: Vec<Call> = (0..CALLS).map(|n| if n % 2 == 0 { subject.create() } else { subject.delete() }).collect();
    let answers = server.client.call_all(&calls);
    only_ok_or_aborted(&subject.create(), &answers)?;
    server.client.call_until_done(&subject.delete())?;
    lab.ensure_clean()
}

/// Two nodes ask for a single-writer volume 32 times each: one gets it, the other is refused.
fn two_nodes(lab: &Lab, server: &Hawser) -> Result<()> {
    let other = lab.start(&Options::node("n2"))?;
    let subject = Subject::new("wanted-by-two", Access::Ext4);
    server.client.call_until_done(&subject.create())?;
    let calls: Vec<Call> = (0..CALLS).map(|n| subject.attach(if n % 2 == 0 { NODE } else { "n2" })).collect();
    let answers = server.client.call_all(&calls);
    let got = |parity: usize| answers.iter().skip(parity).step_by(2).any(|answer| answer.is_ok());
    ensure(got(0) != got(1), || format!("got it: {NODE} {}, n2 {}", got(0), got(1)))?;
    for answer in &answers {
        let code = answer.as_ref().err().map(Status::code);
        ensure(matches!(code, None | Some(Code::Aborted | Code::FailedPrecondition)), || format!("{answer:?}"))?;
    }
    for node in [NODE, "n2"] {
        give_back(lab, &server.client, &subject, node)?;
    }
    server.client.call_until_done(&subject.delete())?;
    other.stop()?;
    lab.ensure_clean()
}

fn life(lab: &Lab, subject: &Subject) -> Vec<Call> {
    vec![
        subject.create(),
        subject.attach(NODE),
        subject.stage(lab, NODE),
        subject.publish(lab, NODE),
        subject.unpublish(lab, NODE),
        subject.unstage(lab, NODE),
        subject.detach(NODE),
    ]
}

fn only_ok_or_aborted(call: &Call, answers: &[std::result::Result<Answer, Status>]) -> Result<()> {
    for status in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        ensure(status.code() == Code::Aborted, || format!("{status:?} to {call:?}"))?;
    }
    Ok(())
}
