//! A disk that can be made to hang: a file system in user space (linux/fuse.h, protocol 7) with one file, `disk`, which is
//! another file. While it is stalled no read, write or sync is answered.

use crate::failure::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Dropped, it answers again.
pub(crate) struct Stalling {
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    opened: Condvar,
}

struct Server {
    device: File,
    disk: File,
    gate: Arc<Gate>,
}

const HEADER_BYTES: usize = 40;
/// What the kernel may send at once: a write and its headers.
const BUFFER_BYTES: usize = (1 << 20) + 4096;
const MAX_WRITE_BYTES: u32 = 128 << 10;
const ROOT: u64 = 1;
const DISK: u64 = 2;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const ENOSYS: i32 = 38;
const BIG_WRITES: u32 = 1 << 5;
/// FOPEN_DIRECT_IO: the kernel keeps no pages of it, so every read comes here.
const DIRECT_IO: u32 = 1;

impl Stalling {
    /// Mounts it at `directory`, over the file `disk`.
    pub(crate) fn start(directory: &Path, disk: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let device = open(Path::new("/dev/fuse")).context(|| "opening /dev/fuse".to_owned())?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        nix::mount::mount(
            Some("stalling"),
            directory,
            Some("fuse"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .map_err(|errno| format!("mounting a file system in user space: {errno}"))?;
        let gate = Arc::new(Gate::default());
        let server = Server { device, disk: open(disk)?, gate: Arc::clone(&gate) };
        // It ends when the file system is unmounted.
        std::thread::spawn(move || server.serve());
        Ok(Self { gate })
    }

    pub(crate) fn stall(&self) {
        self.gate.set(true);
    }

    pub(crate) fn go_on(&self) {
        self.gate.set(false);
    }
}

impl Drop for Stalling {
    fn drop(&mut self) {
        self.go_on();
    }
}

impl Gate {
    fn set(&self, is_closed: bool) {
        *self.is_closed.lock().unwrap_or_else(PoisonError::into_inner) = is_closed;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let gate = self.is_closed.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.opened.wait_while(gate, |is_closed| *is_closed));
    }
}

impl Server {
    fn serve(mut self) {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let length = match self.device.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let request = &buffer[..length];
            let (opcode, unique, node) = (u32_at(request, 4), u64_at(request, 8), u64_at(request, 16));
            if matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT) {
                continue;
            }
            let (error, body) = match self.answer(opcode, node, request.get(HEADER_BYTES..).unwrap_or_default()) {
                Ok(body) => (0, body),
                Err(errno) => (-errno, Vec::new()),
            };
            let mut reply = Vec::with_capacity(16 + body.len());
            reply.extend(u32::try_from(16 + body.len()).unwrap_or(0).to_ne_bytes());
            reply.extend(error.to_ne_bytes());
            reply.extend(unique.to_ne_bytes());
            reply.extend(body);
            // The kernel may have forgotten the request.
            let _ = self.device.write_all(&reply);
        }
    }

    fn answer(&self, opcode: u32, node: u64, body: &[u8]) -> std::result::Result<Vec<u8>, i32> {
        match opcode {
            INIT => Ok(init()),
            LOOKUP if node == ROOT && body.strip_suffix(b"\0") == Some(b"disk") => Ok(self.entry()),
            LOOKUP => Err(ENOENT),
            GETATTR => Ok([&0u64.to_ne_bytes()[..], &[0; 8], &self.attributes(node)].concat()),
            OPEN => Ok(words(&[0, 0, DIRECT_IO, 0])),
            OPENDIR => Ok(words(&[0, 0, 0, 0])),
            READ => {
                self.gate.pass();
                let mut bytes = vec![0; u32_at(body, 16) as usize];
                let length = self.disk.read_at(&mut bytes, u64_at(body, 8)).map_err(|_| EIO)?;
                bytes.truncate(length);
                Ok(bytes)
            }
            WRITE => {
                self.gate.pass();
                let bytes = body.get(40..).ok_or(EIO)?;
                self.disk.write_all_at(bytes, u64_at(body, 8)).map_err(|_| EIO)?;
                Ok(words(&[u32::try_from(bytes.len()).map_err(|_| EIO)?, 0]))
            }
            FSYNC => {
                self.gate.pass();
                Ok(Vec::new())
            }
            STATFS => Ok(vec![0; 80]),
            FLUSH | RELEASE | RELEASEDIR => Ok(Vec::new()),
            _ => Err(ENOSYS),
        }
    }

    /// struct fuse_entry_out.
    fn entry(&self) -> Vec<u8> {
        let numbers: Vec<u8> = [DISK, 0, 0, 0, 0].iter().flat_map(|number: &u64| number.to_ne_bytes()).collect();
        [numbers, self.attributes(DISK)].concat()
    }

    /// struct fuse_attr.
    fn attributes(&self, node: u64) -> Vec<u8> {
        let (mode, size) = match node {
            ROOT => (0o40_755, 0),
            _ => (0o100_600, self.disk.metadata().map_or(0, |metadata| metadata.len())),
        };
        let numbers = [node, size, size / 512, 0, 0, 0].map(u64::to_ne_bytes).concat();
        [numbers, words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
    }
}

/// struct fuse_init_out: 64 bytes.
fn init() -> Vec<u8> {
    let mut reply = words(&[7, 31, 0, BIG_WRITES, 0, MAX_WRITE_BYTES]);
    reply.resize(64, 0);
    reply
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_ne_bytes)
}
