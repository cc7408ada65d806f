//! An image file or a block device, open for reading or for changing in place.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use volume::{Error, ErrorKind, Result};

pub(super) struct Storage {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    is_regular: bool,
}

impl Storage {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::with(path, OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK))
    }

    /// A block device is opened exclusively, which fails while it is mounted (open(2), O_EXCL).
    pub(super) fn open_writable(path: &Path) -> Result<Self> {
        let is_device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        let exclusive = if is_device { libc::O_EXCL } else { 0 };
        Self::with(path, OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | exclusive))
    }

    /// O_NONBLOCK keeps the open of a FIFO from waiting for a writer; disks and files ignore it.
    fn with(path: &Path, options: &OpenOptions) -> Result<Self> {
        let what = |verb: &str| format!("{verb} {}", path.display());
        let mut file = options.open(path).map_err(|e| Error::io(what("open"), e))?;
        let kind = file.metadata().map_err(|e| Error::io(what("stat"), e))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::invalid(format!("{} is neither a file nor a block device", path.display())));
        }
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(|e| Error::io(what("find the size of"), e))?;
        if size_bytes == 0 && !kind.is_file() {
            return Err(Error::new(ErrorKind::Unavailable, format!("{} is a device without a medium", path.display())));
        }
        Ok(Self { file, path: path.to_owned(), size_bytes, is_regular: kind.is_file() })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn is_regular(&self) -> bool {
        self.is_regular
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file's name for a child process: exactly what was opened and looked at, whatever its path leads to now.
    pub(super) fn path_for_child(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// `None` when the storage ends before. A read that fails or falls short is an error, never zeros.
    pub(super) fn read(&self, offset: u64, length: usize) -> Result<Option<Vec<u8>>> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.size_bytes) {
            return Ok(None);
        }
        let mut buffer = vec![0; length];
        match self.file.read_exact_at(&mut buffer, offset) {
            Ok(()) => Ok(Some(buffer)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(Error::with_source(
                ErrorKind::Corrupt,
                format!("{} ended before byte {} while it was read", self.path.display(), offset + length as u64),
                error,
            )),
            Err(error) => Err(Error::io(format!("read {length} bytes at {offset} of {}", self.path.display()), error)),
        }
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| Error::io(format!("write {} bytes at {offset} of {}", bytes.len(), self.path.display()), e))
    }

    pub(super) fn extend_to(&mut self, size_bytes: u64) -> Result<()> {
        let message = || format!("set the size of {} to {size_bytes} bytes", self.path.display());
        self.file.set_len(size_bytes).map_err(|e| Error::io(message(), e))?;
        self.size_bytes = size_bytes;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(format!("sync {}", self.path.display()), e))
    }
}
