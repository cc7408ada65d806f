//! A thousand nodes cost next to nothing.

use super::lab::Lab;
use crate::{Config, Input};
use std::time::Instant;

const NODES: usize = 1_000;

#[test]
fn a_heartbeat_moves_no_timer_and_a_thousand_nodes_are_cheap() {
    let mut lab = Lab::new(NODES, Config::default());
    let started = Instant::now();
    lab.run(60_000);
    let seconds = started.elapsed().as_secs_f64();
    // Two and a half heartbeats a second of each node, and ten ticks a second.
    println!("{NODES} nodes for 60 s: {:.1} ms of a core a second", seconds * 1_000.0 / 60.0);
    assert!(lab.outputs.is_empty() && lab.core.status().is_empty());
    let before = lab.core.timers.len();
    assert!(before <= NODES + NODES / 10, "{before} timers");
    for _ in 0..10 {
        (0..NODES).for_each(|n| lab.heartbeat(n));
    }
    assert_eq!(lab.core.timers.len(), before, "heartbeats alone arm nothing");
    lab.input(Input::Tick);
    assert_eq!(lab.core.seen.heard, NODES);
}
