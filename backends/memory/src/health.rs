//! What is wrong with volumes, and trims.

use crate::state::{State, VolumeRecord};
use crate::{MemoryBackend, Storage};
use host::Host;
use volume::{
    Error, ErrorKind, Health, HealthProblem, Page, PageRequest, Result, Severity, Trim, Trimmed, VolumeGuard,
    VolumeHealth, VolumeId, VolumeKind,
};

impl Health for MemoryBackend {
    fn volume_health(&self, id: &VolumeId) -> Result<VolumeHealth> {
        self.storage.health_of(id)
    }

    fn list_unhealthy(&self, page: &PageRequest) -> Result<Page<VolumeHealth>> {
        let ids: Vec<VolumeId> = self.storage.state().volumes.keys().cloned().collect();
        let found: Result<Vec<VolumeHealth>> = ids.iter().map(|id| self.storage.health_of(id)).collect();
        let unhealthy = found?.into_iter().filter(|health| !health.is_healthy()).collect();
        let is_own = |token: &str| VolumeId::parse(token).is_ok_and(|id| id.backend() == self.storage.name.as_str());
        Page::cut(unhealthy, page, |health: &VolumeHealth| health.volume.as_str(), is_own)
    }
}

impl Trim for MemoryBackend {
    fn trim(&self, guard: &VolumeGuard, id: &VolumeId) -> Result<Trimmed> {
        guard.check(id.as_str())?;
        let image = {
            let state = self.storage.state();
            let record = state.volume(id)?;
            match (&record.image, record.volume.kind) {
                (Some(_), VolumeKind::FileSystem(_)) if record.volume.thick => {
                    return Err(Error::new(ErrorKind::FailedPrecondition, format!("volume {id} is thick")));
                }
                (Some(image), VolumeKind::FileSystem(_)) => image.clone(),
                _ => {
                    let message = format!("volume {id} has no file system of its own to trim");
                    return Err(Error::new(ErrorKind::Unsupported, message));
                }
            }
        };
        let host = &self.storage.host;
        let allocated_before_bytes = host.allocated_bytes(&image.path)?;
        for device in self.storage.writable_loops(Some(&image))? {
            if let Some(discarded_bytes) = host.trim(device.number)? {
                let allocated_after_bytes = host.allocated_bytes(&image.path)?;
                return Ok(Trimmed { discarded_bytes, allocated_before_bytes, allocated_after_bytes });
            }
        }
        Err(Error::new(ErrorKind::FailedPrecondition, format!("volume {id} is not mounted; stage it first")))
    }
}

impl Storage {
    pub(crate) fn health_of(&self, id: &VolumeId) -> Result<VolumeHealth> {
        let state = self.state();
        let record = state.volume(id)?;
        let mut problems = self.image_problem(record)?.into_iter().collect::<Vec<_>>();
        if !record.volume.thick {
            problems.extend(self.full(&state));
        }
        Ok(VolumeHealth { volume: id.clone(), problems })
    }

    pub(crate) fn full(&self, state: &State) -> Option<HealthProblem> {
        let is_full = self.available_bytes(state) == 0;
        is_full.then(|| HealthProblem::new(Severity::Degraded, "PoolFull", "the storage in memory is full"))
    }

    fn image_problem(&self, record: &VolumeRecord) -> Result<Option<HealthProblem>> {
        let Some(image) = &record.image else { return Ok(None) };
        let path = image.path.display();
        let loss = |reason, message| Ok(Some(HealthProblem::new(Severity::DataLoss, reason, message)));
        match self.host.image_identity(&image.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => loss("ImageMissing", format!("{path} is gone")),
            Err(error) => Err(error),
            Ok(found) if found != image.identity => loss("ImageReplaced", format!("{path} is another image")),
            Ok(_) => match self.host.device_size(&image.path)? {
                found if found < record.volume.size_bytes => {
                    loss("ImageTruncated", format!("{path} has {found} bytes, fewer than the volume"))
                }
                _ => Ok(None),
            },
        }
    }
}
