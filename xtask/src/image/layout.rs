//! OCI's image layout (image-spec 1.1, image-layout.md) in one tar archive, as `ctr images import` and others take it.

use super::layer::{Layer, digest};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

pub(super) struct Image {
    /// With registry and tag.
    pub(super) name: String,
    pub(super) version: String,
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
    pub(super) user: &'static str,
}

#[derive(Default)]
pub(super) struct Layout {
    /// By digest; layers that images share are there once.
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: Vec<Value>,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Layout {
    /// The image's digest.
    pub(super) fn add(&mut self, image: &Image) -> Result<String, String> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => return Err(format!("OCI's name of the architecture {other} is not known here")),
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": ["/hawser"],
                "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "User": image.user,
                "Labels": {
                    "org.opencontainers.image.licenses": "Apache-2.0",
                    "org.opencontainers.image.source": "https://github.com/hawser-dev/hawser",
                    "org.opencontainers.image.title": "hawser",
                    "org.opencontainers.image.version": image.version,
                },
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": image.layers.iter().map(|layer| layer.unpacked_digest.as_str()).collect::<Vec<_>>(),
            },
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
        let layers: Vec<Value> = image
            .layers
            .iter()
            .map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", layer.packed.clone()))
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().into_bytes());
        let found = descriptor["digest"].as_str().unwrap_or_default().to_owned();
        let tag = image.name.rsplit_once(':').map_or("", |(_, tag)| tag);
        // The first is containerd's, which has the whole name, and the second OCI's.
        descriptor["annotations"] =
            json!({"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": tag});
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        self.manifests.push(descriptor);
        Ok(found)
    }

    /// Replaces the file in one step, so that nobody reads half of one.
    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        std::fs::write(&beside, self.archive().map_err(failed)?).map_err(failed)?;
        std::fs::rename(&beside, path).map_err(failed)
    }

    pub(super) fn archive(&self) -> std::io::Result<Vec<u8>> {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.manifests,
        });
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            header.set_mtime(0);
            archive.append_data(&mut header, name, bytes)
        };
        add("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
        add("index.json", index.to_string().as_bytes())?;
        for (digest, bytes) in &self.blobs {
            add(&format!("blobs/{}", digest.replace(':', "/")), bytes)?;
        }
        archive.into_inner()
    }

    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }
}
