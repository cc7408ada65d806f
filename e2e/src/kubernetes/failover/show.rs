//! The show: a pod writes like a database, its node is killed, and one screen says who has the volume, what was
//! acknowledged and for how long nothing was. On a terminal it is drawn anew; elsewhere each change is a line.

use super::fault::Fault;
use super::mover::{Mover, has_taint};
use super::pool;
use super::room::{Room, pool_of};
use super::run::victims;
use super::watch::Subject;
use super::workload::{Access, CLASS, Kind, Workload};
use super::{Failovers, installed, oracle};
use crate::client::is_interrupted;
use crate::failure::{Failure, Result, ensure};
use crate::kubernetes::Lab;
use crate::kubernetes::cluster::has_condition;
use crate::kubernetes::node::Node;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const WRITERS: u32 = 4;
const PAUSE_MS: u64 = 10;
const BETWEEN_FRAMES: Duration = Duration::from_millis(250);
/// How long each state is shown.
const BEFORE: Duration = Duration::from_secs(10);
const AFTER: Duration = Duration::from_secs(8);
const MOVE_LIMIT: Duration = Duration::from_secs(120);

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";
/// To the upper left; then whatever is below the new frame is removed.
const HOME: &str = "\x1b[H";
const CLEAR_BELOW: &str = "\x1b[J";
const CLEAR_LINE: &str = "\x1b[K";

pub(super) fn show(failovers: &Failovers) -> Result<()> {
    let lab = failovers.lab;
    let space = Room::open(lab, failovers.ground, "show")?;
    let victims = victims(lab, failovers.mover, 0, 1)?;
    let node = *victims.first().ok_or("there is no node")?;
    let workload = Workload::start(&space, CLASS, Kind::StatefulSet, Access::Ext4, WRITERS, PAUSE_MS, &node.name)?;
    let subject = Subject::of(&space, workload)?;
    let screen = Screen::new(lab, &subject);
    let ended = AtomicBool::new(false);
    let played = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) && !is_interrupted() {
                // A frame that cannot be made is left out: the cluster is in trouble on purpose.
                let _ = screen.draw();
                std::thread::sleep(BETWEEN_FRAMES);
            }
        });
        let played = play(failovers, &space, &subject, &screen, node);
        ended.store(true, Ordering::SeqCst);
        played
    });
    let _ = screen.draw();
    played?;
    space.close()
}

fn play(failovers: &Failovers, space: &Room, subject: &Subject, screen: &Screen, node: &Node) -> Result<()> {
    let mover = failovers.mover;
    screen.say(&format!("{} writes on {}; each write is on the disk before it counts", subject.old.pod, node.name));
    pause(BEFORE)?;
    let killed = Instant::now();
    let killed_ns = Fault::NodeKilled.strike(&[node])?;
    screen.say(&format!("{} is killed, with everything that runs on it", node.name));
    if mover != Mover::Supervisor {
        screen.say("this cluster has no supervisor: the show itself fences and moves");
    }
    mover.act(failovers.lab, &space.name, &[&node.name])?;
    let first = loop {
        if let Some((start, ack)) = subject.workload.first_ack_elsewhere(&subject.old.uid)? {
            break (start, ack);
        }
        ensure(killed.elapsed() < MOVE_LIMIT, || "the workload does not write again".to_owned())?;
        pause(Duration::from_millis(20))?;
    };
    let took = first.1.end_ns.saturating_sub(killed_ns) as f64 / 1e9;
    screen.say(&format!("{} writes again on {}, {took:.2} s after the kill", first.0.pod, first.0.node));
    pause(Duration::from_secs(1))?;
    let ledger = subject.workload.ledger_of(|ack| ack.epoch == subject.old.epoch)?;
    let findings = oracle::verify(space, subject, &ledger)?;
    screen.say(&format!(
        "every write that {} acknowledged is looked for: {} of {} are there, {} lost",
        node.name, findings["acked"], findings["acked"], findings["lost"]
    ));
    pause(AFTER)?;
    screen.say(&format!("{} is switched on again", node.name));
    node.boot()?;
    mover.readmit(failovers.lab, &node.name)?;
    installed::wait_ready(failovers.lab)?;
    screen.say(&format!("{} takes part again: no taint, no fence, nothing left of its earlier life", node.name));
    pause(AFTER)
}

fn pause(length: Duration) -> Result<()> {
    let end = Instant::now() + length;
    while Instant::now() < end {
        ensure(!is_interrupted(), || "interrupted".to_owned())?;
        std::thread::sleep(Duration::from_millis(20).min(length));
    }
    Ok(())
}

struct Screen<'a> {
    lab: &'a Lab,
    subject: &'a Subject,
    is_terminal: bool,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    said: Vec<String>,
    /// What was printed last where there is no terminal.
    printed: String,
    acked: usize,
    /// When the counter grew last, and the longest time that it did not.
    grew: Option<Instant>,
    longest: Duration,
}

impl<'a> Screen<'a> {
    fn new(lab: &'a Lab, subject: &'a Subject) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        if is_terminal {
            print!("\x1b[2J");
        }
        Self { lab, subject, is_terminal, began: Instant::now(), state: Mutex::default() }
    }

    fn say(&self, text: &str) {
        let line = format!("{:6.1} s  {text}", self.began.elapsed().as_secs_f64());
        if !self.is_terminal {
            println!("{line}");
        }
        self.state().said.push(line);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) -> Result<()> {
        let (nodes, holder) = (self.nodes()?, self.holder()?);
        let acked = self.subject.workload.count();
        let mut state = self.state();
        let now = Instant::now();
        let quiet = state.grew.map_or(Duration::ZERO, |grew| now - grew);
        state.longest = state.longest.max(quiet);
        if acked > state.acked || state.grew.is_none() {
            (state.acked, state.grew) = (acked, Some(now));
        }
        let gap = format!("nothing for {:.1} s, at most for {:.1} s", quiet.as_secs_f64(), state.longest.as_secs_f64());
        let mut out = std::io::stdout().lock();
        if self.is_terminal {
            let colour = if quiet > Duration::from_secs(1) { RED } else { GREEN };
            let mut frame = vec![format!("{BOLD}hawser: a node dies{PLAIN}"), String::new()];
            frame.extend(nodes.iter().map(|(name, what)| format!("  {name:<8} {}", coloured(what))));
            frame.push(String::new());
            frame.push(format!("  volume   {holder}"));
            frame.push(format!("  acks     {BOLD}{acked}{PLAIN}   {colour}{gap}{PLAIN}"));
            frame.push(String::new());
            frame.extend(state.said.iter().map(|line| format!("  {line}")));
            let text: String = frame.iter().map(|line| format!("{line}{CLEAR_LINE}\n")).collect();
            write!(out, "{HOME}{text}{CLEAR_BELOW}")?;
        } else {
            let all: Vec<String> = nodes.iter().map(|(name, what)| format!("{name} {what}")).collect();
            let line = format!("{}; volume {holder}", all.join(", "));
            if line != state.printed {
                writeln!(out, "{:6.1} s    [{line}; {acked} acks, {gap}]", self.began.elapsed().as_secs_f64())?;
                state.printed = line;
            }
        }
        out.flush().map_err(Failure::from)
    }

    /// Names, and what Kubernetes and the pool say of them.
    fn nodes(&self) -> Result<Vec<(String, String)>> {
        let mut all = Vec::new();
        for node in &self.lab.nodes {
            let Some(object) = self.lab.cluster.find(&format!("/api/v1/nodes/{}", node.name))? else { continue };
            let mut words = match (node.is_running(), has_condition(&object, "Ready")) {
                (true, true) => vec!["Ready"],
                (true, false) => vec!["NotReady"],
                (false, true) => vec!["dead; Kubernetes has not noticed"],
                (false, false) => vec!["dead; NotReady"],
            };
            if has_taint(&object) {
                words.push("out of service");
            }
            if pool::is_fenced(&pool_of(self.lab), &node.name).unwrap_or(false) {
                words.push("fenced");
            }
            all.push((node.name.clone(), words.join(", ")));
        }
        Ok(all)
    }

    fn holder(&self) -> Result<String> {
        let states = pool::states(&self.subject.directory)?;
        Ok(match states.last().and_then(|state| state.holder.as_ref()) {
            None => "is held by nobody".to_owned(),
            Some(held) => {
                let fenced = if held.is_fenced { ", which is fenced" } else { "" };
                format!("is held by {} (epoch {}){fenced}", held.node, held.epoch)
            }
        })
    }
}

fn coloured(what: &str) -> String {
    let colour = match what {
        _ if what.contains("dead") || what.contains("fenced") => RED,
        "Ready" => GREEN,
        _ => YELLOW,
    };
    format!("{colour}{what}{PLAIN}")
}
