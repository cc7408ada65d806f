//! The runner with a fake orchestrator and a backend in memory, in virtual time.

mod scale;
mod shelf;
mod world;

use crate::{EventReason, Refusal, Stage};
use volume::{Failover, Parameters};
use world::{World, node};

const IN_ORDER: [&str; 5] = ["fence n1", "read n1", "taint n1", "evict uid-of-a", "read n1"];

#[tokio::test(start_paused = true)]
async fn a_dead_nodes_volumes_move_and_the_node_is_let_in_again() {
    let mut world = World::new(3, &[]);
    let id = world.volume(0, "a", &node(1), Parameters::default());
    world.start();
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    assert!(world.board().is_leader);
    assert_eq!(world.journal.all(), Vec::<String>::new(), "nothing is done while all is well");

    world.kill(&node(1));
    world.until("moved", |world| world.holder(&id) == Some(node(2))).await;
    world.until("completed", |world| says(world, EventReason::FailoverCompleted)).await;
    assert!(world.journal.has_in_order(&IN_ORDER), "{:?}", world.journal.all());
    let stages: Vec<Stage> = world.cluster().history.iter().map(|entry| entry.stage).collect();
    assert!(stages.is_sorted(), "{stages:?}");
    assert!(world.cluster().taints.contains_key(&node(1)));

    world.begin_life(&node(1));
    world.until("untainted", |world| world.cluster().taints.is_empty()).await;
    assert!(world.journal.has_in_order(&["evict uid-of-a", "unfence n1", "untaint n1"]), "{:?}", world.journal.all());
    world.until("quiet", |world| world.board().nodes.is_empty() && world.cluster().status.is_empty()).await;
    assert!(says(&world, EventReason::NodeReturned));
}

#[tokio::test(start_paused = true)]
async fn whoever_leads_next_goes_on() {
    let mut world = World::new(3, &[]);
    let id = world.volume(0, "a", &node(1), Parameters::default());
    world.start();
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    world.cluster().hangs = true;
    world.kill(&node(1));
    world.until("tainted", |world| world.journal.has("taint n1")).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    world.stop();
    world.cluster().hangs = false;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(world.holder(&id), Some(node(1)), "nobody goes on by itself");

    world.start();
    world.until("moved", |world| world.holder(&id) == Some(node(2))).await;
    assert!(says(&world, EventReason::FailoverResumed));
    let fences = world.journal.all().iter().filter(|done| *done == "fence n1").count();
    assert_eq!(fences, 1, "what is proven is not fenced again");
    world.begin_life(&node(1));
    world.until("untainted", |world| world.cluster().taints.is_empty()).await;
}

/// The negative control: with a fence that leaves no proof nothing is moved, whatever it says.
#[tokio::test(start_paused = true)]
async fn without_proof_nothing_moves() {
    let mut world = World::new(3, &[]);
    let id = world.volume(0, "a", &node(1), Parameters::default());
    world.shelves[0].state.lock().unwrap().lies = true;
    world.start();
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    world.kill(&node(1));
    world.until("fenced", |world| world.journal.has("fence n1")).await;
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(world.holder(&id), Some(node(1)));
    assert!(!world.journal.has("taint n1") && !world.journal.has("evict uid-of-a"), "{:?}", world.journal.all());
    assert!(says(&world, EventReason::ActionFailed));
}

#[tokio::test(start_paused = true)]
async fn a_local_pool_is_refused_in_words_and_not_fenced() {
    for is_away in [true, false] {
        let mut world = World::new(3, &["local-n1"]);
        let id = world.volume(1, "own", &node(1), Parameters::default());
        world.start();
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        world.kill(&node(1));
        world.shelves[1].state.lock().unwrap().is_away = is_away;
        world.until("refused", |world| refusal(world).is_some()).await;
        let why = refusal(&world).unwrap();
        assert!(matches!(&why, Refusal::NothingMoves(words) if words.contains("of node n1 alone")), "{why}");
        assert!(why.to_string().contains(id.as_str()), "{why}");
        assert!(says(&world, EventReason::FailoverRefused));
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert!(world.journal.all().iter().all(|done| done.starts_with("read")), "{:?}", world.journal.all());
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_has_opted_out_stays() {
    let mut world = World::new(3, &[]);
    let parameters = Parameters { failover: Failover::Off, ..Parameters::default() };
    let id = world.volume(0, "a", &node(1), parameters);
    world.start();
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    world.kill(&node(1));
    world.until("refused", |world| refusal(world).is_some()).await;
    let why = refusal(&world).unwrap().to_string();
    assert!(why.contains("has opted out"), "{why}");
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(world.holder(&id), Some(node(1)));
    assert!(world.journal.all().iter().all(|done| done.starts_with("read")), "{:?}", world.journal.all());
}

#[tokio::test(start_paused = true)]
async fn of_two_pools_the_shared_one_moves() {
    let mut world = World::new(3, &["local-n1"]);
    world.volume(1, "own", &node(1), Parameters::default());
    let id = world.volume(0, "a", &node(1), Parameters::default());
    world.start();
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    world.kill(&node(1));
    world.shelves[1].state.lock().unwrap().is_away = true;
    world.until("moved", |world| world.holder(&id) == Some(node(2))).await;
    assert!(world.journal.has_in_order(&IN_ORDER), "{:?}", world.journal.all());
    assert!(!world.journal.has("evict uid-of-own"), "what cannot move is not deleted");
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_cannot_be_read_is_a_reason_to_do_nothing() {
    let mut world = World::new(3, &[]);
    let id = world.volume(0, "a", &node(1), Parameters::default());
    world.start();
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    world.kill(&node(1));
    world.shelves[0].state.lock().unwrap().is_away = true;
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(world.journal.all(), Vec::<String>::new());
    world.shelves[0].state.lock().unwrap().is_away = false;
    world.until("moved", |world| world.holder(&id) == Some(node(2))).await;
}

fn says(world: &World, reason: EventReason) -> bool {
    world.cluster().events.iter().any(|(_, said, _)| *said == reason)
}

fn refusal(world: &World) -> Option<Refusal> {
    let status = world.board().nodes;
    status.into_iter().find(|status| status.node == node(1)).and_then(|status| status.refusal)
}
