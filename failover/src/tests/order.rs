//! The order of a failover, and that it can be taken up anywhere.

use super::lab::Lab;
use crate::{Action, AgentState, Answer, Config, EventReason, Input, Output, Refusal, Stage};

const MOVED: [&str; 4] = ["fence 0", "read back 0", "taint 0", "evict 0"];
const RETURNED: [&str; 2] = ["unfence 0", "untaint 0"];

#[test]
fn fence_read_back_mark_delete_and_later_unfence_unmark() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(10_000);
    assert!(lab.done.is_empty(), "{:?}", lab.done);
    lab.kill(0);
    lab.run(2_000);
    assert!(lab.done.is_empty(), "too early: {:?}", lab.done);
    lab.run(1_000);
    assert_eq!(lab.done, MOVED);
    let status = lab.core.status();
    assert_eq!(status[0].stage, Some(Stage::AwaitingReturn));
    lab.run(60_000);
    assert_eq!(lab.done, MOVED, "nothing more until it returns");
    lab.come_back(0);
    lab.run(2_500);
    assert_eq!(lab.done, MOVED, "it is watched before it is let in");
    lab.run(1_500);
    assert_eq!(lab.done[4..], RETURNED);
    assert!(lab.core.status().is_empty(), "{:?}", lab.core.status());
}

#[test]
fn a_fence_that_outlives_the_clean_up_is_lifted() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.kill(0);
    lab.run(5_000);
    lab.come_back(0);
    lab.nodes[0].view.storage.is_fenced = true;
    lab.nodes[0].state = AgentState::CleaningUp;
    lab.register(0);
    lab.run(10_000);
    assert!(!lab.done.contains(&"unfence 0".to_owned()), "it is not clean yet");
    lab.nodes[0].state = AgentState::Clean;
    lab.run(10_000);
    assert_eq!(lab.done[lab.done.len() - 2..], RETURNED);
}

/// Whatever a supervisor was about to do when it ended, the next one does.
#[test]
fn a_new_leader_goes_on_wherever_the_last_one_ended() {
    let stages: [fn(&Action) -> bool; 6] = [
        |action| matches!(action, Action::Fence { .. }),
        |action| matches!(action, Action::ReadBack),
        |action| matches!(action, Action::Taint { .. }),
        |action| matches!(action, Action::Evict { .. }),
        |action| matches!(action, Action::Unfence { .. }),
        |action| matches!(action, Action::Untaint { .. }),
    ];
    for (at, stage) in stages.into_iter().enumerate() {
        for is_carried_out in [false, true] {
            let mut lab = Lab::new(3, Config::default());
            lab.run(5_000);
            lab.holds = Some(stage);
            lab.kill(0);
            lab.run(5_000);
            if at > 3 {
                lab.come_back(0);
                lab.run(10_000);
            }
            let (_, n, action) = lab.held.last().cloned().unwrap();
            if is_carried_out {
                lab.carry_out(n, &action);
            }
            lab.holds = None;
            lab.take_over();
            if at <= 3 {
                lab.kill(0);
            }
            lab.run(10_000);
            if at <= 3 {
                lab.come_back(0);
                lab.run(10_000);
            }
            assert_eq!(lab.done.last().unwrap(), "untaint 0", "{action:?} {is_carried_out}: {:?}", lab.done);
            assert!(lab.core.status().is_empty(), "{action:?} {is_carried_out}: {:?}", lab.core.status());
            let first = |what: &str| lab.done.iter().position(|done| done == what).unwrap();
            let order: Vec<usize> = ["fence 0", "taint 0", "evict 0", "untaint 0"].map(first).into();
            assert!(order.is_sorted(), "{:?}", lab.done);
        }
    }
}

#[test]
fn without_proof_nothing_moves_and_it_keeps_saying_so() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.fence = |_| Err("the image cannot be forked".to_owned());
    lab.kill(0);
    lab.run(2_600);
    assert_eq!(lab.done, ["fence 0", "read back 0"]);
    assert!(lab.is_refused(0, |why| matches!(why, Refusal::NoProof(_))));
    assert!(lab.refusals().iter().any(|text| text.contains("the image cannot be forked")), "{:?}", lab.refusals());
    lab.run(60_000);
    assert!(lab.done.len() > 2 && !lab.done.contains(&"taint 0".to_owned()), "tried again, not moved: {:?}", lab.done);
    assert!(lab.is_refused(0, |why| matches!(why, Refusal::NoProof(_))));
    lab.fence = |_| Ok(());
    lab.run(6_000);
    assert_eq!(lab.done.last().unwrap(), "evict 0");
}

#[test]
fn a_fence_is_not_believed_but_read_back() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.holds = Some(|action| matches!(action, Action::Fence { .. }));
    lab.kill(0);
    lab.run(4_000);
    let (token, ..) = lab.held.pop().unwrap();
    // It says that all is well, and has done nothing.
    lab.input(Input::Answer { token, answer: Answer::Fenced(Vec::new()) });
    assert_eq!(lab.done, ["read back 0"]);
    lab.run(1_000);
    assert_eq!(lab.held.len(), 1, "it is fenced once more, and nothing else: {:?}", lab.done);
}

#[test]
fn late_answers_and_those_of_others_change_nothing() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.holds = Some(|action| matches!(action, Action::Taint { .. }));
    lab.kill(0);
    lab.run(4_000);
    let (old, ..) = lab.held.pop().unwrap();
    lab.run(10_000);
    let (new, ..) = lab.held.last().cloned().unwrap();
    assert_ne!(old, new, "no answer in time: tried again");
    assert!(!lab.core.confirm(lab.now, old) && lab.core.confirm(lab.now, new));
    let before = lab.core.status();
    lab.input(Input::Answer { token: old, answer: Answer::Done });
    assert_eq!(lab.core.status(), before);
}

#[test]
fn a_node_that_the_orchestrator_gave_up_is_fenced_though_it_lives() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.orchestrator(0, false, false);
    lab.run(1_900);
    assert!(lab.done.is_empty());
    lab.run(600);
    assert_eq!(lab.done, MOVED);
    // Its agent cleans up and begins a new life, which is no reason to fence it again.
    lab.come_back(0);
    lab.run(20_000);
    assert_eq!(lab.done, MOVED);
    lab.orchestrator(0, true, false);
    lab.run(10_000);
    assert_eq!(lab.done[4..], RETURNED);
}

#[test]
fn volumes_that_nobody_wants_back_hold_up_no_other_failover() {
    let mut lab = Lab::new(5, Config { max_at_once: 1, reattach_warn_ms: 10_000, ..Config::default() });
    lab.run(5_000);
    // The evicted workload's volume stays with the dead node.
    lab.holds = Some(|action| matches!(action, Action::Evict { .. }));
    lab.kill(0);
    lab.run(4_000);
    let (token, ..) = lab.held.pop().unwrap();
    lab.holds = None;
    lab.nodes[0].orchestrator().workloads.clear();
    lab.input(Input::Answer { token, answer: Answer::Done });
    lab.kill(1);
    lab.run(5_000);
    assert!(!lab.done.contains(&"fence 1".to_owned()));
    assert!(lab.is_refused(1, |why| matches!(why, Refusal::TooManyAtOnce { .. })));
    lab.run(10_000);
    assert!(lab.done.contains(&"evict 1".to_owned()), "{:?}", lab.done);
    let is_said = |output: &Output| matches!(output, Output::Event { reason: EventReason::VolumesNotReattached, .. });
    assert!(lab.outputs.iter().any(is_said));
}
