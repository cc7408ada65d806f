//! Images: opening the one that a record means, copying it at one instant, and what is written on it about itself.

use crate::Pool;
use crate::loops::is_cut_off;
use crate::model::{SnapshotRecord, VolumeRecord};
use host::LoopDevice;
use host::file::{Dir, get_xattr, identity, set_xattr};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use volume::{Error, ErrorKind, ImageIdentity, Parameters, Result, VolumeKind};

/// How long a file system may take to come to rest before it is copied.
pub(crate) const FREEZE_DEADLINE_MS: u64 = 10_000;
const DESCRIPTION: &str = "user.hawser";
const DESCRIPTION_FORMAT: u32 = 1;
/// ext4 keeps all attributes of an inode in one block of 4 KiB.
const MAX_DESCRIPTION_BYTES: usize = 3800;

/// The extended attribute `user.hawser` of every image and of `data/`: the record as it was made, to rebuild it from.
#[derive(Serialize, Deserialize)]
struct Description<T> {
    format: u32,
    record: T,
}

impl Pool {
    /// Opens the image that the record names; `Corrupt` when it is gone or is another file.
    pub(crate) fn open_image(&self, dir: &Dir, image: &ImageIdentity) -> Result<File> {
        self.look_at_image(dir, image, 0)?.map_err(|fault| fault.into_error(dir, image))
    }

    /// The loop devices of this kernel that have this image.
    pub(crate) fn loops_of(&self, image: &File) -> Result<Vec<LoopDevice>> {
        if self.is_surely_without_loop(image) {
            return Ok(Vec::new());
        }
        let image = identity(image)?;
        let mut loops = self.host.loops()?;
        loops.retain(|device| device.backing_device == image.device && device.backing_inode == image.inode);
        Ok(loops)
    }

    /// Copies `source` to the empty file `target` as it is at one instant. A file system that is mounted from it on
    /// this kernel is frozen meanwhile, in whatever mount namespace it is.
    pub(crate) fn copy_at_rest(&self, kind: VolumeKind, source: &File, target: &File) -> Result<()> {
        // Also of what a page cache holds: the copy has everything that was written before it began.
        source.sync_all().map_err(|e| Error::io("making the source of a copy durable", e))?;
        let loops = match kind {
            // A fenced holder's file system is behind the image by now, and cannot be frozen: it writes nothing any more.
            VolumeKind::FileSystem(_) => {
                self.loops_of(source)?.into_iter().filter(|device| !is_cut_off(device)).collect()
            }
            VolumeKind::Block | VolumeKind::Directory => Vec::new(),
        };
        self.copy_frozen(&loops, source, target)
    }

    fn copy_frozen(&self, loops: &[LoopDevice], source: &File, target: &File) -> Result<()> {
        match loops {
            [] => self.copy_image(source, target),
            [first, rest @ ..] => {
                let mut begun = false;
                let copied = self.host.with_frozen(first.number, FREEZE_DEADLINE_MS, &mut || {
                    begun = true;
                    self.copy_frozen(rest, source, target)
                });
                match copied {
                    // A clone is of one instant also without a freeze: what a power loss would have left. A copy is not.
                    Err(error) if !begun && self.reflink && error.kind() == ErrorKind::Unavailable => {
                        tracing::warn!(error = error.chain(), "cloning an image without freezing its file system");
                        self.copy_frozen(rest, source, target)
                    }
                    copied => copied,
                }
            }
        }
    }

    /// Writes on the image what a rebuild needs to know.
    pub(crate) fn describe_volume(&self, file: &File, record: &VolumeRecord) -> Result<()> {
        if self.describe(file, record)? {
            return Ok(());
        }
        // Long parameters (mount flags) do not fit everywhere; without them the volume can still be rebuilt.
        self.describe(file, &VolumeRecord { parameters: Parameters::default(), ..record.clone() }).map(drop)
    }

    pub(crate) fn describe_snapshot(&self, file: &File, record: &SnapshotRecord) -> Result<()> {
        self.describe(file, record).map(drop)
    }

    /// Whether it fits.
    fn describe<T: Serialize>(&self, file: &File, record: &T) -> Result<bool> {
        let bytes = serde_json::to_vec(&Description { format: DESCRIPTION_FORMAT, record })
            .map_err(|e| Error::with_source(ErrorKind::Internal, "describing an image", e))?;
        if bytes.len() > MAX_DESCRIPTION_BYTES {
            return Ok(false);
        }
        match set_xattr(file, DESCRIPTION, &bytes, self.effects()) {
            // Without attributes (some NFS) the records are all there is.
            Err(error) if error.kind() != ErrorKind::Unsupported => Err(error),
            Ok(()) | Err(_) => Ok(true),
        }
    }
}

/// What is written on an image or a `data/`; `None` when it says nothing that this driver can read.
pub(crate) fn description<T: DeserializeOwned>(file: &File) -> Result<Option<T>> {
    let Some(bytes) = get_xattr(file, DESCRIPTION)? else { return Ok(None) };
    let parsed: Option<Description<T>> = serde_json::from_slice(&bytes).ok();
    Ok(parsed.filter(|found| found.format == DESCRIPTION_FORMAT).map(|found| found.record))
}

pub(crate) fn length(file: &File) -> Result<u64> {
    Ok(file.metadata().map_err(|e| Error::io("reading an image's length", e))?.len())
}

pub(crate) fn image_identity(name: &str, file: &File) -> Result<ImageIdentity> {
    let found = identity(file)?;
    Ok(ImageIdentity { name: name.to_owned(), inode: found.inode, generation: found.generation })
}
