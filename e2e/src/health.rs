//! Health over the wire, each cause made on real devices and taken away again; trims by the command line.

use crate::calls::{Access, Subject};
use crate::client::Health;
use crate::failure::{Context, Failure, Result, ensure};
use crate::lab::{Hawser, Lab, Options, PoolFs, entries, kernel};
use crate::report::Report;
use crate::scenario::{NODE, give_back, make_directories};
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Code;

/// A call makes three looks of 3 s at most.
const BOUND: Duration = Duration::from_secs(20);

pub(crate) fn tests(report: &Report, hawser: &Path) {
    report.test("health-file-system-that-met-an-error", || file_system_error(hawser));
    report.test("health-image-missing-or-truncated", || image(hawser));
    report.test("health-pool-unmounted", || pool_unmounted(hawser));
    report.test("health-pool-nearly-full", || pool_nearly_full(hawser));
    report.test("health-device-hung", || hung(hawser));
    report.test("health-trim", || trim(hawser));
}

/// A server and one volume, staged and published.
struct Patient {
    lab: Lab,
    server: Hawser,
    volume: Subject,
}

impl Patient {
    fn new(hawser: &Path, access: Access) -> Result<Self> {
        Self::on(Lab::new(hawser, PoolFs::Xfs, 2048)?, access)
    }

    fn on(lab: Lab, access: Access) -> Result<Self> {
        let server = lab.start(&Options::node(NODE))?;
        let volume = Subject { size_bytes: 320 << 20, ..Subject::new("patient", access) };
        make_directories(&lab, &volume, NODE)?;
        for call in [volume.create(), volume.attach(NODE), volume.stage(&lab, NODE), volume.publish(&lab, NODE)] {
            server.client.call(&call).context(|| format!("{call:?}"))?;
        }
        let patient = Self { lab, server, volume };
        patient.ensure_well("at first")?;
        Ok(patient)
    }

    fn at_node(&self, subject: &Subject) -> Result<Vec<Health>> {
        let (target, staging) = (subject.target(&self.lab, NODE), subject.staging(&self.lab, NODE));
        Ok(self.server.client.node_health(&subject.id(), &target, &staging)?)
    }

    fn ensure_node_says(&self, expected: &[(&str, &str)], when: &str) -> Result<()> {
        said(&self.at_node(&self.volume)?, expected, when)
    }

    fn ensure_controller_says(&self, expected: &[(&str, &str)], when: &str) -> Result<()> {
        said(&self.server.client.controller_health(&self.volume.id())?, expected, when)?;
        let listed = self.server.client.unhealthy()?;
        let own = listed.iter().find(|(id, _)| *id == self.volume.id());
        said(own.map_or(&[], |(_, health)| health), expected, &format!("{when}, in the list"))
    }

    fn ensure_well(&self, when: &str) -> Result<()> {
        self.ensure_node_says(&[], when)?;
        self.ensure_controller_says(&[], when)
    }

    fn image(&self) -> Result<PathBuf> {
        let directory = self.lab.pool().join("volumes").join(self.volume.id());
        let image = entries(&directory).into_iter().find(|path| path.to_string_lossy().contains("/image."));
        image.ok_or_else(|| Failure::from("the volume has no image"))
    }

    /// Where the volume's file system is mounted from: `loop7`.
    fn device_name(&self) -> Result<String> {
        let target = PathBuf::from(self.volume.target(&self.lab, NODE));
        let mount = self.lab.mounts()?.into_iter().find(|mount| mount.path == target).ok_or("it is not published")?;
        Ok(mount.source.trim_start_matches("/dev/").to_owned())
    }

    fn take_down(self) -> Result<()> {
        give_back(&self.lab, &self.server.client, &self.volume, NODE)?;
        self.server.client.call(&self.volume.delete())?;
        self.lab.ensure_clean()
    }
}

/// errors=remount-ro: whoever writes gets EROFS. When it was repaired and mounted anew all is well.
fn file_system_error(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4)?;
    let trigger = Path::new("/sys/fs/ext4").join(patient.device_name()?).join("trigger_fs_error");
    std::fs::write(trigger, "a test")?;
    let file = Path::new(&patient.volume.target(&patient.lab, NODE)).join("file");
    ensure(std::fs::write(file, "no").is_err(), || "it takes writes still".to_owned())?;
    patient.ensure_node_says(&[("INACCESSIBLE", "FileSystemReadOnly")], "after the error")?;
    patient.ensure_controller_says(&[], "what the node sees is not the controller's")?;
    let (lab, client, volume) = (&patient.lab, &patient.server.client, &patient.volume);
    for call in [volume.unpublish(lab, NODE), volume.unstage(lab, NODE), volume.stage(lab, NODE)] {
        client.call(&call).context(|| format!("{call:?}"))?;
    }
    patient.ensure_node_says(&[("DEGRADED", "FileSystemErrors")], "mounted anew and not repaired")?;
    client.call(&volume.unstage(lab, NODE))?;
    // It ends with 1 when it has repaired something.
    let _ = kernel::program("e2fsck", &["-fy", &patient.image()?.to_string_lossy()]);
    client.call(&volume.stage(lab, NODE))?;
    patient.ensure_well("after the repair")?;
    patient.take_down()
}

fn image(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Block)?;
    let (image, aside) = (patient.image()?, patient.lab.pool().join("trash/aside"));
    std::fs::rename(&image, &aside)?;
    let missing = [("DATA_LOSS", "ImageMissing")];
    patient.ensure_controller_says(&missing, "without its image")?;
    patient.ensure_node_says(&missing, "without its image")?;
    std::fs::rename(&aside, &image)?;
    patient.ensure_well("with its image")?;
    let file = OpenOptions::new().write(true).open(&image)?;
    let whole = file.metadata()?.len();
    file.set_len(whole / 2)?;
    patient.ensure_controller_says(&[("DATA_LOSS", "ImageTruncated")], "truncated")?;
    let both = [("DATA_LOSS", "ImageTruncated"), ("INACCESSIBLE", "DeviceError")];
    patient.ensure_node_says(&both, "truncated under its device")?;
    file.set_len(whole)?;
    patient.ensure_well("in its full length")?;
    patient.take_down()
}

/// The pool's directory goes away under the driver: what is open goes on, everything else does not.
fn pool_unmounted(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4)?;
    let (pool, client) = (patient.lab.pool(), &patient.server.client);
    let idle = Subject::new("idle", Access::Ext4);
    client.call(&idle.create())?;
    ensure(!client.storage_health()?.iter().any(|one| one.reason.starts_with("Pool")), || "not well".to_owned())?;
    let mount = kernel::mounts_below(&pool)?.into_iter().find(|mount| mount.path == pool).ok_or("no pool")?;
    kernel::program("umount", &["--lazy", &pool.to_string_lossy()])?;
    patient.ensure_node_says(&[("DEGRADED", "PoolUnreachable")], "mounted, the pool is away")?;
    said(&patient.at_node(&idle)?, &[("INACCESSIBLE", "PoolUnreachable")], "not mounted, the pool is away")?;
    let storage = client.storage_health()?;
    ensure(
        storage
            .iter()
            .any(|one| (one.status.as_str(), one.reason.as_str()) == ("STORAGE_UNREACHABLE", "PoolUnreachable")),
        || format!("the storage: {storage:?}"),
    )?;
    for refused in [client.unhealthy().map(drop), client.controller_health(&patient.volume.id()).map(drop)] {
        ensure(refused.as_ref().is_err_and(|s| s.code() == Code::Unavailable), || format!("controller: {refused:?}"))?;
    }
    kernel::program("mount", &[&mount.source, &pool.to_string_lossy()])?;
    patient.ensure_well("the pool is back")?;
    said(&patient.at_node(&idle)?, &[], "the pool is back")?;
    client.call(&idle.delete())?;
    patient.take_down()
}

fn pool_nearly_full(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4)?;
    let ballast = patient.lab.pool().join("trash/ballast");
    let of_pool = || -> Result<Vec<String>> {
        let found = patient.server.client.storage_health()?;
        Ok(found.into_iter().filter(|one| one.reason.starts_with("Pool")).map(|one| one.reason).collect())
    };
    ensure(of_pool()?.is_empty(), || "it says so of an empty pool".to_owned())?;
    for (free_mib, storage, volume) in
        [(100, "PoolNearlyFull", &[][..]), (30, "PoolFull", &[("DEGRADED", "PoolFull")][..])]
    {
        leave_free(&patient.lab.pool(), &ballast, free_mib)?;
        let found = of_pool()?;
        ensure(found == [storage], || format!("{free_mib} MiB free: {found:?}"))?;
        patient.ensure_controller_says(volume, storage)?;
        patient.ensure_node_says(volume, storage)?;
    }
    std::fs::remove_file(&ballast)?;
    let begun = Instant::now();
    // xfs gives the blocks of deleted files back in the background.
    while !of_pool()?.is_empty() {
        ensure(begun.elapsed() < BOUND, || "it is still said to be full".to_owned())?;
        std::thread::sleep(Duration::from_millis(50));
    }
    patient.ensure_well("with room again")?;
    patient.take_down()
}

fn leave_free(pool: &Path, ballast: &Path, mib: u64) -> Result<()> {
    let stat = nix::sys::statvfs::statvfs(pool).map_err(|errno| format!("statvfs: {errno}"))?;
    let available = stat.blocks_available() * stat.fragment_size();
    let has = std::fs::metadata(ballast).map_or(0, |metadata| metadata.len());
    let (offset, length) = (has.to_string(), available.saturating_sub(mib << 20).to_string());
    kernel::program("fallocate", &["-o", &offset, "-l", &length, &ballast.to_string_lossy()]).map(drop)
}

/// The disk below the pool answers nothing: every call is answered in time, and asking again costs no threads.
fn hung(hawser: &Path) -> Result<()> {
    let (lab, disk) = Lab::on_stalling_disk(hawser, 2048)?;
    let patient = Patient::on(lab, Access::Ext4)?;
    // Dropped before the patient, whose server could not be ended while its disk hangs.
    let disk = disk;
    let client = &patient.server.client;
    disk.stall();
    let is_hung = |found: &[Health]| {
        found.iter().any(|one| one.status == "INACCESSIBLE" && matches!(one.reason.as_str(), "DeviceHung" | "PoolHung"))
    };
    let begun = Instant::now();
    let found = patient.at_node(&patient.volume)?;
    ensure(is_hung(&found), || format!("while its disk hangs: {found:?}"))?;
    client.storage_health()?;
    ensure(begun.elapsed() < BOUND, || format!("answered after {:?}", begun.elapsed()))?;
    let threads = || patient.server.threads();
    let (before, begun) = (threads()?, Instant::now());
    for _ in 0..20 {
        let found = patient.at_node(&patient.volume)?;
        ensure(is_hung(&found), || format!("asked again: {found:?}"))?;
    }
    let after = threads()?;
    ensure(after <= before + 2, || format!("{before} threads became {after}"))?;
    ensure(begun.elapsed() < BOUND, || format!("20 more calls took {:?}", begun.elapsed()))?;
    ensure(client.probe_within(BOUND) || client.storage_health().is_ok(), || "the driver is stuck".to_owned())?;
    disk.go_on();
    let begun = Instant::now();
    while !patient.at_node(&patient.volume)?.is_empty() {
        ensure(begun.elapsed() < BOUND, || "it is still said to hang".to_owned())?;
        std::thread::sleep(Duration::from_millis(50));
    }
    patient.take_down()
}

/// The command runs beside the server and finds the mount, in whatever namespace it is.
fn trim(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4)?;
    let (lab, options) = (&patient.lab, Options::node("elsewhere"));
    let target = PathBuf::from(patient.volume.target(lab, NODE));
    let kept = vec![7; 8 << 20];
    std::fs::write(target.join("kept"), &kept)?;
    std::fs::write(target.join("deleted"), vec![9; 64 << 20])?;
    kernel::program("sync", &["-f", &target.to_string_lossy()])?;
    std::fs::remove_file(target.join("deleted"))?;
    kernel::program("sync", &["-f", &target.to_string_lossy()])?;
    let image = patient.image()?;
    let allocated = || -> Result<u64> { Ok(std::fs::metadata(&image)?.blocks() * 512) };
    ensure(allocated()? > 70 << 20, || "the space went away without a trim".to_owned())?;
    let printed = lab.run(&options, &["--json", "volume", "trim", "patient"])?;
    let after = allocated()?;
    ensure(after < 32 << 20, || format!("{after} bytes are left: {printed}"))?;
    ensure(printed.contains(&format!("\"allocated_after_bytes\": {after}")), || format!("{after}: {printed}"))?;
    ensure(std::fs::read(target.join("kept"))? == kept, || "the other file suffered".to_owned())?;
    let all = lab.run(&options, &["volume", "trim", "--all"])?;
    ensure(all.contains("patient"), || all.clone())?;
    give_back(lab, &patient.server.client, &patient.volume, NODE)?;
    let refused = lab.run(&options, &["volume", "trim", "patient"]);
    ensure(refused.as_ref().is_err_and(|said| said.to_string().contains("not mounted")), || format!("{refused:?}"))?;
    let all = lab.run(&options, &["volume", "trim", "--all"])?;
    ensure(all.contains("no thin volume"), || all.clone())?;
    patient.server.client.call(&patient.volume.delete())?;
    patient.lab.ensure_clean()
}

fn said(found: &[Health], expected: &[(&str, &str)], when: &str) -> Result<()> {
    let brief: Vec<(&str, &str)> = found.iter().map(|one| (one.status.as_str(), one.reason.as_str())).collect();
    ensure(brief == expected, || format!("{when}: expected {expected:?}, found {found:?}"))
}
