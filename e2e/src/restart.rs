//! Mounts outlive the process: a workload writes on, and its mount is the same one, while the driver is killed, started
//! again and stopped.

use crate::calls::{Access, Subject};
use crate::failure::{Context, Result, ensure};
use crate::lab::{Hawser, Lab, Options, PoolFs};
use crate::missing_privilege;
use crate::report::Report;
use crate::scenario::{NODE, give_back, make_directories, remove_directories};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("restart", &reason);
        return Ok(());
    }
    for access in [Access::Ext4, Access::Block, Access::Directory] {
        report.test(&format!("restart-{access:?}-a-workload-writes-on"), || writes_on(hawser, access));
    }
    Ok(())
}

fn writes_on(hawser: &Path, access: Access) -> Result<()> {
    let lab = Lab::new(hawser, PoolFs::Xfs, 1024)?;
    let volume = Subject::new("v", access);
    make_directories(&lab, &volume, NODE)?;
    let server = lab.start(&Options::node(NODE))?;
    for call in [volume.create(), volume.attach(NODE), volume.stage(&lab, NODE), volume.publish(&lab, NODE)] {
        server.client.call(&call).context(|| format!("{call:?}"))?;
    }
    let before = mounts(&lab)?;
    ensure(before.len() > 1, || format!("nothing is published: {before:?}"))?;
    let target = volume.target(&lab, NODE);
    let path = if access == Access::Block { target } else { format!("{target}/data") };
    let file = OpenOptions::new().read(true).write(true).create(access != Access::Block).truncate(false).open(&path)?;

    write(&file, 1)?;
    // SIGKILL, as dropping it does.
    drop(server);
    write(&file, 2).context(|| "after the driver was killed".to_owned())?;
    let server = lab.start(&Options::node(NODE))?;
    unchanged(&lab, &before, "a restart after a kill")?;
    write(&file, 3).context(|| "after the driver was started again".to_owned())?;
    // What an orchestrator repeats after a restart.
    for call in [volume.stage(&lab, NODE), volume.publish(&lab, NODE)] {
        server.client.call(&call).context(|| format!("repeating {call:?}"))?;
    }
    unchanged(&lab, &before, "repeated calls")?;
    server.stop()?;
    unchanged(&lab, &before, "a stop")?;
    write(&file, 4).context(|| "after the driver was stopped".to_owned())?;
    drop(file);
    take_down(&lab, &lab.start(&Options::node(NODE))?, &volume)
}

fn write(file: &File, round: u8) -> Result<()> {
    let block = [round; 4096];
    file.write_all_at(&block, u64::from(round) * 4096)?;
    file.sync_all()?;
    for earlier in 1..=round {
        let mut back = [0; 4096];
        file.read_exact_at(&mut back, u64::from(earlier) * 4096)?;
        ensure(back == [earlier; 4096], || format!("block {earlier} reads back wrong in round {round}"))?;
    }
    Ok(())
}

/// As the kernel lists them, with their ids: a mount that was taken away and made again has another.
fn mounts(lab: &Lab) -> Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let below = lab.directory().display().to_string();
    Ok(table.lines().filter(|line| line.contains(&below)).map(str::to_owned).collect())
}

fn unchanged(lab: &Lab, before: &[String], by: &str) -> Result<()> {
    let now = mounts(lab)?;
    ensure(now == before, || format!("{by} changed the mounts from {before:?} to {now:?}"))
}

fn take_down(lab: &Lab, server: &Hawser, volume: &Subject) -> Result<()> {
    give_back(lab, &server.client, volume, NODE)?;
    server.client.call(&volume.delete())?;
    remove_directories(lab, volume, NODE);
    lab.ensure_clean()
}
