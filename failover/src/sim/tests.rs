//! The seeds, and the mistakes that they must find.

use super::check::Stats;
use super::world::{Control, World};
use crate::flaw::Flaw;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const SEEDS: u64 = 20_000;
/// How many seeds a mistake may take to be found; and one that takes two faults at the right moment.
const FOUND_WITHIN: u64 = 500;
const RARE_FOUND_WITHIN: u64 = 10_000;

/// What the seeds must bring up between them: causes, refusals, events, stages, actions.
const EVERYTHING: [&str; 39] = [
    "Dead",
    "Isolated",
    "Unwitnessed",
    "GivenUp",
    "Maintenance",
    "SeesTooFew",
    "StorageOutOfSight",
    "NewHere",
    "TooManyAtOnce",
    "StorageSeesItAlive",
    "StorageCannotTell",
    "NothingMoves",
    "NoProof",
    "FailoverStarted",
    "FailoverResumed",
    "NodeFenced",
    "WorkloadsDeleted",
    "FailoverCompleted",
    "NodeReturned",
    "FailoverRefused",
    "ActionFailed",
    "NodeFlapping",
    "NodeLostStorage",
    "SupervisorThawed",
    "Fencing",
    "ReadingBack",
    "Reattaching",
    "AwaitingReturn",
    "Refused",
    "Returning",
    "Closed",
    "Inspect",
    "Fence",
    "ReadBack",
    "Taint",
    "Evict",
    "VerifyReattach",
    "Unfence",
    "Untaint",
];

struct Played {
    violation: Option<String>,
    hash: u64,
    stats: Stats,
    trace: Vec<String>,
}

fn play(seed: u64, control: Option<Control>, is_traced: bool) -> Played {
    let mut world = World::new(seed, control, is_traced);
    // A defect that panics is a finding like any other: it has a seed.
    if std::panic::catch_unwind(AssertUnwindSafe(|| world.run())).is_err() {
        world.violation = Some("it panicked".to_owned());
    }
    if world.violation.is_none() && world.is_only_of_supervisors() && world.stats.evictions > 0 {
        world.violation = Some("workloads were moved though no node had a fault".to_owned());
    }
    Played { violation: world.violation, hash: world.hash, stats: world.stats, trace: world.trace.unwrap_or_default() }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text:?}")))
}

/// The first violation by seed.
fn play_many(first: u64, count: u64, threads: usize) -> (Stats, Option<(u64, String)>) {
    let next = AtomicU64::new(first);
    let work = || {
        let (mut stats, mut found) = (Stats::default(), None);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count || found.is_some() {
                return (stats, found);
            }
            let played = play(seed, None, false);
            stats.add(&played.stats);
            found = played.violation.map(|violation| (seed, violation));
            if found.is_some() {
                // The others end, too.
                next.store(first + count, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = (Stats::default(), None::<(u64, String)>);
        for thread in running {
            let (stats, found) = thread.join().expect("a thread of the simulation");
            all.0.add(&stats);
            all.1 = [all.1, found].into_iter().flatten().min();
        }
        all
    })
}

/// `HAWSER_SIMULATE_SEEDS`: how many, on all cores; `HAWSER_SIMULATE_SEED`: the first, or the one to print.
#[test]
fn no_history_breaks_a_promise() {
    if let (Some(seed), None) = (number("HAWSER_SIMULATE_SEED"), number("HAWSER_SIMULATE_SEEDS")) {
        let played = play(seed, None, true);
        played.trace.iter().for_each(|line| println!("{line}"));
        println!("seed {seed}: {:?}, {:?}", played.violation, played.stats);
        assert_eq!(played.violation, None, "seed {seed}");
        return;
    }
    let chosen = number("HAWSER_SIMULATE_SEEDS");
    let first = number("HAWSER_SIMULATE_SEED").unwrap_or(0);
    let count = chosen.unwrap_or(SEEDS);
    let threads = if chosen.is_some() { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    let started = Instant::now();
    let (stats, found) = play_many(first, count, threads);
    let seconds = started.elapsed().as_secs_f64();
    println!("{count} seeds in {seconds:.1} s ({:.0} a second): {stats:?}", count as f64 / seconds);
    if let Some((seed, violation)) = found {
        let trace = play(seed, None, true).trace;
        let last = trace.len().saturating_sub(60);
        trace[last..].iter().for_each(|line| println!("{line}"));
        panic!("seed {seed}: {violation}\nplay it again: cargo xtask simulate --seed {seed}");
    }
    if count >= 1_000 {
        // A world in which nothing happens would break no promise either.
        for (what, times) in [
            ("fences", stats.fences),
            ("proofs", stats.proofs),
            ("evictions", stats.evictions),
            ("returns", stats.returns),
            ("refusals", stats.refusals),
            ("attaches that were refused", stats.refused_attaches),
            ("actions that were overtaken", 10 * stats.unconfirmed),
            ("changes of the leader", stats.leaders),
            ("two leaders at once", stats.two_leaders),
        ] {
            assert!(times >= count / 10, "{what}: only {times} in {count} seeds");
        }
        // Some are rare.
        for name in EVERYTHING.iter().filter(|_| count >= SEEDS) {
            assert!(stats.said.contains_key(*name), "{name} never came up in {count} seeds");
        }
    }
}

#[test]
fn a_seed_is_always_the_same_history() {
    for seed in 0..50 {
        let (one, two) = (play(seed, None, false), play(seed, None, true));
        assert_eq!(one.hash, two.hash, "seed {seed}");
    }
}

/// Plays the seeds with a mistake until one shows it as `expected`; it may show itself in other ways, too.
fn finds(control: Control, within: u64, expected: &[&str]) {
    let mut others = 0;
    for seed in 0..within {
        let played = play(seed, Some(control), false);
        let Some(violation) = played.violation else { continue };
        if expected.iter().any(|part| violation.contains(part)) {
            println!("{control:?}: seed {seed}, after {others} others: {violation}");
            assert_eq!(played.hash, play(seed, Some(control), false).hash, "it replays");
            return;
        }
        others += 1;
    }
    panic!("{control:?} went unnoticed in {within} seeds ({others} failed otherwise)");
}

#[test]
fn a_grant_without_proof_is_found() {
    finds(Control::GrantWithoutProof, FOUND_WITHIN, &["two writers"]);
}

#[test]
fn a_fence_without_effect_is_found() {
    finds(Control::FenceWithoutEffect, FOUND_WITHIN, &["two writers", "acknowledged"]);
}

#[test]
fn a_skipped_readback_is_found() {
    finds(Control::Supervisor(Flaw::SkipReadback), FOUND_WITHIN, &["still writes"]);
}

#[test]
fn a_skipped_fence_is_found() {
    finds(Control::Supervisor(Flaw::SkipFence), FOUND_WITHIN, &["still writes"]);
}

#[test]
fn a_leader_that_fences_at_once_is_found() {
    finds(Control::Supervisor(Flaw::FenceAtOnce), FOUND_WITHIN, &["which is well"]);
}

#[test]
fn a_node_let_in_early_is_found() {
    finds(Control::Supervisor(Flaw::UntaintEarly), FOUND_WITHIN, &["whose fence stands"]);
}

#[test]
fn a_failover_that_is_forgotten_is_found() {
    finds(Control::Supervisor(Flaw::ForgetFailovers), FOUND_WITHIN, &["not whole again"]);
}

#[test]
fn an_action_without_a_last_look_is_found() {
    finds(Control::WithoutConfirm, RARE_FOUND_WITHIN, &["which is well"]);
}

#[test]
fn a_supervisor_that_does_not_doubt_itself_is_found() {
    finds(Control::Supervisor(Flaw::NoSelfPartitionGuard), FOUND_WITHIN, &["which is well"]);
}
