//! The steps of `cargo xtask test`, in their order.

use crate::bench;
use crate::binaries::Binaries;
use crate::chart;
use crate::counts::{Counts, count_line};
use crate::install::{self, Tools};
use crate::kubernetes::Lab;
use crate::libtest::LibtestReader;
use crate::process::{self, Log};
use crate::tidy;
use crate::workspace::{Workspace, cargo};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct TestArguments {
    /// Only these steps, and what they need.
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    only: Vec<String>,
    /// Prints the steps and what they do.
    #[arg(long)]
    list: bool,
}

struct Step {
    name: &'static str,
    about: &'static str,
    /// Steps that must have succeeded before.
    needs: &'static [&'static str],
    run: fn(&mut Session, &mut Log) -> Counts,
}

/// What earlier steps made.
struct Session {
    workspace: Workspace,
    tools: Option<Tools>,
    binaries: Option<Binaries>,
}

const STEPS: &[Step] = &[
    Step { name: "install", about: "Debian packages, Go and csi-sanity, where missing", needs: &[], run: install },
    Step { name: "fmt", about: "rustfmt", needs: &[], run: fmt },
    Step { name: "tidy", about: "the rules of this tree", needs: &["install"], run: tidy },
    Step { name: "clippy", about: "clippy, warnings are errors", needs: &["install"], run: clippy },
    Step { name: "unit", about: "unit, property and conformance tests", needs: &["install"], run: unit },
    Step { name: "build", about: "the release binaries that the steps below run", needs: &["install"], run: build },
    Step {
        name: "chart",
        about: "the Helm chart: lint, what it renders, what it refuses, and that hawser takes its configuration",
        needs: &["install", "build"],
        run: chart,
    },
    Step {
        name: "sanity",
        about: "csi-sanity against the real binary: each profile, file system and block access",
        needs: &["install", "build"],
        run: sanity,
    },
    Step {
        name: "compat",
        about: "clients of older and of later versions of CSI",
        needs: &["install", "build"],
        run: compat,
    },
    Step {
        name: "input",
        about: "bad input over the wire",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["input"]),
    },
    Step {
        name: "damage",
        about: "full, damaged and missing storage",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["damage"]),
    },
    Step {
        name: "restart",
        about: "published volumes while the process is killed, started again and stopped",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["restart"]),
    },
    Step {
        name: "modify",
        about: "mutable parameters reach the device of a published volume that is written to, and go with it",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["modify"]),
    },
    Step {
        name: "storms",
        about: "many calls at once, on one volume and on many",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["storms"]),
    },
    Step {
        name: "cancel",
        about: "the client goes away at each step of each call",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["cancel"]),
    },
    Step {
        name: "metadata",
        about: "allocated and changed blocks of snapshots against their bytes, over random workloads",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["metadata"]),
    },
    Step {
        name: "crash",
        about: "the process is killed after each effect of each call",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["crash"]),
    },
    Step {
        name: "stale",
        about: "a controller is stopped after each effect of its calls, and goes on after another took over",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["stale"]),
    },
    Step {
        name: "fencing",
        about: "fences that are killed or overtaken after each effect, or run while the node is staging",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["fencing"]),
    },
    Step {
        name: "failover",
        about: "no acknowledged write is lost, none is acknowledged after the fence; with controls that must fail",
        needs: &["build"],
        run: |session, log| e2e(session, log, &["failover"]),
    },
    Step {
        name: "demo",
        about: "the demonstration, with a killed and with a frozen node",
        needs: &["build"],
        run: demo,
    },
    Step {
        name: "kubernetes",
        about: "a real Kubernetes on this machine: the chart, volumes, each fault once, and the controls",
        needs: &["install", "build"],
        run: kubernetes,
    },
    Step {
        name: "bench",
        about: "the measuring tools, on few samples: that they work, not how fast anything is",
        needs: &["build"],
        run: bench,
    },
];

const MINUTE: Duration = Duration::from_secs(60);

/// `cargo xtask test`: whether nothing failed.
pub(crate) fn test(arguments: &TestArguments) -> Result<bool, String> {
    if arguments.list {
        for step in STEPS {
            println!("{:<12}{}", step.name, step.about);
        }
        return Ok(true);
    }
    let chosen = choose(&arguments.only)?;
    let mut session = Session { workspace: Workspace::load()?, tools: None, binaries: None };
    let logs = session.workspace.log_directory();
    let mut total = Counts::default();
    let mut failed = BTreeSet::new();
    for step in STEPS.iter().filter(|step| chosen.contains(step.name)) {
        let started = Instant::now();
        let mut log = Log::create(&logs, step.name)?;
        let counts = match step.needs.iter().find(|need| failed.contains(*need)) {
            Some(need) => Counts::fail(format!("not run, because {need} failed")),
            None => (step.run)(&mut session, &mut log),
        };
        let seconds = started.elapsed().as_secs_f64();
        let verdict = if counts.failures.is_empty() { "ok" } else { "FAILED" };
        println!("{:<12}{verdict:<8}{:<40}{seconds:>7.1} s", step.name, counts.summary());
        for failure in &counts.failures {
            println!("    {failure}");
        }
        if !counts.failures.is_empty() {
            println!("    log: {}", log.path.display());
            failed.insert(step.name);
        }
        total.add(Counts {
            failures: counts.failures.iter().map(|failure| format!("{}: {failure}", step.name)).collect(),
            skipped: counts.skipped.iter().map(|skipped| format!("{}: {skipped}", step.name)).collect(),
            ..counts
        });
    }
    print_list("skipped", &by_reason(&total.skipped));
    print_list("failed", &total.failures);
    println!("{}", total.summary());
    Ok(total.failures.is_empty())
}

fn print_list(title: &str, lines: &[String]) {
    if !lines.is_empty() {
        println!("\n{title}:");
        lines.iter().for_each(|line| println!("  {line}"));
        println!();
    }
}

/// One line a reason where many were skipped for the same one.
fn by_reason(skipped: &[String]) -> Vec<String> {
    let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for line in skipped {
        let step = line.split(": ").next().unwrap_or_default();
        let reason = line.rsplit(": ").next().unwrap_or_default();
        reasons.entry((step, reason)).or_default().push(line);
    }
    let shown = reasons.into_iter().map(|((step, reason), lines)| match lines.as_slice() {
        [line] => (*line).to_owned(),
        lines => format!("{step}: {} tests: {reason}", lines.len()),
    });
    shown.collect()
}

/// The steps named and what they need; all when none is named.
fn choose(only: &[String]) -> Result<BTreeSet<&'static str>, String> {
    let find = |name: &str| STEPS.iter().find(|step| step.name == name);
    let mut open: Vec<&Step> = Vec::new();
    for name in only {
        let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        open.push(find(name).ok_or_else(|| format!("no step {name:?}; the steps are {}", names.join(", ")))?);
    }
    if only.is_empty() {
        open.extend(STEPS);
    }
    let mut chosen = BTreeSet::new();
    while let Some(step) = open.pop() {
        if chosen.insert(step.name) {
            open.extend(step.needs.iter().filter_map(|need| find(need)));
        }
    }
    Ok(chosen)
}

fn install(session: &mut Session, log: &mut Log) -> Counts {
    let mut counts = match install::packages(log) {
        Ok(()) => Counts::pass(),
        Err(error) => Counts::fail(error),
    };
    match install::tools(&session.workspace, log) {
        Ok(tools) => {
            counts.passed += 1;
            session.tools = Some(tools);
        }
        Err(error) => counts.failures.push(error),
    }
    counts
}

fn fmt(session: &mut Session, log: &mut Log) -> Counts {
    checked(session, log, &["fmt", "--all", "--check"], 2 * MINUTE)
}

fn clippy(session: &mut Session, log: &mut Log) -> Counts {
    checked(session, log, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], 20 * MINUTE)
}

fn tidy(session: &mut Session, log: &mut Log) -> Counts {
    tidy::check(&session.workspace, |line| log.line(line))
}

fn unit(session: &mut Session, log: &mut Log) -> Counts {
    let mut reader = LibtestReader::default();
    // One stream for both: cargo names each binary on stderr, and the binary's result must not come before its name.
    let mut tests = Command::new("sh");
    tests.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(cargo());
    tests.args(["test", "--workspace", "--all-targets", "--no-fail-fast", "--", "--show-output"]);
    tests.current_dir(&session.workspace.root);
    let ended = process::run(&mut tests, 25 * MINUTE, log, &mut |line| reader.line(line));
    reader.finish(ended.is_ok())
}

fn build(session: &mut Session, log: &mut Log) -> Counts {
    match Binaries::build(&session.workspace, log) {
        Ok(binaries) => {
            session.binaries = Some(binaries);
            Counts::pass()
        }
        Err(error) => Counts::fail(error),
    }
}

fn sanity(session: &mut Session, log: &mut Log) -> Counts {
    let Some(tools) = &session.tools else { return Counts::fail("csi-sanity is not there") };
    let program = tools.csi_sanity.to_string_lossy().into_owned();
    e2e(session, log, &["sanity", "--csi-sanity", &program])
}

fn compat(session: &mut Session, log: &mut Log) -> Counts {
    let Some(tools) = &session.tools else { return Counts::fail("the CSI clients are not there") };
    let clients = tools.csi_clients.to_string_lossy().into_owned();
    e2e(session, log, &["compat", "--clients", &clients])
}

fn e2e(session: &mut Session, log: &mut Log, arguments: &[&str]) -> Counts {
    let Some(Binaries { e2e, hawser }) = &session.binaries else {
        return Counts::fail("the binaries are not there");
    };
    let mut command = Command::new(e2e);
    let logs = log.path.with_extension("logs");
    let _ = std::fs::remove_dir_all(&logs);
    command.arg("--hawser").arg(hawser).args(arguments).env("E2E_LOGS", logs);
    counted(&mut command, log, 12 * MINUTE)
}

fn demo(session: &mut Session, log: &mut Log) -> Counts {
    const RUNS: [(&[&str], bool); 4] = [
        (&["--fault", "kill"], true),
        (&["--fault", "freeze"], true),
        (&["--fault", "freeze", "--block", "--writers", "32"], true),
        // The control: a demonstration that cannot fail shows nothing.
        (&["--fault", "freeze", "--without-fence"], false),
    ];
    let Some(Binaries { hawser, .. }) = &session.binaries else { return Counts::fail("the binary is not there") };
    let mut counts = Counts::default();
    if !install::is_root() {
        counts.skipped.push("demo: mounts and loop devices need root".to_owned());
        return counts;
    }
    for (arguments, must_pass) in RUNS {
        let name = format!("demo {}", arguments.join(" "));
        let mut verdict = String::new();
        let mut command = Command::new(hawser);
        // Not a setting of the driver, which refuses what it does not know.
        command.arg("demo").args(arguments).env_remove("HAWSER_CACHE");
        let ended = process::run(&mut command, 5 * MINUTE, log, &mut |line| {
            if let Some(part) = line.strip_prefix("skipped: ") {
                counts.skipped.push(format!("{name}: {part}"));
            } else if let Some(said) = line.strip_prefix("verdict: ") {
                verdict = said.to_owned();
            } else {
                count_line(&mut counts, line);
            }
        });
        match (ended, must_pass) {
            (Ok(()), true) if verdict.starts_with("PASS") => counts.passed += 1,
            (Err(_), false) if verdict.starts_with("FAIL") => counts.passed += 1,
            (Ok(()), _) => counts.failures.push(format!("{name}: ended well, with the verdict {verdict:?}")),
            (Err(error), _) => counts.failures.push(format!("{name}: {error}; verdict {verdict:?}")),
        }
    }
    counts
}

fn chart(session: &mut Session, log: &mut Log) -> Counts {
    let Some(Binaries { hawser, .. }) = &session.binaries else { return Counts::fail("the binary is not there") };
    chart::check(&session.workspace, false, Some(hawser), log)
}

fn kubernetes(session: &mut Session, log: &mut Log) -> Counts {
    /// Where the components' logs are, and what is run.
    const LABS: [(&str, &[&str]); 2] = [
        // Not those that take minutes each, and not those of the other lab.
        ("kubernetes", &["--except", "hundred-pods", "--except", "controller-killed", "--except", "local-"]),
        ("kubernetes-local-pools", &["--local-pools", "--filter", "local-"]),
    ];
    let Some(binaries) = &session.binaries else { return Counts::fail("the binaries are not there") };
    if let Some(lacking) = Lab::lacking() {
        return Counts { skipped: vec![format!("kubernetes: {lacking}")], ..Counts::default() };
    }
    let mut counts = Counts::default();
    for (logs, arguments) in LABS {
        let lab = Lab { binaries: Some(binaries.clone()), logs };
        match lab.command(&session.workspace, log) {
            Ok(mut command) => counts.add(counted(command.args(arguments), log, 25 * MINUTE)),
            // It would be missing in the next one, too.
            Err(error) => {
                counts.failures.push(error);
                break;
            }
        }
    }
    counts
}

fn bench(session: &mut Session, log: &mut Log) -> Counts {
    let Some(binaries) = &session.binaries else { return Counts::fail("the binaries are not there") };
    if !install::is_root() {
        return Counts { skipped: vec!["bench: mounts and loop devices need root".to_owned()], ..Counts::default() };
    }
    match bench::quick(&session.workspace, binaries, log) {
        Ok(measures) => Counts { passed: measures, ..Counts::default() },
        Err(error) => Counts::fail(error),
    }
}

/// One cargo command that passes or fails as a whole.
fn checked(session: &Session, log: &mut Log, arguments: &[&str], deadline: Duration) -> Counts {
    let mut command = Command::new(cargo());
    command.args(arguments).current_dir(&session.workspace.root);
    match process::run(&mut command, deadline, log, &mut |_| {}) {
        Ok(()) => Counts::pass(),
        Err(error) => Counts::fail(error),
    }
}

/// A program that reports its tests by lines. One that fails or runs nothing without saying so counts as a failure.
fn counted(command: &mut Command, log: &mut Log, deadline: Duration) -> Counts {
    let mut counts = Counts::default();
    let ended = process::run(command, deadline, log, &mut |line| count_line(&mut counts, line));
    if let Err(error) = ended {
        if counts.failures.is_empty() || error.contains("killed") {
            counts.failures.push(error);
        }
    } else if counts == Counts::default() {
        counts.failures.push("no test was run".to_owned());
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_bring_what_they_need() {
        assert_eq!(choose(&["storms".to_owned()]).unwrap(), BTreeSet::from(["build", "install", "storms"]));
        assert_eq!(choose(&[]).unwrap().len(), STEPS.len());
        assert!(choose(&["nothing".to_owned()]).unwrap_err().contains("the steps are install"));
    }

    #[test]
    fn many_skips_for_one_reason_are_one_line() {
        let skipped = ["s: a: later", "s: b: x: later", "t: c: no root"].map(str::to_owned);
        assert_eq!(by_reason(&skipped), ["s: 2 tests: later", "t: c: no root"]);
    }

    #[test]
    fn a_program_that_reports_nothing_has_failed() {
        let directory = std::env::temp_dir().join(format!("xtask-steps-{}", std::process::id()));
        let mut log = Log::create(&directory, "sh").unwrap();
        let mut run = |script: &str| counted(Command::new("sh").args(["-c", script]), &mut log, MINUTE).summary();
        assert_eq!(run("true"), "0 passed, 1 failed");
        assert_eq!(run("exit 1"), "0 passed, 1 failed");
        assert_eq!(run("echo ok a; echo FAILED b: c; exit 1"), "1 passed, 1 failed");
        assert_eq!(run("echo ok a; exit 1"), "1 passed, 1 failed");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
