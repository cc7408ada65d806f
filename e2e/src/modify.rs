//! Changes of a published volume by ControllerModifyVolume: they reach the device of a workload that goes on, and go with the
//! volume. Limits are measured where this machine has the blkio controller of cgroup v1; v2 is tested in `host`.

use crate::calls::{Access, Subject};
use crate::failure::{Context, Result, ensure};
use crate::lab::{Hawser, Lab, Options, PoolFs};
use crate::missing_privilege;
use crate::report::Report;
use crate::scenario::{NODE, give_back, make_directories, remove_directories};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

const V1_ROOT: &str = "/sys/fs/cgroup/blkio";
/// From the answer of the call to the change of the device.
const APPLIED_WITHIN: Duration = Duration::from_secs(3);
const BLOCK_BYTES: usize = 64 << 10;
const LIMIT_BYTES_PER_S: f64 = 2_097_152.0;
const LIMIT: &[(&str, &str)] = &[("writeBytesPerSecond", "2097152")];
const NO_LIMIT: &[(&str, &str)] = &[("writeBytesPerSecond", "default")];

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("modify", &reason);
        return Ok(());
    }
    report.test("modify-read-ahead-while-written", || read_ahead(hawser));
    if Path::new(V1_ROOT).join("blkio.throttle.write_bps_device").exists() {
        report.test("modify-limit-while-written", || limits(hawser));
        report.test("modify-limit-goes-with-its-volume", || next_volume(hawser, false));
        report.test("modify-limit-goes-with-its-volume-after-a-crash", || next_volume(hawser, true));
    } else {
        report.skipped("modify-limits", "no blkio controller of cgroup v1 in /sys/fs/cgroup");
    }
    Ok(())
}

fn read_ahead(hawser: &Path) -> Result<()> {
    let bench = Bench::new(hawser, "")?;
    let volume = bench.published("a")?;
    let before = bench.read_ahead()?;
    let writer = Writer::start(&bench.file(&volume), None)?;
    for kib in [64, 4096] {
        bench.call(&volume.modify(&[("readAheadKiB", &kib.to_string())]))?;
        let took = wait_for_read_ahead(&bench.lab, kib)?;
        ensure(took < APPLIED_WITHIN, || format!("{kib} KiB came after {took:?}"))?;
    }
    // A change that is refused changes nothing.
    let refused = bench.server.client.call(&volume.modify(&[("readAheadKiB", "128"), ("iops", "7")]));
    let code = refused.err().map(|status| status.code());
    ensure(code == Some(tonic::Code::InvalidArgument), || format!("an unknown key: {code:?}"))?;
    sleep(Duration::from_millis(1500));
    ensure(bench.read_ahead()? == 4096, || "a refused call changed the device".to_owned())?;
    bench.call(&volume.modify(&[("readAheadKiB", "default")]))?;
    wait_for_read_ahead(&bench.lab, before)?;
    writer.stop()?;
    bench.end(&[&volume])
}

fn limits(hawser: &Path) -> Result<()> {
    let cgroup = Cgroup::new("limits")?;
    let bench = Bench::new(hawser, cgroup.name)?;
    let volume = bench.published("a")?;
    let writer = Writer::start(&bench.file(&volume), Some(cgroup.tasks()))?;
    let free = writer.bytes_per_s(Duration::from_secs(1));
    ensure(free > 4.0 * LIMIT_BYTES_PER_S, || format!("without a limit only {free:.0} B/s: nothing can be told"))?;
    bench.call(&volume.modify(LIMIT))?;
    sleep(APPLIED_WITHIN);
    let limited = writer.bytes_per_s(Duration::from_secs(3));
    ensure(limited < 1.5 * LIMIT_BYTES_PER_S && limited > 0.3 * LIMIT_BYTES_PER_S, || {
        format!("limited to {LIMIT_BYTES_PER_S:.0} B/s it writes {limited:.0}, before {free:.0}")
    })?;
    // A container that starts now is limited as well.
    let later = cgroup.add("later")?;
    sleep(APPLIED_WITHIN);
    let rules = std::fs::read_to_string(later.join("blkio.throttle.write_bps_device"))?;
    ensure(!rules.is_empty(), || "a new cgroup has no limit".to_owned())?;
    bench.call(&volume.modify(NO_LIMIT))?;
    sleep(APPLIED_WITHIN);
    let lifted = writer.bytes_per_s(Duration::from_secs(1));
    ensure(lifted > 4.0 * LIMIT_BYTES_PER_S, || format!("lifted it writes {lifted:.0} B/s, at first {free:.0}"))?;
    println!("modify: {free:.0} B/s free, {limited:.0} limited to {LIMIT_BYTES_PER_S:.0}, {lifted:.0} lifted");
    writer.stop()?;
    bench.end(&[&volume])
}

/// The next volume at the same loop device.
fn next_volume(hawser: &Path, crashes: bool) -> Result<()> {
    let cgroup = Cgroup::new(if crashes { "crash" } else { "next" })?;
    let mut bench = Bench::new(hawser, cgroup.name)?;
    let first = bench.published("a")?;
    bench.call(&first.modify(&[LIMIT, &[("readAheadKiB", "16384")]].concat()))?;
    let device = bench.device()?;
    wait_for_read_ahead(&bench.lab, 16_384)?;
    let started = Instant::now();
    while cgroup.rules()?.is_empty() {
        ensure(started.elapsed() < APPLIED_WITHIN, || "no limit was set".to_owned())?;
        sleep(Duration::from_millis(20));
    }
    if crashes {
        // With the device, and not by the driver: it is gone before it can take anything back.
        bench.server.kill()?;
        for path in [first.target(&bench.lab, NODE), first.staging(&bench.lab, NODE)] {
            crate::lab::kernel::program("umount", &[&path])?;
        }
        crate::lab::kernel::program("losetup", &["-d", &device.display().to_string()])?;
        ensure(!cgroup.rules()?.is_empty(), || "the kernel has forgotten it by itself: nothing is tested".to_owned())?;
        bench.server = bench.lab.start(&bench.options)?;
    }
    give_back(&bench.lab, &bench.server.client, &first, NODE)?;
    let second = bench.published("b")?;
    // Whichever number it got: nothing of the first is left at its own.
    let started = Instant::now();
    while !cgroup.rules()?.is_empty() {
        ensure(crashes && started.elapsed() < APPLIED_WITHIN, || format!("{:?} stays behind", cgroup.rules()))?;
        sleep(Duration::from_millis(20));
    }
    // The kernel lowers no read-ahead when it attaches another image.
    let inherited = bench.read_ahead()?;
    ensure(inherited != 16_384, || "the next volume has the read-ahead of the first".to_owned())?;
    let writer = Writer::start(&bench.file(&second), Some(cgroup.tasks()))?;
    let free = writer.bytes_per_s(Duration::from_secs(1));
    ensure(free > 4.0 * LIMIT_BYTES_PER_S, || format!("the next volume writes {free:.0} B/s"))?;
    writer.stop()?;
    bench.end(&[&first, &second])
}

/// Waits until the device of the lab's only volume has that read-ahead; how long it took.
pub(crate) fn wait_for_read_ahead(lab: &Lab, kib: u32) -> Result<Duration> {
    let started = Instant::now();
    loop {
        let found = read_ahead_of(&device_of(lab)?)?;
        if found == kib {
            return Ok(started.elapsed());
        }
        let late = || format!("the read-ahead is {found} KiB and not {kib} after 10 s");
        ensure(started.elapsed() < Duration::from_secs(10), late)?;
        sleep(Duration::from_millis(20));
    }
}

fn device_of(lab: &Lab) -> Result<PathBuf> {
    let volumes = lab.pool().join("volumes");
    let device = lab.loops()?.into_iter().find(|device| device.file.starts_with(&volumes));
    Ok(device.ok_or("no volume is connected")?.device)
}

fn read_ahead_of(device: &Path) -> Result<u32> {
    let name = device.file_name().unwrap_or_default();
    let text = std::fs::read_to_string(Path::new("/sys/block").join(name).join("queue/read_ahead_kb"))?;
    text.trim().parse().map_err(|_| format!("read_ahead_kb is {text:?}").into())
}

struct Bench {
    lab: Lab,
    options: Options,
    server: Hawser,
}

impl Bench {
    fn new(hawser: &Path, cgroup: &'static str) -> Result<Self> {
        let lab = Lab::new(hawser, PoolFs::Xfs, 4096)?;
        let options = Options::node(NODE).set("HAWSER_IO_LIMIT_CGROUPS", cgroup);
        let server = lab.start(&options)?;
        Ok(Self { lab, options, server })
    }

    fn call(&self, call: &crate::client::Call) -> Result<()> {
        self.server.client.call_until_done(call).map(drop).context(|| format!("{call:?}"))
    }

    fn published(&self, name: &str) -> Result<Subject> {
        let volume = Subject::new(name, Access::Ext4);
        make_directories(&self.lab, &volume, NODE)?;
        for call in
            [volume.create(), volume.attach(NODE), volume.stage(&self.lab, NODE), volume.publish(&self.lab, NODE)]
        {
            self.call(&call)?;
        }
        Ok(volume)
    }

    fn file(&self, volume: &Subject) -> PathBuf {
        Path::new(&volume.target(&self.lab, NODE)).join("file")
    }

    fn device(&self) -> Result<PathBuf> {
        device_of(&self.lab)
    }

    fn read_ahead(&self) -> Result<u32> {
        read_ahead_of(&self.device()?)
    }

    fn end(self, volumes: &[&Subject]) -> Result<()> {
        for volume in volumes {
            give_back(&self.lab, &self.server.client, volume, NODE)?;
            self.call(&volume.delete())?;
            remove_directories(&self.lab, volume, NODE);
        }
        self.server.stop()?;
        self.lab.ensure_clean()
    }
}

/// A workload that writes past the page cache, without a pause, until it is stopped. It fails when a write fails.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Writer {
    /// `tasks` is of the cgroup to write in.
    fn start(file: &Path, tasks: Option<PathBuf>) -> Result<Self> {
        let file =
            OpenOptions::new().create(true).write(true).truncate(false).custom_flags(nix::libc::O_DIRECT).open(file)?;
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = spawn({
            let (stop, written) = (stop.clone(), written.clone());
            move || {
                let own = nix::unistd::gettid().to_string();
                if let Some(tasks) = &tasks {
                    std::fs::write(tasks, &own)?;
                }
                let result = write_until(&file, &stop, &written);
                if tasks.is_some() {
                    std::fs::write(Path::new(V1_ROOT).join("tasks"), &own)?;
                }
                result
            }
        });
        Ok(Self { stop, written, thread })
    }

    fn bytes_per_s(&self, for_: Duration) -> f64 {
        let (before, started) = (self.written.load(Ordering::SeqCst), Instant::now());
        sleep(for_);
        (self.written.load(Ordering::SeqCst) - before) as f64 / started.elapsed().as_secs_f64()
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.join().map_err(|_| "the writer panicked")?;
        ended.context(|| "a write failed".to_owned())?;
        ensure(self.written.load(Ordering::SeqCst) > 0, || "nothing was written".to_owned())
    }
}

fn write_until(file: &File, stop: &AtomicBool, written: &AtomicU64) -> std::io::Result<()> {
    let memory = vec![7u8; 2 * BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(4096);
    let block = &memory[start..start + BLOCK_BYTES];
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        file.write_all_at(block, n % 64 * BLOCK_BYTES as u64)?;
        written.fetch_add(BLOCK_BYTES as u64, Ordering::SeqCst);
    }
    Ok(())
}

/// A cgroup v1 of this test alone, as an orchestrator's; removed with it.
struct Cgroup {
    name: &'static str,
}

impl Cgroup {
    fn new(test: &str) -> Result<Self> {
        let name = format!("hawser-e2e-{}-{test}", std::process::id());
        // Settings of a lab are for the life of the program.
        let cgroup = Self { name: name.leak() };
        cgroup.add("pod")?;
        Ok(cgroup)
    }

    fn path(&self) -> PathBuf {
        Path::new(V1_ROOT).join(self.name)
    }

    fn add(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    fn tasks(&self) -> PathBuf {
        self.path().join("pod/tasks")
    }

    fn rules(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.path().join("pod/blkio.throttle.write_bps_device"))?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for part in ["pod", "later", ""] {
            let path = self.path().join(part);
            // A thread that has just ended is in its cgroup for a moment.
            for _ in 0..50 {
                if !path.exists() || std::fs::remove_dir(&path).is_ok() {
                    break;
                }
                sleep(Duration::from_millis(20));
            }
        }
    }
}
