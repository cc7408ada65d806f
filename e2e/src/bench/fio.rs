//! fio through a volume, through a loop device set up by hand, and on the pool's own file system.

use super::{lab, series};
use crate::calls::{Access, MIB, Subject};
use crate::failure::{Context, Result};
use crate::lab::{Lab, Options, kernel};
use crate::scenario::{NODE, give_back, make_directories, remove_directories};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

const VOLUME_BYTES: i64 = 4096 * MIB;

/// How fio works: requests in flight are few enough for a machine of two cores.
struct Pattern {
    name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: &'static str,
}

const PATTERNS: [Pattern; 4] = [
    Pattern { name: "4k randread", rw: "randread", block: "4k", depth: "16" },
    Pattern { name: "4k randwrite", rw: "randwrite", block: "4k", depth: "16" },
    Pattern { name: "1m read", rw: "read", block: "1m", depth: "4" },
    Pattern { name: "1m write", rw: "write", block: "1m", depth: "4" },
];

pub(super) fn measure(hawser: &Path, quick: bool) -> Result<()> {
    let (rounds, seconds, file_mib) = if quick { (1, "1", 64) } else { (7, "3", 512) };
    let lab = lab(hawser, 32)?;
    let server = lab.start(&Options::node(NODE))?;
    let ext4 = Subject { size_bytes: VOLUME_BYTES, ..Subject::new("v", Access::Ext4) };
    let directory = Subject { size_bytes: VOLUME_BYTES, ..Subject::new("d", Access::Directory) };
    for volume in [&ext4, &directory] {
        make_directories(&lab, volume, NODE)?;
        for call in [volume.create(), volume.attach(NODE), volume.stage(&lab, NODE), volume.publish(&lab, NODE)] {
            server.client.call(&call).context(|| format!("{call:?}"))?;
        }
    }
    let by_hand = ByHand::set_up(&lab)?;
    let places = [
        ("volume", PathBuf::from(ext4.target(&lab, NODE))),
        ("loop by hand", by_hand.mounted_at.clone()),
        ("pool", lab.pool()),
        ("directory", PathBuf::from(directory.target(&lab, NODE))),
    ];
    let size = format!("{file_mib}m");
    for (_, place) in &places {
        // Every block is written before anything is measured, so that none is allocated then.
        fio(&place.join("fio.data"), &["--rw=write", "--bs=1m", "--end_fsync=1", &format!("--size={size}")])?;
    }
    let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for pattern in &PATTERNS {
        for _ in 0..rounds {
            for (name, place) in &places {
                let figure = run(&place.join("fio.data"), pattern, seconds, &size)?;
                figures.entry(format!("{} {name}", pattern.name)).or_default().push(figure);
            }
        }
    }
    for (name, samples) in &figures {
        let unit = if name.starts_with("4k") { "IOPS" } else { "MiB/s" };
        series("fio", name, unit, samples);
    }
    std::fs::remove_file(lab.pool().join("fio.data"))?;
    by_hand.take_down()?;
    for volume in [&ext4, &directory] {
        give_back(&lab, &server.client, volume, NODE)?;
        server.client.call(&volume.delete())?;
        remove_directories(&lab, volume, NODE);
    }
    server.stop()
}

/// IOPS of small requests, MiB a second of large ones.
fn run(file: &Path, pattern: &Pattern, seconds: &str, size: &str) -> Result<f64> {
    let told = fio(
        file,
        &[
            &format!("--rw={}", pattern.rw),
            &format!("--bs={}", pattern.block),
            &format!("--iodepth={}", pattern.depth),
            &format!("--runtime={seconds}"),
            "--time_based",
            &format!("--size={size}"),
        ],
    )?;
    let side = if pattern.rw.ends_with("read") { "read" } else { "write" };
    let job = &told["jobs"][0][side];
    let figure =
        if pattern.block == "4k" { job["iops"].as_f64() } else { job["bw_bytes"].as_f64().map(|b| b / 1048576.0) };
    let figure = figure.filter(|figure| *figure > 0.0);
    Ok(figure.ok_or_else(|| format!("fio tells nothing of {}: {told}", pattern.name))?)
}

fn fio(file: &Path, more: &[&str]) -> Result<Value> {
    let name = format!("--filename={}", file.display());
    let usual = ["--name=bench", &name, "--direct=1", "--ioengine=libaio", "--output-format=json"];
    let printed = kernel::program("fio", &[&usual[..], more].concat())?;
    // Warnings may come before the object.
    let json = printed.find('{').map_or("", |start| &printed[start..]);
    Ok(serde_json::from_str(json).map_err(|error| format!("cannot read what fio printed: {error}"))?)
}

/// ext4 on a loop device with direct I/O, as losetup(8) and mkfs.ext4 make it.
struct ByHand {
    image: PathBuf,
    device: String,
    mounted_at: PathBuf,
}

impl ByHand {
    fn set_up(lab: &Lab) -> Result<Self> {
        let (image, mounted_at) = (lab.pool().join("by-hand.img"), lab.path("staging").join("by-hand"));
        File::create_new(&image)?.set_len(VOLUME_BYTES.unsigned_abs())?;
        std::fs::create_dir_all(&mounted_at)?;
        let losetup = ["--find", "--show", "--direct-io=on", "--sector-size", "4096", &image.to_string_lossy()];
        let device = kernel::program("losetup", &losetup)?.trim().to_owned();
        kernel::program("mkfs.ext4", &["-q", "-m", "0", &device])?;
        kernel::program("mount", &["-t", "ext4", &device, &mounted_at.to_string_lossy()])?;
        Ok(Self { image, device, mounted_at })
    }

    fn take_down(self) -> Result<()> {
        kernel::program("umount", &[&self.mounted_at.to_string_lossy()])?;
        kernel::program("losetup", &["--detach", &self.device])?;
        std::fs::remove_dir(&self.mounted_at)?;
        Ok(std::fs::remove_file(&self.image)?)
    }
}
