//! What is wrong with the pool and its volumes, found without reading data: records, what is known of files, free space.
//! Reasons are listed in docs/operations.md; what a list of volumes shows as a problem is the same.

use crate::Pool;
use crate::attach::no_volume;
use crate::capacity::Fullness;
use crate::create::DATA;
use crate::model::VolumeRecord;
use crate::record::RecordDir;
use host::file::{Access, Dir, identity, space};
use std::fs::File;
use volume::{
    Error, ErrorKind, Health, HealthProblem, ImageIdentity, Page, PageRequest, Result, Severity, VolumeHealth,
    VolumeId, VolumeKind,
};

const NOT_WRITABLE: &str = "PoolNotWritable";
const FULL: &str = "PoolFull";

impl Health for Pool {
    fn volume_health(&self, id: &VolumeId) -> Result<VolumeHealth> {
        self.check_reachable()?;
        self.health_of(id, &self.room_problems()?)?.ok_or_else(|| no_volume(id))
    }

    /// A page ends where one more volume with problems was found.
    fn list_unhealthy(&self, page: &PageRequest) -> Result<Page<VolumeHealth>> {
        self.check_reachable()?;
        let of_pool = self.room_problems()?;
        let rest = PageRequest { max_entries: 0, token: page.token.clone() };
        let ids = Page::cut(self.volume_ids()?, &rest, VolumeId::as_str, |token| VolumeId::parse(token).is_ok())?;
        let mut entries: Vec<VolumeHealth> = Vec::new();
        for id in &ids.entries {
            let Some(health) = self.health_of(id, &of_pool)?.filter(|health| !health.is_healthy()) else { continue };
            if page.max_entries > 0 && entries.len() == page.max_entries {
                let next_token = entries.last().map(|last| last.volume.to_string());
                return Ok(Page { entries, next_token });
            }
            entries.push(health);
        }
        Ok(Page { entries, next_token: None })
    }
}

impl Pool {
    /// Of the pool as a whole, from this machine.
    pub(crate) fn pool_health(&self) -> Result<Vec<HealthProblem>> {
        match self.check_reachable() {
            Ok(()) => self.room_problems(),
            Err(error) => Ok(vec![HealthProblem::new(Severity::Inaccessible, "PoolUnreachable", error.chain())]),
        }
    }

    /// The data of a volume is not there as its record says.
    pub(crate) fn data_problem(&self, dir: &Dir, record: &VolumeRecord) -> Option<HealthProblem> {
        match self.look_at_data(dir, record) {
            Ok(problem) => problem,
            Err(error) => Some(HealthProblem::new(Severity::Inaccessible, "ImageUnreadable", error.chain())),
        }
    }

    /// The same as `Corrupt`.
    pub(crate) fn check_data(&self, dir: &Dir, record: &VolumeRecord) -> Result<()> {
        match self.look_at_data(dir, record)? {
            None => Ok(()),
            Some(problem) => Err(Error::new(ErrorKind::Corrupt, problem.message)),
        }
    }

    /// Opens the image, or says why it is not the one that the record names in its full size.
    pub(crate) fn look_at_image(
        &self,
        dir: &Dir,
        image: &ImageIdentity,
        size_bytes: u64,
    ) -> Result<std::result::Result<File, ImageFault>> {
        look_at_image(dir, image, size_bytes, Access::ReadWrite)
    }

    fn look_at_data(&self, dir: &Dir, record: &VolumeRecord) -> Result<Option<HealthProblem>> {
        let loss = |reason, message: String| Ok(Some(HealthProblem::new(Severity::DataLoss, reason, message)));
        match (&record.image, record.kind) {
            (Some(image), _) => match look_at_image(dir, image, record.size_bytes, Access::Read)? {
                Ok(_) => Ok(None),
                Err(fault) => loss(fault.reason(), fault.message(dir, image)),
            },
            (None, VolumeKind::Directory) => match dir.find_child(DATA)? {
                Some(_) => Ok(None),
                None => loss("DirectoryMissing", format!("{} is gone", dir.path().join(DATA).display())),
            },
            (None, _) => loss("ImageMissing", format!("the record of volume {} names no image", record.id)),
        }
    }

    /// `None` when there is no such volume.
    fn health_of(&self, id: &VolumeId, of_pool: &[HealthProblem]) -> Result<Option<VolumeHealth>> {
        let mut problems = Vec::new();
        match RecordDir::<VolumeRecord>::find(&self.volumes, id.as_str()) {
            Ok(None) => return Ok(None),
            Ok(Some(state)) if state.record().deleting => return Ok(None),
            Ok(Some(state)) => {
                problems.extend(self.data_problem(state.dir(), state.record()));
                problems.extend(of_pool.iter().filter(|problem| concerns(problem, state.record())).cloned());
            }
            Err(error) => problems.push(record_problem(error)?),
        }
        Ok(Some(VolumeHealth { volume: id.clone(), problems }))
    }

    fn room_problems(&self) -> Result<Vec<HealthProblem>> {
        let pool = self.dir.path().display();
        let mut problems = Vec::new();
        let degraded = |reason, message| HealthProblem::new(Severity::Degraded, reason, message);
        match self.fullness()? {
            Fullness::Ample => {}
            Fullness::NearlyFull(bytes) => problems.push(degraded(
                "PoolNearlyFull",
                format!(
                    "the pool {pool} has {bytes} bytes free above its reserve; remove volumes, snapshots or orphans, trim \
                     volumes, or grow the pool's file system"
                ),
            )),
            Fullness::Full => problems.push(degraded(
                FULL,
                format!(
                    "the pool {pool} is full: nothing new is made, and writes to thin volumes can fail; remove volumes, \
                     snapshots or orphans, trim volumes, or grow the pool's file system"
                ),
            )),
        }
        if self.is_read_only()? {
            let message = format!(
                "the file system of the pool {pool} is read-only, by an error of its disk or by hand: volumes take no \
                 writes; see the kernel's log"
            );
            problems.push(HealthProblem::new(Severity::Inaccessible, NOT_WRITABLE, message));
        }
        Ok(problems)
    }

    fn is_read_only(&self) -> Result<bool> {
        if space(&self.dir)?.read_only {
            return Ok(true);
        }
        // ext4 that met an error says so in the mount table alone.
        let on = self.dir.device()?;
        Ok(self.host.mounts()?.iter().any(|entry| entry.device == on && entry.went_read_only()))
    }
}

/// Why an image is not the one that its record names.
pub(crate) enum ImageFault {
    Missing,
    Replaced,
    Truncated { found_bytes: u64, size_bytes: u64 },
}

impl ImageFault {
    pub(crate) fn into_error(self, dir: &Dir, image: &ImageIdentity) -> Error {
        Error::new(ErrorKind::Corrupt, self.message(dir, image))
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "ImageMissing",
            Self::Replaced => "ImageReplaced",
            Self::Truncated { .. } => "ImageTruncated",
        }
    }

    fn message(&self, dir: &Dir, image: &ImageIdentity) -> String {
        let path = dir.path().join(&image.name);
        let path = path.display();
        match self {
            Self::Missing => format!("the image {path} is gone; restore it, or delete the volume"),
            Self::Replaced => format!(
                "the image {path} is not the file that the record names (it was replaced or restored from a backup); \
                 check what is in it, then: hawser volume rebuild VOLUME"
            ),
            Self::Truncated { found_bytes, size_bytes } => format!(
                "the image {path} has {found_bytes} bytes and its record says {size_bytes}: it was truncated outside of \
                 this driver; restore it from a snapshot or a backup"
            ),
        }
    }
}

fn look_at_image(
    dir: &Dir,
    image: &ImageIdentity,
    size_bytes: u64,
    access: Access,
) -> Result<std::result::Result<File, ImageFault>> {
    let file = match dir.open_file(&image.name, access) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Err(ImageFault::Missing)),
        Err(error) => return Err(error),
    };
    let found = identity(&file)?;
    if (found.inode, found.generation) != (image.inode, image.generation) {
        return Ok(Err(ImageFault::Replaced));
    }
    let found_bytes = crate::image::length(&file)?;
    if found_bytes < size_bytes {
        return Ok(Err(ImageFault::Truncated { found_bytes, size_bytes }));
    }
    Ok(Ok(file))
}

/// A full pool degrades what still takes space from it. That it is nearly full is said of the storage alone
/// (NodeGetStorageHealth): on every volume it would hide the ones that need somebody now.
fn concerns(problem: &HealthProblem, record: &VolumeRecord) -> bool {
    match problem.reason {
        NOT_WRITABLE => true,
        FULL => !record.thick,
        _ => false,
    }
}

/// What a volume has whose record cannot be read. The error itself when it says nothing of the volume.
fn record_problem(error: Error) -> Result<HealthProblem> {
    let reason = match error.kind() {
        ErrorKind::Busy => return Err(error),
        ErrorKind::Corrupt => "RecordDamaged",
        ErrorKind::Unsupported => "RecordNewer",
        _ => "RecordUnreadable",
    };
    Ok(HealthProblem::new(Severity::Inaccessible, reason, error.chain()))
}
