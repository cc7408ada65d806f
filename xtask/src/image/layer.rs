//! A layer: a tar archive of some files, packed, whose bytes depend on their names and contents alone.

use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tar::{EntryType, Header};

#[derive(Clone)]
pub(super) struct Layer {
    pub(super) what: &'static str,
    /// gzip of the archive.
    pub(super) packed: Vec<u8>,
    pub(super) unpacked_bytes: u64,
    /// Of the archive before it is packed: what OCI calls its diff id.
    pub(super) unpacked_digest: String,
}

pub(super) struct LayerBuilder {
    what: &'static str,
    /// By path, without a leading slash; directories are implied.
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    File { bytes: Vec<u8>, mode: u32 },
    Link { target: String },
    Directory,
}

impl LayerBuilder {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, entries: BTreeMap::new() }
    }

    /// Copies a file, or what a link leads to.
    pub(super) fn copy(&mut self, from: &Path, to: &str) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("cannot read {}: {error}", from.display());
        let is_program = std::fs::metadata(from).map_err(failed)?.permissions().mode() & 0o111 != 0;
        let mode = if is_program { 0o755 } else { 0o644 };
        self.insert(to, Entry::File { bytes: std::fs::read(from).map_err(failed)?, mode });
        Ok(())
    }

    pub(super) fn link(&mut self, at: &str, target: &str) {
        self.insert(at, Entry::Link { target: target.to_owned() });
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        for (end, _) in path.match_indices('/') {
            self.entries.entry(path[..end].to_owned()).or_insert(Entry::Directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    pub(super) fn finish(self) -> Result<Layer, String> {
        let failed = |error: std::io::Error| format!("cannot make the layer of {}: {error}", self.what);
        let mut archive = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = Header::new_ustar();
            let (kind, mode, bytes, target): (_, _, &[u8], _) = match entry {
                Entry::File { bytes, mode } => (EntryType::Regular, *mode, bytes, None),
                Entry::Link { target } => (EntryType::Symlink, 0o777, &[], Some(target)),
                Entry::Directory => (EntryType::Directory, 0o755, &[], None),
            };
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(bytes.len() as u64);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            if let Some(target) = target {
                header.set_link_name(target).map_err(failed)?;
            }
            archive.append_data(&mut header, path, bytes).map_err(failed)?;
        }
        let archive = archive.into_inner().map_err(failed)?;
        // No name and no time in its header.
        let mut packer = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        let packed = packer.write_all(&archive).and_then(|()| packer.finish()).map_err(failed)?;
        let unpacked_digest = digest(&archive);
        Ok(Layer { what: self.what, packed, unpacked_bytes: archive.len() as u64, unpacked_digest })
    }
}

impl Layer {
    pub(super) fn packed_bytes(&self) -> u64 {
        self.packed.len() as u64
    }
}

/// As OCI writes it.
pub(super) fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
