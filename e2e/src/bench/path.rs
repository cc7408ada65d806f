//! From nothing to a published ext4 of 10 GiB, and back.

use super::baselines::{Places, template};
use super::{lab, ms, series, timed};
use crate::calls::{Access, Subject};
use crate::client::{Call, Client};
use crate::failure::{Context, Result};
use crate::lab::{Lab, Options};
use crate::scenario::{NODE, make_directories, remove_directories};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

const SIZE_BYTES: u64 = 10 << 30;

#[derive(Default)]
struct Times {
    up: Vec<f64>,
    down: Vec<f64>,
}

pub(super) fn measure(hawser: &Path, quick: bool) -> Result<()> {
    let rounds = if quick { 3 } else { 100 };
    let lab = lab(hawser, 64)?;
    let server = lab.start(&Options::node(NODE))?;
    let template = template(&lab, SIZE_BYTES)?;
    let (mut ours, mut programs, mut bare) = (Times::default(), Times::default(), Times::default());
    let mut steps = BTreeMap::new();
    // The driver makes its template, and every program is read from the disk, once.
    by_hawser(&lab, &server.client, "warm", &mut Times::default(), &mut BTreeMap::new())?;
    by_programs(&lab, "warm-programs", &mut Times::default())?;
    by_bare_calls(&lab, &template, "warm-bare", &mut Times::default())?;
    for round in 0..rounds {
        by_hawser(&lab, &server.client, &format!("v{round}"), &mut ours, &mut steps)?;
        by_programs(&lab, &format!("programs{round}"), &mut programs)?;
        by_bare_calls(&lab, &template, &format!("bare{round}"), &mut bare)?;
    }
    server.stop()?;
    for (who, times) in [("hawser", &ours), ("programs", &programs), ("bare", &bare)] {
        series("path", &format!("up {who}"), "ms", &times.up);
        series("path", &format!("down {who}"), "ms", &times.down);
    }
    for (step, times) in steps {
        series("path", &format!("step {step}"), "ms", &times);
    }
    Ok(())
}

/// As an orchestrator: each call when the one before has answered.
fn by_hawser(
    lab: &Lab,
    client: &Client,
    name: &str,
    times: &mut Times,
    steps: &mut BTreeMap<&'static str, Vec<f64>>,
) -> Result<()> {
    let size_bytes = i64::try_from(SIZE_BYTES).unwrap_or(i64::MAX);
    let volume = Subject { size_bytes, ..Subject::new(name, Access::Ext4) };
    make_directories(lab, &volume, NODE)?;
    let up = [
        ("1 CreateVolume", volume.create()),
        ("2 ControllerPublishVolume", volume.attach(NODE)),
        ("3 NodeStageVolume", volume.stage(lab, NODE)),
        ("4 NodePublishVolume", volume.publish(lab, NODE)),
    ];
    let down = [
        ("5 NodeUnpublishVolume", volume.unpublish(lab, NODE)),
        ("6 NodeUnstageVolume", volume.unstage(lab, NODE)),
        ("7 ControllerUnpublishVolume", volume.detach(NODE)),
        ("8 DeleteVolume", volume.delete()),
    ];
    times.up.push(all(client, &up, steps)?);
    times.down.push(all(client, &down, steps)?);
    remove_directories(lab, &volume, NODE);
    Ok(())
}

fn all(client: &Client, calls: &[(&'static str, Call)], steps: &mut BTreeMap<&'static str, Vec<f64>>) -> Result<f64> {
    let began = Instant::now();
    for (name, call) in calls {
        let took = timed(|| client.call(call).map(drop).context(|| format!("{call:?}")))?;
        steps.entry(name).or_default().push(took);
    }
    Ok(ms(began.elapsed()))
}

fn by_programs(lab: &Lab, name: &str, times: &mut Times) -> Result<()> {
    let mut places = Places::new(lab, name)?;
    times.up.push(timed(|| places.up_by_programs(SIZE_BYTES))?);
    times.down.push(timed(|| places.down_by_programs())?);
    places.remove_directories();
    Ok(())
}

fn by_bare_calls(lab: &Lab, template: &File, name: &str, times: &mut Times) -> Result<()> {
    let mut places = Places::new(lab, name)?;
    times.up.push(timed(|| {
        places.create_bare(template)?;
        places.stage_bare()?;
        places.publish_bare()
    })?);
    times.down.push(timed(|| {
        places.unpublish_bare()?;
        places.unstage_bare()?;
        places.delete_bare()
    })?);
    places.remove_directories();
    Ok(())
}
