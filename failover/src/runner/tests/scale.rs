//! What a thousand nodes cost, in real time: `cargo test -p failover --lib thousand_nodes_cost -- --ignored --nocapture`.

use super::shelf::Shelf;
use super::world::{FakeOrchestrator, Journal, node};
use crate::{AgentState, Config, Heartbeat, Mailbox, OrchestratorNode, Runner, Storage, Told};
use std::sync::Arc;
use std::time::{Duration, Instant};
use volume::{Backend, Incarnation, NodeId};

const NODES: usize = 1_000;
const HEARTBEAT_MS: u64 = 400;
const SECONDS: u64 = 10;

#[test]
#[ignore = "it takes ten seconds and prints figures"]
fn what_a_thousand_nodes_cost() {
    let shelf = Arc::new(Shelf::new("shared", Journal::default()));
    let nodes: Vec<(NodeId, Incarnation)> = (1..=NODES).map(|n| (node(n), Incarnation::new_random())).collect();
    nodes.iter().for_each(|(node, incarnation)| shelf.register(node, *incarnation));
    let before_bytes = resident_bytes();
    let began = Instant::now();
    let clock = Arc::new(move || 10_000 + u64::try_from(began.elapsed().as_millis()).unwrap());
    let backends: Vec<Arc<dyn Backend>> = vec![Arc::clone(&shelf) as _];
    let storage = Storage::new(Arc::new(backends), "supervisor:test".to_owned());
    let orchestrator = Arc::new(FakeOrchestrator::new(Journal::default(), Arc::clone(&shelf)));
    let (runner, mailbox) = Runner::new(Config::default(), clock.clone(), storage, orchestrator, Box::new(|_| {}));
    let board = runner.board();
    for (node, _) in &nodes {
        let state = OrchestratorNode { is_known: true, is_ready: true, in_maintenance: false, taint: None };
        mailbox.tell_lossy(Told::Node { node: node.clone(), state });
    }
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let running = tokio::spawn(runner.run());
            tokio::time::sleep(Duration::from_secs(SECONDS)).await;
            running.abort();
        });
        cpu_time("/proc/thread-self/schedstat")
    });
    let mut rounds = 0;
    while !thread.is_finished() {
        beat(&nodes, &shelf, &mailbox, rounds, clock());
        rounds += 1;
    }
    let own = thread.join().unwrap();
    let board = board.borrow().clone();
    assert!(board.is_leader && board.nodes.is_empty(), "{board:?}");
    let share = own.as_secs_f64() / SECONDS as f64 * 100.0;
    let grown = resident_bytes().saturating_sub(before_bytes);
    println!("{NODES} nodes: the runner's thread took {share:.2} % of a core; {} KiB more resident", grown >> 10);
}

/// One heartbeat of each node, spread over the interval as real ones are.
fn beat(nodes: &[(NodeId, Incarnation)], shelf: &Shelf, mailbox: &Mailbox, round: u64, now_ms: u64) {
    let began = Instant::now();
    mailbox.tell_lossy(Told::Lease(Some(now_ms + 3_000)));
    let slices = 40;
    for (slice, nodes) in nodes.chunks(nodes.len() / slices).enumerate() {
        for (node, incarnation) in nodes {
            let (node, incarnation, state) = (node.clone(), *incarnation, AgentState::Running);
            shelf.state.lock().unwrap().signs.insert(node.clone(), round);
            mailbox.tell_lossy(Told::Heartbeat(Heartbeat {
                node,
                incarnation,
                sequence: round + 1,
                state,
                sees_storage: true,
            }));
        }
        let until = Duration::from_millis(HEARTBEAT_MS * (slice as u64 + 1) / slices as u64);
        std::thread::sleep(until.saturating_sub(began.elapsed()));
    }
}

fn cpu_time(path: &str) -> Duration {
    let text = std::fs::read_to_string(path).unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
