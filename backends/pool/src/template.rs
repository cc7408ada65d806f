//! Formatted images to clone: `templates/<fs>-<size>`, made once for each file system and size.
//!
//! A volume's file system is a clone of its template with a UUID of its own, so that no program runs to create it.

use crate::Pool;
use crate::leftovers::claim;
use crate::record::is_unfinished;
use host::file::{Access, Dir, clone_file, copy_sparse};
use host::filesystem;
use std::fs::File;
use std::path::Path;
use std::time::SystemTime;
use uuid::Uuid;
use volume::{Error, FsType, Result};

/// The oldest go when there are more; each takes 4 (ext4) to 70 MiB (xfs).
const MAX_TEMPLATES: usize = 64;
const IMAGE: &str = "image";

impl Pool {
    /// Puts an empty file system on `image`, which was made just now, is empty and has this path; its UUID.
    pub(crate) fn format_image(&self, image: &File, path: &Path, fs: FsType, size_bytes: u64) -> Result<Uuid> {
        let template = self.template(fs, size_bytes)?;
        self.copy_image(&template, image)?;
        let uuid = Uuid::new_v4();
        filesystem::set_uuid(path, fs, uuid.into_bytes())?;
        self.effects().done("set-uuid");
        Ok(uuid)
    }

    /// Shares the blocks where the pool's file system can, else copies what is not a hole.
    pub(crate) fn copy_image(&self, source: &File, target: &File) -> Result<()> {
        if self.reflink {
            clone_file(source, target, self.effects())
        } else {
            copy_sparse(source, target, self.effects())
        }
    }

    fn template(&self, fs: FsType, size_bytes: u64) -> Result<File> {
        let name = format!("{fs}-{size_bytes}");
        if !self.templates.contains(&name)? {
            self.make_template(&name, fs, size_bytes)?;
        }
        let template = self.templates.open_file(&name, Access::Read)?;
        let found = template.metadata().map_err(|e| Error::io(format!("reading the size of template {name}"), e))?;
        if found.len() == size_bytes {
            return Ok(template);
        }
        // It was complete and durable before it had this name, so something else cut it. It holds nobody's data.
        tracing::warn!(template = name, found = found.len(), "the template has the wrong size and is made again");
        self.templates.remove_file(&name)?;
        self.make_template(&name, fs, size_bytes)?;
        self.templates.open_file(&name, Access::Read)
    }

    fn make_template(&self, name: &str, fs: FsType, size_bytes: u64) -> Result<()> {
        self.remove_oldest_templates()?;
        // Another controller's is as good: that the name is taken needs no answer.
        make_image(&self.templates, name, fs, size_bytes).map(drop).map_err(|e| {
            e.context(format!("making the template that every new {fs} volume of this size is cloned from"))
        })
    }

    fn remove_oldest_templates(&self) -> Result<()> {
        let mut names = self.templates.names()?;
        names.retain(|name| !is_unfinished(name));
        if names.len() < MAX_TEMPLATES {
            return Ok(());
        }
        let made_at = |name: &String| {
            let file = self.templates.open_file(name, Access::Read).ok()?;
            file.metadata().ok()?.modified().ok()
        };
        names.sort_by_cached_key(|name| made_at(name).unwrap_or(SystemTime::UNIX_EPOCH));
        for name in names.iter().take(names.len() - MAX_TEMPLATES + 1) {
            self.templates.remove_file(name)?;
        }
        Ok(())
    }
}

/// Makes the file `name` in `parent` with an empty file system, complete and durable; `false` when the name is taken.
pub(crate) fn make_image(parent: &Dir, name: &str, fs: FsType, size_bytes: u64) -> Result<bool> {
    let unfinished = format!(".new-{}", Uuid::new_v4().simple());
    let dir = parent.ensure_child(&unfinished)?;
    let made = (|| {
        claim(&dir)?;
        dir.publish(IMAGE, b"")?;
        filesystem::make(&dir.path().join(IMAGE), fs, size_bytes, Uuid::new_v4().into_bytes())?;
        parent.effects().done("make-file-system");
        dir.rename_noreplace(IMAGE, parent, name)
    })();
    if let Err(error) = parent.remove_tree(&unfinished) {
        tracing::warn!(error = error.chain(), "an unfinished directory stays behind; opening the pool removes it");
    }
    made
}
