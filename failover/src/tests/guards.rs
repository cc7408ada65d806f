//! When nobody may be fenced.

use super::lab::{Lab, volume_id};
use crate::{Action, Config, EventReason, Heartbeat, Input, Output, Refusal, Stays, VolumeView, Witness};

fn fenced(lab: &Lab) -> Vec<&String> {
    lab.done.iter().filter(|done| done.starts_with("fence")).collect()
}

#[test]
fn silence_alone_is_not_enough() {
    let mut lab = Lab::new(3, Config { isolated_ms: None, ..Config::default() });
    lab.run(5_000);
    lab.nodes[0].is_silent = true;
    lab.run(30_000);
    assert!(fenced(&lab).is_empty());
    assert!(lab.is_refused(0, |why| *why == Refusal::StorageSeesItAlive));
    lab.witness(0, Witness::AgentAway);
    lab.input(Input::Configure(Config::default()));
    lab.run(30_000);
    assert!(fenced(&lab).is_empty(), "only its agent is away");
    assert!(lab.is_refused(0, |why| *why == Refusal::AgentAway));
    lab.witness(0, Witness::CannotTell);
    lab.run(30_000);
    assert!(fenced(&lab).is_empty());
    lab.witness(0, Witness::Silent);
    lab.run(500);
    assert_eq!(fenced(&lab), ["fence 0"]);
}

#[test]
fn policy_may_let_silence_be_enough_after_a_while() {
    for (witness, config) in [
        (Witness::Active, Config { isolated_ms: Some(6_000), ..Config::default() }),
        (Witness::CannotTell, Config { unwitnessed_ms: Some(6_000), ..Config::default() }),
    ] {
        let mut lab = Lab::new(3, config);
        lab.run(5_000);
        lab.witness(0, witness);
        lab.nodes[0].is_silent = true;
        lab.run(5_500);
        assert!(fenced(&lab).is_empty());
        lab.run(1_000);
        assert_eq!(fenced(&lab), ["fence 0"]);
    }
}

#[test]
fn old_messages_are_no_sign_of_life() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.kill(0);
    for _ in 0..30 {
        lab.run(100);
        let node = &lab.nodes[0];
        let (id, incarnation, state) = (node.id.clone(), node.incarnation, node.state);
        let late = Heartbeat { node: id, incarnation, sequence: node.sequence, state, sees_storage: true };
        lab.input(Input::Heartbeat(late.clone()));
        lab.input(Input::Heartbeat(Heartbeat { incarnation: volume::Incarnation::new_random(), ..late }));
    }
    assert_eq!(fenced(&lab), ["fence 0"]);
}

#[test]
fn nodes_that_were_taken_away_for_good_do_not_count_as_out_of_sight() {
    let with_gone = |is_known: bool| {
        let mut lab = Lab::new(9, Config::default());
        lab.run(5_000);
        for n in 0..6 {
            lab.nodes[n].view.storage.volumes.clear();
            lab.nodes[n].orchestrator().workloads.clear();
            lab.nodes[n].orchestrator().node.is_known = is_known;
            lab.orchestrator(n, false, false);
            lab.kill(n);
        }
        lab.run(60_000);
        assert!(fenced(&lab).is_empty());
        lab.kill(6);
        lab.run(5_000);
        lab
    };
    let lab = with_gone(false);
    assert_eq!(fenced(&lab), ["fence 6"]);
    let said = lab.refusals();
    assert!(!said.iter().any(|text| text.contains("no volume")), "of them there is nothing to say: {said:?}");
    assert!(fenced(&with_gone(true)).is_empty(), "as many that are away are a reason for doubt");
}

#[test]
fn a_supervisor_that_is_cut_off_fences_nobody_then_or_when_sight_comes_back() {
    let mut lab = Lab::new(5, Config { isolated_ms: Some(3_000), ..Config::default() });
    lab.run(5_000);
    lab.nodes.iter_mut().for_each(|node| node.is_silent = true);
    lab.run(20_000);
    assert!(fenced(&lab).is_empty());
    let events = lab
        .outputs
        .iter()
        .filter(|output| matches!(output, Output::Event { node: None, reason: EventReason::FailoverRefused, .. }));
    assert_eq!(events.count(), 1, "said once, not once a node");
    // One node after the other is heard again; the last of them later than the others.
    for n in 0..4 {
        lab.nodes[n].is_silent = false;
        lab.run(400);
    }
    lab.run(1_000);
    lab.nodes[4].is_silent = false;
    lab.run(10_000);
    assert!(fenced(&lab).is_empty());
}

#[test]
fn the_storage_must_be_in_sight() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.kill(0);
    lab.reads = false;
    lab.run(10_000);
    assert!(fenced(&lab).is_empty());
    assert!(lab.is_refused(0, |why| *why == Refusal::StorageOutOfSight));
    lab.reads = true;
    lab.run(1_000);
    assert_eq!(fenced(&lab), ["fence 0"]);
}

#[test]
fn two_of_three_nodes_that_both_witnesses_call_dead_are_failed_over() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.kill(0);
    lab.kill(1);
    lab.run(6_000);
    assert_eq!(fenced(&lab), ["fence 0", "fence 1"]);
    // But not most of a large cluster.
    let mut lab = Lab::new(9, Config::default());
    lab.run(5_000);
    (0..7).for_each(|n| lab.kill(n));
    lab.run(20_000);
    assert!(fenced(&lab).is_empty());
}

#[test]
fn only_so_many_at_once() {
    let mut lab = Lab::new(9, Config::default());
    lab.run(5_000);
    lab.holds = Some(|action| matches!(action, Action::Taint { .. }));
    (0..4).for_each(|n| lab.kill(n));
    lab.run(8_000);
    assert_eq!(fenced(&lab).len(), 2, "{:?}", lab.done);
    lab.holds = None;
    lab.run(20_000);
    assert_eq!(fenced(&lab).len(), 4);
}

#[test]
fn maintenance_is_left_alone_until_it_ends() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.orchestrator(0, true, true);
    lab.kill(0);
    lab.run(30_000);
    assert!(fenced(&lab).is_empty());
    assert!(lab.is_refused(0, |why| *why == Refusal::Maintenance));
    lab.orchestrator(0, true, false);
    lab.run(1_000);
    assert_eq!(fenced(&lab), ["fence 0"]);
}

#[test]
fn what_has_opted_out_or_cannot_be_fenced_stays_and_it_says_so() {
    let mut lab = Lab::new(3, Config::default());
    let stays = |n, stays| VolumeView { id: volume_id(n), is_proven: false, stays: Some(stays) };
    let local = Stays::NoFence("the pool is local to its node".to_owned());
    lab.nodes[0].view.storage.volumes = vec![stays(10, Stays::OptedOut), stays(11, local)];
    lab.nodes[0].orchestrator().workloads.clear();
    lab.run(5_000);
    lab.kill(0);
    lab.run(120_000);
    assert!(lab.done.is_empty(), "{:?}", lab.done);
    assert!(lab.is_refused(0, |why| matches!(why, Refusal::NothingMoves(_))));
    let said = lab.refusals();
    assert!(said.iter().any(|text| text.contains("opted out") && text.contains("local to its node")), "{said:?}");
    // Beside a volume that moves they do not hold it up.
    lab.nodes[1].view.storage.volumes.push(stays(12, Stays::NoFence("local".to_owned())));
    lab.nodes[0].is_silent = false;
    lab.witness(0, Witness::Active);
    lab.run(5_000);
    lab.kill(1);
    lab.run(5_000);
    assert_eq!(lab.done, ["fence 1", "read back 1", "taint 1", "evict 1"]);
}

#[test]
fn a_new_leader_watches_first() {
    let mut lab = Lab::new(3, Config::default());
    lab.kill(0);
    lab.run(2_400);
    assert!(fenced(&lab).is_empty());
    assert!(lab.is_refused(0, |why| *why == Refusal::NewHere) || lab.refusals().is_empty());
    lab.run(800);
    assert_eq!(fenced(&lab), ["fence 0"]);
    // One that has stood by for long has watched already.
    let mut lab = Lab::new(3, Config::default());
    lab.leads = false;
    lab.run(20_000);
    lab.kill(0);
    lab.run(20_000);
    assert!(fenced(&lab).is_empty(), "it does not lead");
    lab.leads = true;
    lab.run(800);
    assert_eq!(fenced(&lab), ["fence 0"]);
}

#[test]
fn a_thawed_supervisor_trusts_nothing_from_before() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.holds = Some(|action| matches!(action, Action::Fence { .. }));
    lab.kill(0);
    lab.run(4_000);
    let (token, ..) = lab.held[0].clone();
    assert!(lab.core.confirm(lab.now, token));
    lab.now += 1_500;
    assert!(!lab.core.confirm(lab.now, token), "the lease would still hold, but what happened since?");
    assert!(!lab.core.is_leader());
    lab.held.clear();
    lab.run(2_000);
    assert!(lab.held.is_empty() && lab.core.is_leader(), "it watches anew");
    lab.run(2_000);
    assert_eq!(lab.held.len(), 1);
}

#[test]
fn a_heartbeat_between_decision_and_effect_stops_the_fence() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.holds = Some(|action| matches!(action, Action::Fence { .. }));
    lab.kill(0);
    lab.run(3_000);
    let (token, ..) = lab.held[0].clone();
    assert!(lab.core.confirm(lab.now, token));
    lab.heartbeat(0);
    assert!(!lab.core.confirm(lab.now, token));
}

#[test]
fn without_a_lease_nothing_is_done() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.holds = Some(|action| matches!(action, Action::Taint { .. }));
    lab.kill(0);
    lab.run(4_000);
    let (token, ..) = lab.held[0].clone();
    lab.leads = false;
    lab.run(2_500);
    assert!(!lab.core.confirm(lab.now, token) && !lab.core.is_leader());
    let before = lab.done.len();
    lab.run(20_000);
    assert_eq!(lab.done.len(), before);
}

#[test]
fn a_node_that_flaps_is_suspected_more_slowly() {
    let mut lab = Lab::new(3, Config { given_up_ms: None, ..Config::default() });
    lab.run(5_000);
    // With the storage out of sight it is suspected and not fenced, so it can be heard again.
    lab.reads = false;
    for _ in 0..3 {
        lab.kill(0);
        lab.run(12_000);
        lab.nodes[0].is_silent = false;
        lab.witness(0, Witness::Active);
        lab.run(5_000);
    }
    let is_said = |output: &&Output| matches!(output, Output::Event { reason: EventReason::NodeFlapping, .. });
    assert!(lab.outputs.iter().any(|output| is_said(&output)));
    lab.reads = true;
    lab.run(5_000);
    lab.kill(0);
    lab.run(9_000);
    assert!(fenced(&lab).is_empty(), "four times the patience");
    lab.run(2_000);
    assert_eq!(fenced(&lab), ["fence 0"]);
}

#[test]
fn a_node_that_is_back_in_another_life_does_not_flap() {
    let mut lab = Lab::new(3, Config { given_up_ms: None, ..Config::default() });
    lab.run(5_000);
    for _ in 0..3 {
        lab.reads = false;
        lab.kill(0);
        lab.run(4_000);
        lab.come_back(0);
        lab.reads = true;
        lab.run(5_000);
    }
    assert!(fenced(&lab).is_empty());
    lab.kill(0);
    lab.run(3_500);
    assert_eq!(fenced(&lab), ["fence 0"]);
}

#[test]
fn a_supervisor_that_was_cut_off_does_not_hold_it_against_the_nodes() {
    let mut lab = Lab::new(5, Config { given_up_ms: None, ..Config::default() });
    lab.run(5_000);
    for _ in 0..3 {
        lab.nodes.iter_mut().skip(1).for_each(|node| node.is_silent = true);
        lab.run(8_000);
        lab.nodes.iter_mut().for_each(|node| node.is_silent = false);
        lab.run(5_000);
    }
    assert!(fenced(&lab).is_empty());
    lab.kill(4);
    lab.run(3_500);
    assert_eq!(fenced(&lab), ["fence 4"]);
}

#[test]
fn old_news_of_the_orchestrator_fence_nobody() {
    let mut lab = Lab::new(5, Config { max_at_once: 1, ..Config::default() });
    lab.run(5_000);
    // The supervisor was told that the node is not ready, then cut off, and has not been told since that it is.
    lab.orchestrator(0, false, false);
    lab.nodes[0].orchestrator().node.is_ready = true;
    lab.run(20_000);
    assert!(fenced(&lab).is_empty());
    let records = lab.outputs.iter().filter(|output| matches!(output, Output::Record(_)));
    assert_eq!(records.count(), 1, "it is one failover that has not begun");
    lab.nodes[1].orchestrator().node.in_maintenance = true;
    lab.kill(1);
    lab.run(5_000);
    assert!(fenced(&lab).is_empty());
    assert!(lab.is_refused(1, |why| *why == Refusal::Maintenance));
    lab.kill(2);
    lab.run(5_000);
    assert_eq!(fenced(&lab), ["fence 2"], "what has not begun keeps no other from its place");
    lab.orchestrator(0, true, false);
    lab.run(5_000);
    lab.orchestrator(0, false, false);
    lab.come_back(2);
    lab.run(10_000);
    assert_eq!(fenced(&lab), ["fence 2", "fence 0"]);
}

#[test]
fn a_node_that_joins_later_is_not_dead_before_it_is_heard() {
    let mut lab = Lab::new(3, Config { unwitnessed_ms: Some(3_000), ..Config::default() });
    lab.run(60_000);
    let id = volume::NodeId::parse("late").unwrap();
    let registered = Input::Registered { node: id, incarnation: volume::Incarnation::new_random(), is_fenced: false };
    let outputs = lab.core.step(lab.now, registered);
    assert!(outputs.is_empty(), "{outputs:?}");
}

#[test]
fn a_node_that_the_storage_forgot_is_forgotten() {
    let mut lab = Lab::new(3, Config::default());
    lab.run(5_000);
    lab.kill(0);
    lab.run(5_000);
    assert!(!lab.core.status().is_empty());
    let node = lab.nodes[0].id.clone();
    lab.input(Input::Forgotten { node });
    lab.run(5_000);
    assert!(lab.core.status().is_empty(), "{:?}", lab.core.status());
    assert_eq!((lab.core.under_way, lab.core.seen.missing, lab.core.seen.dead), (0, 0, 0));
}
