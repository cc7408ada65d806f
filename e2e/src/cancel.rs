//! The cancel sweep: the client goes away after ever longer times. The work goes on; a retry finds it, and nothing leaks.

use crate::failure::{Context, Result, ensure};
use crate::lab::{Hawser, Lab, PoolFs};
use crate::report::Report;
use crate::scenario;
use crate::{missing_privilege, state};
use std::path::Path;
use std::time::Duration;

/// From before the server sees the request to after most calls have ended.
const PATIENCE_US: [u64; 10] = [0, 200, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000];

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("cancel-sweep", &reason);
        return Ok(());
    }
    let count = scenario::all(&Lab::without_pool(hawser)?, "").len();
    let mut lab = Lab::new(hawser, PoolFs::Xfs, 4096)?;
    for index in 0..count {
        let Some(scenario) = scenario::all(&lab, "").into_iter().nth(index) else { continue };
        let mut has_passed = !report.wants(&format!("cancel-{}", scenario.name));
        report.test(&format!("cancel-{}", scenario.name), || {
            let server = lab.start(&scenario.options())?;
            sweep(&lab, &server, index)?;
            server.stop()?;
            lab.ensure_clean()?;
            has_passed = true;
            Ok(())
        });
        if !has_passed {
            lab = Lab::new(hawser, PoolFs::Xfs, 4096)?;
        }
    }
    Ok(())
}

fn sweep(lab: &Lab, server: &Hawser, index: usize) -> Result<()> {
    let expected = run(lab, server, index, "undisturbed", None)?;
    for patience_us in PATIENCE_US {
        let tag = format!("after{patience_us}us");
        let found = run(lab, server, index, &tag, Some(Duration::from_micros(patience_us)))
            .context(|| format!("client gone after {patience_us} us"))?;
        ensure(found == expected, || {
            format!("client gone after {patience_us} us: {}", state::difference(&expected, &found))
        })?;
    }
    Ok(())
}

fn run(lab: &Lab, server: &Hawser, index: usize, tag: &str, patience: Option<Duration>) -> Result<Vec<String>> {
    let scenario = scenario::all(lab, tag).into_iter().nth(index).ok_or("no such scenario")?;
    scenario.prepare(lab, &server.client)?;
    if let Some(patience) = patience {
        let _ = server.client.call_and_cancel(&scenario.call, patience);
    }
    server.client.call_until_done(&scenario.call).context(|| "the retry".to_owned())?;
    let found = state::observe(lab, &server.client, &scenario, tag)?;
    scenario.tear_down(lab, &server.client)?;
    lab.ensure_clean()?;
    Ok(found)
}
