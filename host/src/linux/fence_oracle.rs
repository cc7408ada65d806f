//! The fence against many writers on real devices: what was acknowledged is in the fork, and nothing comes after.
//!
//! Each writer writes blocks that name their run, writer and number, and notes when each write began once it was
//! acknowledged. A pool on xfs gives the fork in an instant (FICLONE), as a failover takes it. Three things are judged:
//! no write that began after the fence was acknowledged, every acknowledged write is in the fork, and the image stays
//! what the fork is. Without the fence, and with half of it, the judge must object.

use super::lab::Lab;
use super::{LinuxHost, fence, loops};
use crate::{Effects, Fenced, Host, LoopDevice, file, sys};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};
use volume::{FsType, Result};

const BLOCK: usize = 4096;
/// Blocks of one writer; it goes round.
const SLOTS: u64 = 16;
const IMAGE_BYTES: u64 = 512 << 20;
const DEADLINE_MS: u64 = 20_000;

#[test]
fn ext4_with_1_writer() {
    holds(Kind::Fs(FsType::Ext4), 1);
}

#[test]
fn ext4_with_32_writers() {
    holds(Kind::Fs(FsType::Ext4), 32);
}

#[test]
fn ext4_with_128_writers() {
    holds(Kind::Fs(FsType::Ext4), 128);
}

#[test]
fn xfs_with_32_writers() {
    holds(Kind::Fs(FsType::Xfs), 32);
}

#[test]
fn btrfs_with_32_writers() {
    holds(Kind::Fs(FsType::Btrfs), 32);
}

#[test]
fn raw_with_1_writer() {
    holds(Kind::Raw, 1);
}

#[test]
fn raw_with_32_writers() {
    holds(Kind::Raw, 32);
}

#[test]
fn raw_with_128_writers() {
    holds(Kind::Raw, 128);
}

/// A mount that no process has in its namespace: what a node's end may leave.
#[test]
fn hidden_ext4_with_128_writers() {
    holds(Kind::Hidden, 128);
}

#[test]
fn control_no_fence_is_caught() {
    is_caught(1, Kind::Fs(FsType::Ext4), |_, _| Ok(()));
    is_caught(1, Kind::Raw, |_, _| Ok(()));
}

/// The reason for the second limit. The leak is a race, so it gets several chances.
#[test]
fn control_one_limit_is_caught() {
    is_caught(20, Kind::Raw, |host, device| {
        let opened = loops::open_if_there(device, nix::fcntl::OFlag::O_RDONLY)?.expect("attached");
        fence::set_limit(&host.effects, device, &opened, 512, Instant::now() + Duration::from_secs(10))
    });
}

/// What the writers write to.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Fs(FsType),
    /// ext4, mounted nowhere that can be looked up.
    Hidden,
    Raw,
}

fn holds(kind: Kind, writers: u32) {
    let Some(mut lab) = Lab::make() else { return };
    let objections = trial(&mut lab, kind, writers, |host, device| {
        let fenced: Option<Fenced> = host.fence_loop(device, DEADLINE_MS)?;
        assert_eq!(fenced.map(|fenced| fenced.froze), Some(kind != Kind::Raw));
        Ok(())
    });
    assert!(objections.is_empty(), "{objections:#?}");
}

fn is_caught(tries: u32, kind: Kind, fence: impl Fn(&LinuxHost, &LoopDevice) -> Result<()>) {
    let Some(mut lab) = Lab::make() else { return };
    for attempt in 1..=tries {
        let objections = trial(&mut lab, kind, 128, &fence);
        if !objections.is_empty() {
            println!("caught at try {attempt}: {} objections, the first: {}", objections.len(), objections[0]);
            return;
        }
    }
    panic!("the judge let {tries} trials without a fence pass");
}

struct Ack {
    writer: u32,
    number: u64,
    began: Instant,
}

/// Writers at work, the fence, the fork; then what the judge says.
fn trial(
    lab: &mut Lab,
    kind: Kind,
    writers: u32,
    fence: impl Fn(&LinuxHost, &LoopDevice) -> Result<()>,
) -> Vec<String> {
    let name = |what: &str| lab.pool.join(what);
    let fs = kind.fs();
    let (image, fork, mut target) = (name("image"), name("fork"), lab.directory.path().join("target"));
    let device = lab.attach(&image, fs, IMAGE_BYTES);
    if let Some(fs) = fs {
        lab.mount(&device, fs, &target);
    }
    let mut hidden = None;
    if kind == Kind::Hidden {
        let mount = sys::mount::clone_tree(File::open(&target).unwrap()).unwrap();
        lab.host.unmount(&target).unwrap();
        target = format!("/proc/self/fd/{}", mount.as_raw_fd()).into();
        hidden = Some(mount);
    }
    let places: Vec<_> = (0..writers).map(|writer| Place::open(writer, fs, &target, &device.path)).collect();
    let nonce = *uuid::Uuid::new_v4().as_bytes();
    let (stop, acks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let threads: Vec<JoinHandle<Vec<Ack>>> = places
        .into_iter()
        .map(|place| {
            let (stop, acks) = (Arc::clone(&stop), Arc::clone(&acks));
            std::thread::spawn(move || place.write_until(&stop, &acks, nonce))
        })
        .collect();
    while acks.load(Ordering::SeqCst) < 20 * u64::from(writers) {
        sleep(Duration::from_millis(5));
    }
    fence(&lab.host, &device).unwrap();
    let fenced = Instant::now();
    let forked = File::create_new(&fork).unwrap();
    file::clone_file(&File::open(&image).unwrap(), &forked, &Effects::default()).unwrap();
    sleep(Duration::from_millis(400));
    stop.store(true, Ordering::SeqCst);
    let ledger: Vec<Ack> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();

    let mut objections = Vec::new();
    for late in ledger.iter().filter(|ack| ack.began > fenced) {
        let after = late.began - fenced;
        objections.push(format!("write {} of {} began {after:?} after the fence", late.number, late.writer));
    }
    if !same(&image, &fork) {
        objections.push("the image changed after the fork".to_owned());
    }
    drop(hidden);
    lab.release(&device);
    objections.extend(missing(lab, fs, &fork, writers, nonce, &ledger));
    std::fs::remove_file(&image).unwrap();
    std::fs::remove_file(&fork).unwrap();
    objections
}

/// Acknowledged writes that the fork does not have.
fn missing(
    lab: &mut Lab,
    fs: Option<FsType>,
    fork: &Path,
    writers: u32,
    nonce: [u8; 16],
    ledger: &[Ack],
) -> Vec<String> {
    let target = lab.directory.path().join("fork");
    let device = match fs {
        Some(fs) => {
            let device = lab.attach(fork, None, IMAGE_BYTES);
            lab.mount(&device, fs, &target);
            Some(device)
        }
        None => None,
    };
    let mut missing = Vec::new();
    for writer in 0..writers {
        let (file, first) = match fs {
            Some(_) => (target.join(format!("writer-{writer}")), 0),
            None => (fork.to_owned(), u64::from(writer) * SLOTS),
        };
        for slot in 0..SLOTS {
            let acked = ledger.iter().filter(|a| a.writer == writer && a.number % SLOTS == slot);
            let Some(acked) = acked.map(|a| a.number).max() else { continue };
            let mut block = [0u8; BLOCK];
            let read = File::open(&file).and_then(|f| f.read_exact_at(&mut block, (first + slot) * BLOCK as u64));
            // A later write that was not acknowledged may have come this far; an older one may not be left.
            let found = read.ok().and_then(|()| number_in(&block, writer, nonce));
            if found.is_none_or(|found| found < acked) {
                missing.push(format!("write {acked} of {writer} was acknowledged, the fork has {found:?}"));
            }
        }
    }
    if let Some(device) = device {
        lab.release(&device);
    }
    missing
}

/// Where one writer writes. Every second one of a file system acknowledges by fsync, the others write with O_DSYNC.
struct Place {
    writer: u32,
    file: File,
    first: u64,
    sync: bool,
}

impl Place {
    fn open(writer: u32, fs: Option<FsType>, target: &Path, device: &Path) -> Self {
        let sync = fs.is_some() && writer % 2 == 1;
        let flags = match fs {
            None => libc::O_DIRECT | libc::O_DSYNC,
            Some(_) if sync => 0,
            Some(_) => libc::O_DSYNC,
        };
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(flags);
        match fs {
            Some(_) => {
                let file = options.create(true).truncate(false).open(target.join(format!("writer-{writer}"))).unwrap();
                file.sync_all().unwrap();
                Self { writer, file, first: 0, sync }
            }
            None => Self { writer, file: options.open(device).unwrap(), first: u64::from(writer) * SLOTS, sync },
        }
    }

    /// Goes on after errors, as a stubborn program does, and writes a new number each time.
    fn write_until(self, stop: &AtomicBool, acks: &AtomicU64, nonce: [u8; 16]) -> Vec<Ack> {
        let mut memory = vec![0u8; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        let mut ledger = Vec::new();
        let mut number = 0;
        while !stop.load(Ordering::SeqCst) {
            number += 1;
            let block = &mut memory[start..start + BLOCK];
            fill(block, self.writer, number, nonce);
            let began = Instant::now();
            let written = self
                .file
                .write_all_at(block, (self.first + number % SLOTS) * BLOCK as u64)
                .and_then(|()| if self.sync { self.file.sync_data() } else { Ok(()) });
            match written {
                Ok(()) => {
                    ledger.push(Ack { writer: self.writer, number, began });
                    acks.fetch_add(1, Ordering::SeqCst);
                }
                Err(_) => sleep(Duration::from_millis(1)),
            }
        }
        ledger
    }
}

impl Kind {
    fn fs(self) -> Option<FsType> {
        match self {
            Self::Fs(fs) => Some(fs),
            Self::Hidden => Some(FsType::Ext4),
            Self::Raw => None,
        }
    }
}

fn fill(block: &mut [u8], writer: u32, number: u64, nonce: [u8; 16]) {
    for part in block.chunks_exact_mut(32) {
        part[..16].copy_from_slice(&nonce);
        part[16..20].copy_from_slice(&writer.to_le_bytes());
        part[20..28].copy_from_slice(&number.to_le_bytes());
    }
}

/// The number that the block holds from end to end, if it is this writer's of this run.
fn number_in(block: &[u8], writer: u32, nonce: [u8; 16]) -> Option<u64> {
    let number = u64::from_le_bytes(*block.get(20..)?.first_chunk::<8>()?);
    let mut expected = vec![0; block.len()];
    fill(&mut expected, writer, number, nonce);
    (block == expected).then_some(number)
}

fn same(one: &Path, other: &Path) -> bool {
    let open = |path: &Path| std::io::BufReader::with_capacity(1 << 20, File::open(path).unwrap());
    let (mut one, mut other) = (open(one), open(other));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = one.read(&mut a).unwrap();
        other.read_exact(&mut b[..read]).unwrap();
        if read == 0 {
            return true;
        }
        if a[..read] != b[..read] {
            return false;
        }
    }
}
