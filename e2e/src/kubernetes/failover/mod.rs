//! Failovers in the cluster: workloads whose every acknowledged write is kept in a ledger, nodes that fail, and what must
//! hold afterwards. As scenarios each once, as a bench many times.
//!
//! - `workload`: what writes, and its recorder; `fault`: what is done to nodes; `mover`: who moves the workload
//! - `run`: one run of all that; `watch`: when it reached which step; `pool`, `oracle`: what must hold of it
//! - `fork_only`: the same where the fence stops nobody
//! - `deleted`, `opted_out`, `maintenance`: nodes and volumes that are not failed over like others; `stays`: what is not moved
//! - `controls`: that the checks notice what they are there for

mod clock;
mod controls;
mod deleted;
mod fault;
mod fork_only;
mod history;
pub(super) mod installed;
mod load;
mod maintenance;
mod mover;
mod opted_out;
mod oracle;
mod pool;
mod room;
mod run;
pub(super) mod said;
mod show;
mod stays;
mod watch;
mod workload;

use super::ground::Ground;
use super::{Lab, SPARE_NODES, wait_for_nodes};
use crate::failure::{Context, Result, ensure};
use crate::report::Report;
use fault::Fault;
use mover::Mover;
use run::{Inspect, Outcomes, Plan};
use std::cell::{Cell, RefCell};
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct FailoverArguments {
    /// Measures failovers, so many of each fault, in place of the scenarios; prints lines of JSON.
    #[arg(long, value_name = "RUNS")]
    bench_failover: Option<usize>,
    /// Only these faults.
    #[arg(long, value_delimiter = ',', value_name = "FAULT")]
    faults: Vec<Fault>,
    /// With the supervisor off, so many runs.
    #[arg(long, default_value_t = 1, value_name = "RUNS")]
    stock: usize,
    /// How long Kubernetes alone may take.
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    stock_limit: u64,
    /// Also so many runs with kubelet's own frequency of status reports, 10 s.
    #[arg(long, default_value_t = 0, value_name = "RUNS")]
    slow_status: usize,
    /// The lab moves workloads itself, even where there is a supervisor.
    #[arg(long)]
    by_hand: bool,
    /// No fault, but so much load on one node as it takes, for so long, in place of the scenarios; prints a line of JSON.
    #[arg(long, value_name = "SECONDS")]
    load: Option<u64>,
    /// The pool counts as on a network file system, where a fence is a fork alone.
    #[arg(long)]
    fork_only: bool,
    /// Shows one failover, in place of the scenarios.
    #[arg(long)]
    show: bool,
}

impl FailoverArguments {
    /// Whether what it does needs hawser's metrics.
    pub(crate) fn reads_metrics(&self) -> bool {
        self.load.is_some()
    }
}

/// A failover by the supervisor that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(120);
const WRITERS: [u32; 3] = [1, 32, 128];
/// As the lab sets it, and as Kubernetes does.
const FREQUENCIES: [&str; 2] = ["1s", "10s"];

type Scenario = fn(&Failovers) -> Result<()>;

/// Its name does not begin as the others' do.
const NODE_DRAIN: &str = "node-drain";
/// Where nobody watches nodes there is nothing to see of these.
const OF_SUPERVISOR: [(&str, Scenario); 3] = [
    ("failover-node-deleted", deleted::is_failed_over_and_registers_again),
    ("failover-opted-out", opted_out::stays_where_it_is),
    (NODE_DRAIN, maintenance::node_drain),
];

/// One run of each fault, what is not failed over like others, and the controls.
pub(super) fn all(report: &Report, lab: &Lab, ground: &Ground) {
    if !report.wants_some("failover-") && !report.wants(NODE_DRAIN) {
        return;
    }
    let failovers = match Failovers::prepare(lab, ground, false) {
        Ok(failovers) => failovers,
        Err(failure) => return report.failed("failover-set-up", &failure.to_string()),
    };
    for fault in Fault::ALL.into_iter().chain([Fault::DriverStopped]) {
        report.test(&format!("failover-{}", fault.name()), || failovers.one(fault)?.ensure_held());
    }
    for (name, scenario) in OF_SUPERVISOR {
        match failovers.mover {
            Mover::Supervisor => report.test(name, || scenario(&failovers)),
            _ if report.wants(name) => report.skipped(name, "needs the supervisor"),
            _ => {}
        }
    }
    report.test("failover-fork-only", || fork_only::moves_what_was_acked_before(&failovers));
    controls::all(report, &failovers);
}

/// Does what was asked for in place of the scenarios, if anything.
pub(super) fn instead(report: &Report, lab: &Lab, ground: &Ground, arguments: &FailoverArguments) -> bool {
    if arguments.show {
        if let Err(failure) =
            Failovers::with_nodes_as_they_are(lab, ground, arguments.by_hand).and_then(|all| show::show(&all))
        {
            report.failed("show", &failure.to_string());
        }
        return true;
    }
    if let Some(seconds) = arguments.load {
        let loaded = Failovers::with_nodes_as_they_are(lab, ground, false);
        report.test("load", || load::load(&loaded?, Duration::from_secs(seconds)));
        return true;
    }
    let Some(runs) = arguments.bench_failover else { return false };
    if let Err(failure) =
        Failovers::prepare(lab, ground, arguments.by_hand).and_then(|all| all.bench(report, arguments, runs))
    {
        report.failed("bench-failover", &failure.to_string());
    }
    true
}

struct Failovers<'a> {
    lab: &'a Lab,
    ground: &'a Ground<'a>,
    mover: Mover,
    number: Cell<usize>,
    /// The fault of each run so far.
    faults: RefCell<Vec<Fault>>,
    is_fork_only: Cell<bool>,
}

impl<'a> Failovers<'a> {
    /// With the spare nodes, and with what moves workloads in this cluster.
    fn prepare(lab: &'a Lab, ground: &'a Ground<'a>, by_hand: bool) -> Result<Self> {
        let is_spare = |name: &str| SPARE_NODES.contains(&name);
        for node in lab.nodes.iter().filter(|node| is_spare(&node.name) && !node.is_running()) {
            node.boot()?;
        }
        wait_for_nodes(&lab.cluster, &lab.nodes)?;
        Self::with_nodes_as_they_are(lab, ground, by_hand)
    }

    fn with_nodes_as_they_are(lab: &'a Lab, ground: &'a Ground<'a>, by_hand: bool) -> Result<Self> {
        let mover = if !by_hand && installed::has_supervisor(lab)? { Mover::Supervisor } else { Mover::ByHand };
        println!("failovers: {}", mover.name());
        Ok(Self {
            lab,
            ground,
            mover,
            number: Cell::new(0),
            faults: RefCell::default(),
            is_fork_only: Cell::new(false),
        })
    }

    fn one(&self, fault: Fault) -> Result<Outcomes> {
        self.run(fault, self.mover, FREQUENCIES[0], LIMIT)
    }

    fn run(&self, fault: Fault, mover: Mover, status_frequency: &str, limit: Duration) -> Result<Outcomes> {
        let turn = self.turn(fault);
        let writers = WRITERS[turn % WRITERS.len()];
        self.run_plan(&Plan { mover, turn, writers, limit, status_frequency, ..self.plan(fault) })
    }

    /// Grows with each run of a fault, however many other faults are between them, and is not alike for all faults: what
    /// a run has of several goes by it.
    fn turn(&self, fault: Fault) -> usize {
        let mut faults = self.faults.borrow_mut();
        faults.push(fault);
        fault as usize + faults.iter().filter(|earlier| **earlier == fault).count()
    }

    /// A failover, with a look at each workload once it has moved.
    fn inspect(&self, inspect: &Inspect) -> Result<Outcomes> {
        self.run_plan(&Plan { inspect: Some(inspect), ..self.plan(Fault::NodeKilled) })
    }

    /// The next run in this cluster.
    fn plan(&self, fault: Fault) -> Plan<'_> {
        let number = self.number.replace(self.number.get() + 1);
        Plan {
            lab: self.lab,
            ground: self.ground,
            fault,
            mover: self.mover,
            number,
            turn: number,
            writers: WRITERS[1],
            limit: LIMIT,
            status_frequency: FREQUENCIES[0],
            is_fork_only: self.is_fork_only.get(),
            inspect: None,
        }
    }

    fn run_plan(&self, plan: &Plan) -> Result<Outcomes> {
        let Plan { number, fault, mover, status_frequency, .. } = *plan;
        let ran = plan.run().context(|| format!("run {number}, {} by {}", fault.name(), mover.name()));
        match &ran {
            Ok(outcomes) => plan.lines(outcomes).iter().for_each(|line| println!("failover: {line}")),
            Err(failure) => {
                let line = serde_json::json!({
                    "run": number,
                    "fault": fault.name(),
                    "mover": mover.name(),
                    "status_frequency": status_frequency,
                    "attach_by_nodes": !self.lab.place.attaches_by_controller(),
                    "failure": failure.to_string(),
                });
                println!("failover: {line}");
            }
        }
        ran
    }

    /// Every fault in turn, so that what changes with time changes all of them alike.
    fn bench(&self, report: &Report, arguments: &FailoverArguments, runs: usize) -> Result<()> {
        let faults = if arguments.faults.is_empty() { Fault::ALL.to_vec() } else { arguments.faults.clone() };
        if arguments.fork_only {
            fork_only::begin(self)?;
        }
        let mut failed = 0;
        let mut note = |ran: Result<Outcomes>| {
            if let Err(failure) = ran.and_then(|outcomes| outcomes.ensure_held()) {
                println!("in a run: {failure}");
                failed += 1;
            }
        };
        for _ in 0..runs {
            faults.iter().for_each(|fault| note(self.one(*fault)));
        }
        if arguments.slow_status > 0 {
            self.lab.nodes.iter().try_for_each(|node| node.set_status_frequency(FREQUENCIES[1]))?;
            for _ in 0..arguments.slow_status {
                note(self.run(Fault::NodeKilled, self.mover, FREQUENCIES[1], LIMIT));
            }
            self.lab.nodes.iter().try_for_each(|node| node.set_status_frequency(FREQUENCIES[0]))?;
        }
        if arguments.stock > 0 {
            installed::set_supervisor(self.lab, false)?;
            for _ in 0..arguments.stock {
                let limit = Duration::from_secs(arguments.stock_limit);
                // That nothing comes back is what is expected of it.
                let _ = self.run(Fault::NodeKilled, Mover::Stock, FREQUENCIES[0], limit);
            }
            installed::set_supervisor(self.lab, true)?;
        }
        ensure(failed == 0, || format!("{failed} runs failed, or did not stand the checks"))?;
        report.ok("bench-failover");
        Ok(())
    }
}
