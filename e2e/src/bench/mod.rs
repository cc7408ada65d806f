//! What `cargo xtask bench` measures: series of samples as lines of JSON on stdout, judged and drawn there.
//!
//! What is compared is measured in turns, in one run, so that whatever else the machine does befalls both.

mod baselines;
mod fio;
mod path;
mod scale;
mod snapshots;

use crate::client::survive_interrupts;
use crate::failure::{Context, Result, ensure};
use crate::lab::{Lab, kernel};
use crate::missing_privilege;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Measure {
    /// A volume's whole way up and down, against programs and against bare system calls.
    Path,
    /// Staging, memory and restart with many volumes on one node.
    Scale,
    /// Snapshots, clones and changed blocks of large images with many extents.
    Snapshots,
    /// Throughput through a volume.
    Fio,
}

pub(crate) fn run(measure: Measure, hawser: &Path, quick: bool) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        return Err(reason.into());
    }
    survive_interrupts()?;
    match measure {
        Measure::Path => path::measure(hawser, quick),
        Measure::Scale => scale::measure(hawser, quick),
        Measure::Snapshots => snapshots::measure(hawser, quick),
        Measure::Fio => fio::measure(hawser, quick),
    }
}

/// One line: what was measured, in the order in which it was.
fn series(measure: &str, name: &str, unit: &str, samples: &[f64]) {
    println!("{}", json!({"measure": measure, "series": name, "unit": unit, "samples": samples}));
}

fn unmeasured(measure: &str, name: &str, why: &str) {
    println!("{}", json!({"measure": measure, "series": name, "unmeasured": why}));
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// How long `work` took, in milliseconds.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(ms(began.elapsed()))
}

/// A lab whose pool is xfs with reflink on a loop device with direct I/O, so that no page cache below it flatters
/// anything. The image is sparse.
fn lab(hawser: &Path, size_gib: u64) -> Result<Lab> {
    let lab = Lab::without_pool(hawser)?;
    let image = lab.path("pool.img").to_string_lossy().into_owned();
    let pool = lab.pool().to_string_lossy().into_owned();
    std::fs::File::create(&image)?.set_len(size_gib << 30)?;
    // The log of a large file system is large, and written in full.
    kernel::program("mkfs.xfs", &["-q", "-m", "reflink=1", "-l", "size=64m", &image])
        .context(|| "making the scratch pool".to_owned())?;
    let device = kernel::program("losetup", &["--find", "--show", "--direct-io=on", &image])?;
    let device = device.trim();
    let mounted = kernel::program("mount", &["-t", "xfs", device, &pool]);
    // In use it goes away with its last user, the mount.
    kernel::program("losetup", &["--detach", device])?;
    mounted.context(|| "mounting the scratch pool".to_owned())?;
    let direct = std::fs::read_to_string(format!("/sys/block/{}/loop/dio", device.trim_start_matches("/dev/")));
    ensure(direct.is_ok_and(|on| on.trim() == "1"), || {
        format!("{image} has no direct I/O, which all is measured with")
    })?;
    Ok(lab)
}
