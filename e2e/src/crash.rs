//! The crash sweep: for each call the process is killed right after each of its effects, started again, and the call
//! repeated. The state must be that of an undisturbed run, and when everything was given back nothing may be left.
//! A caller that gives up instead of repeating must be able to give everything back as well.

use crate::failure::{Context, Result, ensure};
use crate::lab::{Hawser, Lab, PoolFs};
use crate::report::Report;
use crate::scenario::{self, Scenario};
use crate::{missing_privilege, state};
use std::path::Path;
use std::time::Duration;

/// Long enough for any call of these small volumes.
const CALL_PATIENCE: Duration = Duration::from_secs(30);

/// What the caller does after the crash.
#[derive(Debug, Clone, Copy)]
enum Then {
    Repeats,
    GivesUp,
}

/// What an undisturbed run does.
pub(crate) struct Undisturbed {
    /// Effects of the start, before the call.
    pub(crate) start: u64,
    /// Effects in all.
    pub(crate) effects: u64,
    pub(crate) state: Vec<String>,
}

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("crash-sweep", &reason);
        return Ok(());
    }
    let mut sweep = Sweep::new(hawser)?;
    let count = scenario::all(&sweep.lab, "").len();
    for index in 0..count {
        let name = scenario::all(&sweep.lab, "").get(index).map_or("", |scenario| scenario.name);
        if !report.wants_some(&format!("crash-{name}")) {
            continue;
        }
        match sweep.learn(index) {
            Ok(undisturbed) => sweep_one(report, &mut sweep, index, name, &undisturbed)?,
            Err(failure) => {
                report.failed(&format!("crash-{name}-undisturbed"), &failure.to_string());
                sweep = Sweep::new(hawser)?;
            }
        }
    }
    Ok(())
}

fn sweep_one(report: &Report, sweep: &mut Sweep, index: usize, name: &str, undisturbed: &Undisturbed) -> Result<()> {
    for effect in 1..=undisturbed.effects {
        for then in [Then::Repeats, Then::GivesUp] {
            let mut has_passed = false;
            report.test(&format!("crash-{name}-after-{effect}-caller-{then:?}"), || {
                sweep.crash(index, effect, then, undisturbed)?;
                has_passed = true;
                Ok(())
            });
            if !has_passed {
                // What it left would be blamed on the next one.
                *sweep = Sweep::new(sweep.lab.binary())?;
            }
        }
    }
    Ok(())
}

/// A lab in which scenarios run one after the other.
pub(crate) struct Sweep {
    pub(crate) lab: Lab,
    runs: u32,
}

impl Sweep {
    pub(crate) fn new(hawser: &Path) -> Result<Self> {
        Ok(Self { lab: Lab::new(hawser, PoolFs::Xfs, 4096)?, runs: 0 })
    }

    /// The scenario with names of its own, and what makes them so.
    pub(crate) fn scenario(&mut self, index: usize) -> Result<(Scenario, String)> {
        self.runs += 1;
        let tag = format!("run{}x", self.runs);
        let scenario = scenario::all(&self.lab, &tag).into_iter().nth(index).ok_or("no such scenario")?;
        Ok((scenario, tag))
    }

    pub(crate) fn prepared(&mut self, scenario: &Scenario) -> Result<()> {
        let server = self.lab.start(&scenario.options())?;
        scenario.prepare(&self.lab, &server.client)?;
        server.stop()
    }

    pub(crate) fn learn(&mut self, index: usize) -> Result<Undisturbed> {
        // The first run makes templates and the like, so that all others are alike.
        self.learn_once(index)?;
        let undisturbed = self.learn_once(index)?;
        ensure(undisturbed.effects > undisturbed.start, || "the call announced no effect".to_owned())?;
        Ok(undisturbed)
    }

    fn learn_once(&mut self, index: usize) -> Result<Undisturbed> {
        let (scenario, tag) = self.scenario(index)?;
        self.prepared(&scenario)?;
        let log = self.lab.path("effects.log");
        let _ = std::fs::remove_file(&log);
        let server = self.lab.start(&scenario.options().effect(format!("log:{}", log.display())))?;
        let effects = || std::fs::read_to_string(&log).unwrap_or_default().lines().count() as u64;
        let start = effects();
        server.client.call(&scenario.call).context(|| "undisturbed".to_owned())?;
        scenario.settle(&self.lab)?;
        let state = state::observe(&self.lab, &server.client, &scenario, &tag)?;
        let effects = effects();
        scenario.tear_down(&self.lab, &server.client).context(|| "giving back".to_owned())?;
        server.stop()?;
        self.lab.ensure_clean()?;
        Ok(Undisturbed { start, effects, state })
    }

    fn crash(&mut self, index: usize, effect: u64, then: Then, undisturbed: &Undisturbed) -> Result<()> {
        let (scenario, tag) = self.scenario(index)?;
        self.prepared(&scenario)?;
        let mut doomed = self.lab.spawn(&scenario.options().effect(format!("kill:{effect}")))?;
        // It may die while it starts; its first effects are there.
        if doomed.wait_ready().is_ok() {
            let _ = doomed.client.call_and_cancel(&scenario.call, CALL_PATIENCE);
        }
        let ended = doomed.wait(Duration::from_secs(5))?;
        ensure(ended.is_some(), || format!("it was to die after effect {effect}, and lives"))?;
        let server: Hawser = self.lab.start(&scenario.options()).context(|| "started again".to_owned())?;
        match then {
            Then::Repeats => {
                server.client.call_until_done(&scenario.call).context(|| "repeated".to_owned())?;
                scenario.settle(&self.lab)?;
                let found = state::observe(&self.lab, &server.client, &scenario, &tag)?;
                ensure(found == undisturbed.state, || {
                    format!("another end state: {}", state::difference(&undisturbed.state, &found))
                })?;
            }
            Then::GivesUp => {}
        }
        scenario.tear_down(&self.lab, &server.client)?;
        server.stop()?;
        self.lab.ensure_clean()
    }
}
