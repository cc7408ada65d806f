//! Staging and target paths.

use super::faults::Stop;
use super::kernel::{Kernel, Superblock};
use super::tree::Kind;
use crate::{Owner, PathState};
use std::path::Path;
use volume::{Error, ErrorKind, Result};

impl Kernel {
    pub(super) fn observe_path(&self, path: &Path) -> Result<PathState> {
        let path = self.checked(path)?;
        let place = self.place(&path)?;
        let tree = self.tree(place.superblock)?;
        Ok(match tree.get(&place.inner).map(|node| &node.kind) {
            None => PathState::Absent,
            Some(Kind::Directory) => {
                // What cannot be read is not shown to be empty.
                let readable = !matches!(place.superblock, Superblock::Device(n, _) if self.shut_down.contains(&n));
                PathState::Directory { is_empty: readable && !tree.has_children(&place.inner) }
            }
            Some(Kind::File(bytes)) => PathState::File { size_bytes: bytes.len() as u64 },
            Some(Kind::Image(disk)) => PathState::File { size_bytes: self.disks.get(disk).map_or(0, |d| d.size_bytes) },
            Some(Kind::BlockDevice(number)) => PathState::BlockDevice(*number),
            Some(Kind::Symlink(_)) => PathState::Symlink,
            Some(Kind::Socket) => PathState::Other,
        })
    }

    pub(super) fn ensure_directory(&mut self, path: &Path) -> Result<(), Stop> {
        let path = self.checked(path)?;
        let mut missing: Vec<_> = path.ancestors().collect();
        missing.reverse();
        for directory in missing {
            match self.node(directory)?.map(|node| &node.kind) {
                Some(Kind::Directory) => {}
                Some(_) => {
                    return Err(refused(format!(
                        "making the directory {}: {} is there and is not a directory",
                        path.display(),
                        directory.display()
                    )));
                }
                None => self.make(directory, Kind::Directory, "make-directory")?,
            }
        }
        Ok(())
    }

    pub(super) fn ensure_file(&mut self, path: &Path) -> Result<(), Stop> {
        let path = self.checked(path)?;
        if let Some(parent) = path.parent().filter(|parent| parent.parent().is_some()) {
            self.ensure_directory(parent)?;
        }
        match self.node(&path)?.map(|node| &node.kind) {
            None => self.make(&path, Kind::File(Vec::new()), "make-file"),
            Some(Kind::File(bytes)) if bytes.is_empty() => Ok(()),
            Some(Kind::BlockDevice(_)) if self.is_mount_point(&path) => Ok(()),
            Some(_) => Err(refused(format!("{} is to be an empty file, but something else is there", path.display()))),
        }
    }

    pub(super) fn seal_target(&mut self, path: &Path) -> Result<bool, Stop> {
        let path = self.checked(path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
        // Below whatever is mounted on it.
        let place = self.place(parent)?;
        let hidden = place.inner.join(name);
        match self.tree(place.superblock)?.get(&hidden) {
            Some(node) if matches!(node.kind, Kind::Directory) && node.is_sealed => return Ok(true),
            Some(node) if matches!(node.kind, Kind::Directory) => {}
            _ => return Ok(false),
        }
        self.tree_mut(&place)?;
        self.effect("seal-target")?;
        if let Some(node) = self.tree_mut(&place)?.get_mut(&hidden) {
            node.is_sealed = true;
        }
        Ok(true)
    }

    pub(super) fn remove_target(&mut self, path: &Path) -> Result<(), Stop> {
        let path = self.checked(path)?;
        let because = |why: &str| Err(refused(format!("{} is not removed: {why}", path.display())));
        if self.is_mount_point(&path) {
            return because("something is mounted there");
        }
        let place = self.place(&path)?;
        let tree = self.tree(place.superblock)?;
        match tree.get(&place.inner).map(|node| &node.kind) {
            None => return Ok(()),
            Some(Kind::Directory) if tree.has_children(&place.inner) => return because("it is not empty"),
            Some(Kind::Directory) => {}
            Some(Kind::File(bytes)) if bytes.is_empty() => {}
            Some(_) => return because("it is not an empty file or directory"),
        }
        self.tree_mut(&place)?;
        self.effect("remove-target")?;
        self.tree_mut(&place)?.remove(&place.inner);
        Ok(())
    }

    pub(super) fn owner(&self, path: &Path) -> Result<Owner> {
        let path = self.checked(path)?;
        match self.node(&path)? {
            Some(node) if matches!(node.kind, Kind::Directory) => Ok(node.owner),
            Some(_) => Err(Error::new(ErrorKind::FailedPrecondition, format!("{} is not a directory", path.display()))),
            None => Err(Error::not_found(format!("{} is not there", path.display()))),
        }
    }

    pub(super) fn set_owner(
        &mut self,
        path: &Path,
        uid: Option<u32>,
        gid: Option<u32>,
        mode: Option<u32>,
    ) -> Result<(), Stop> {
        let now = self.owner(path)?;
        let place = self.place(&self.checked(path)?)?;
        let (uid, gid, mode) = (uid.unwrap_or(now.uid), gid.unwrap_or(now.gid), mode.unwrap_or(now.mode));
        for (name, changed, owner) in [
            ("set-owner", (uid, gid) != (now.uid, now.gid), Owner { uid, gid, mode: now.mode }),
            ("set-mode", mode != now.mode, Owner { uid, gid, mode }),
        ] {
            if changed {
                self.tree_mut(&place)?;
                self.effect(name)?;
                if let Some(node) = self.tree_mut(&place)?.get_mut(&place.inner) {
                    node.owner = owner;
                }
            }
        }
        Ok(())
    }

    fn make(&mut self, path: &Path, kind: Kind, name: &'static str) -> Result<(), Stop> {
        let place = self.place(path)?;
        if place
            .inner
            .parent()
            .is_some_and(|parent| self.tree(place.superblock).is_ok_and(|tree| tree.is_sealed(parent)))
        {
            return Err(refused(format!("making {}: its directory is sealed", path.display())));
        }
        self.tree_mut(&place)?;
        self.effect(name)?;
        self.tree_mut(&place)?.put(place.inner.clone(), kind);
        Ok(())
    }
}

fn refused(message: String) -> Stop {
    Stop::Failed(Error::new(ErrorKind::FailedPrecondition, message))
}
