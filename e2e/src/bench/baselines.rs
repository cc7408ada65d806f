//! The usual ways to the same end: programs, and the bare system calls.

use crate::failure::{Context, Result};
use crate::lab::{Lab, kernel};
use host::bare;
use std::fs::File;
use std::path::{Path, PathBuf};
use volume::FsType;

/// Where a baseline's volume is.
pub(super) struct Places {
    image: PathBuf,
    staging: PathBuf,
    target: PathBuf,
    device: String,
}

impl Places {
    /// Directories are made by the orchestrator, and not measured.
    pub(super) fn new(lab: &Lab, name: &str) -> Result<Self> {
        let places = Self {
            image: lab.pool().join(format!("{name}.img")),
            staging: lab.path("staging").join(name),
            target: lab.path("published").join(name),
            device: String::new(),
        };
        std::fs::create_dir_all(&places.staging)?;
        std::fs::create_dir_all(&places.target)?;
        Ok(places)
    }

    pub(super) fn remove_directories(self) {
        let _ = std::fs::remove_dir(&self.staging);
        let _ = std::fs::remove_dir(&self.target);
    }

    /// As drivers do that start programs: losetup, blkid, mkfs, fsck, mount, and mount again to bind.
    pub(super) fn up_by_programs(&mut self, size_bytes: u64) -> Result<()> {
        File::create_new(&self.image)?.set_len(size_bytes)?;
        let image = self.image.to_string_lossy();
        let losetup = ["--find", "--show", "--direct-io=on", "--sector-size", "4096", &image];
        self.device = kernel::program("losetup", &losetup)?.trim().to_owned();
        // It fails when it finds nothing, which is what it finds here.
        let _ = kernel::program("blkid", &["-p", "-s", "TYPE", "-o", "export", &self.device]);
        kernel::program("mkfs.ext4", &["-q", "-m", "0", &self.device])?;
        kernel::program("fsck", &["-a", &self.device])?;
        let (staging, target) = (self.staging.to_string_lossy(), self.target.to_string_lossy());
        kernel::program("mount", &["-t", "ext4", &self.device, &staging])?;
        kernel::program("mount", &["--bind", &staging, &target])?;
        Ok(())
    }

    pub(super) fn down_by_programs(&mut self) -> Result<()> {
        kernel::program("umount", &[&self.target.to_string_lossy()])?;
        kernel::program("umount", &[&self.staging.to_string_lossy()])?;
        kernel::program("losetup", &["--detach", &self.device])?;
        Ok(std::fs::remove_file(&self.image)?)
    }

    /// FICLONE of the template and fsync.
    pub(super) fn create_bare(&mut self, template: &File) -> Result<()> {
        let image = File::options().read(true).write(true).create_new(true).open(&self.image)?;
        bare::clone(template, &image).context(|| "FICLONE".to_owned())?;
        Ok(image.sync_all()?)
    }

    /// LOOP_CONFIGURE and the mount calls.
    pub(super) fn stage_bare(&mut self) -> Result<()> {
        let image = File::options().read(true).write(true).open(&self.image)?;
        let device = bare::attach_loop(&image).context(|| "LOOP_CONFIGURE".to_owned())?;
        self.device = device.to_string_lossy().into_owned();
        bare::mount("ext4", &self.device, &self.staging).context(|| "mounting".to_owned())
    }

    pub(super) fn publish_bare(&self) -> Result<()> {
        bare::bind(&self.staging, &self.target).context(|| "binding".to_owned())
    }

    pub(super) fn unpublish_bare(&self) -> Result<()> {
        bare::unmount(&self.target).context(|| "unmounting the target".to_owned())
    }

    pub(super) fn unstage_bare(&self) -> Result<()> {
        bare::unmount(&self.staging).context(|| "unmounting".to_owned())?;
        bare::detach_loop(Path::new(&self.device)).context(|| "LOOP_CLR_FD".to_owned())
    }

    pub(super) fn delete_bare(&self) -> Result<()> {
        Ok(std::fs::remove_file(&self.image)?)
    }
}

/// An image with an empty ext4, to clone; made as the driver makes its own.
pub(super) fn template(lab: &Lab, size_bytes: u64) -> Result<File> {
    let path = lab.pool().join("template.img");
    File::create_new(&path)?;
    host::filesystem::make(&path, FsType::Ext4, size_bytes, *uuid::Uuid::new_v4().as_bytes())
        .map_err(|error| error.chain())
        .context(|| "making the template of the bare calls".to_owned())?;
    Ok(File::open(&path)?)
}
