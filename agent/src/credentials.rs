//! The files that say who this process is and whom it believes, read again when they change.

use crate::Role;
use crate::tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use volume::{Error, ErrorKind, Result};

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialFiles {
    /// Certificates of the authorities whose word counts.
    pub ca: PathBuf,
    /// This process's certificate and what stands between it and an authority.
    pub cert: PathBuf,
    /// Its private key. Readable for its owner alone, or also for the group where the owner is root.
    pub key: PathBuf,
}

/// Shared by all connections of a process.
#[derive(Debug)]
pub struct Credentials {
    files: CredentialFiles,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    stamps: Stamps,
    material: Arc<Material>,
}

/// What was made of one state of the files.
#[derive(Debug)]
pub(crate) struct Material {
    /// Grows with each change.
    pub(crate) generation: u64,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) verifier: Arc<dyn ClientCertVerifier>,
}

/// Tells states of files apart without reading them. A Kubernetes secret changes by a link to another directory.
type Stamps = [Option<(u64, u64, u64, i64, i64)>; 3];

/// Certificates and keys have a few KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

impl Credentials {
    /// `FailedPrecondition` when a file cannot be used, or the certificate does not make this process what it must be.
    pub fn load(files: CredentialFiles, own: &[Role]) -> Result<Arc<Self>> {
        let stamps = stamps(&files);
        let (material, roles) = read(&files, 0)?;
        if let Some(missing) = own.iter().find(|role| !roles.contains(role)) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "the certificate {} is of {}; to be {missing} it must carry the URI {}",
                    files.cert.display(),
                    Role::list(&roles),
                    missing.uri()
                ),
            ));
        }
        let loaded = Loaded { stamps, material: Arc::new(material) };
        Ok(Arc::new(Self { files, loaded: Mutex::new(loaded) }))
    }

    /// Of the files as they are now. While they cannot be used (half renewed, say), of what they were.
    pub(crate) fn current(&self) -> Arc<Material> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.files);
        if now != loaded.stamps {
            // Noted in any case: what cannot be used is told once, and looked at again when it changes.
            loaded.stamps = now;
            match read(&self.files, loaded.material.generation + 1) {
                Ok((material, _)) => {
                    loaded.material = Arc::new(material);
                    tracing::info!(cert = %self.files.cert.display(), "the certificate was read again");
                }
                Err(error) => tracing::error!(error = error.chain(), "the changed certificate is not used"),
            }
        }
        Arc::clone(&loaded.material)
    }
}

fn read(files: &CredentialFiles, generation: u64) -> Result<(Material, Vec<Role>)> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca)? {
        roots.add(certificate).map_err(|error| unusable(&files.ca, &error))?;
    }
    let chain = certificates(&files.cert)?;
    let first = chain.first().ok_or_else(|| unusable(&files.cert, &"it holds no certificate"))?;
    let roles = Role::of(first).map_err(|error| error.context(format!("read {}", files.cert.display())))?;
    let key = private_key(&files.key)?;
    let roots = Arc::new(roots);
    let verifier = tls::client_verifier(&roots).map_err(|error| unusable(&files.ca, &error))?;
    // Both refuse a key that is not the certificate's, as while one of the two is renewed.
    let server = tls::server_config(&verifier, chain.clone(), key.clone_key());
    let client = tls::client_config(roots, chain, key);
    let server = server.map_err(|error| unusable(&files.cert, &error))?;
    let client = client.map_err(|error| unusable(&files.cert, &error))?;
    Ok((Material { generation, server: Arc::new(server), client: Arc::new(client), verifier }, roles))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let (text, _) = contents(path)?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(path, &"it holds no certificate in PEM")),
        Err(error) => Err(unusable(path, &error)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let (text, metadata) = contents(path)?;
    check_private(path, &metadata)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| unusable(path, &error))
}

/// Of the open file: a name could lead elsewhere a moment later.
fn check_private(path: &Path, metadata: &Metadata) -> Result<()> {
    // Kubernetes gives a secret to root and the pod's fsGroup, readable for both.
    let allowed = if metadata.uid() == 0 { 0o740 } else { 0o700 };
    let mode = metadata.mode() & 0o777;
    if mode & !allowed == 0 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::FailedPrecondition,
        format!(
            "the private key {} has mode {mode:04o}, so others can read or change it; chmod it to 0600 (0640 where root owns it), and make a new one if others had access",
            path.display()
        ),
    ))
}

fn contents(path: &Path) -> Result<(Vec<u8>, Metadata)> {
    let failed = |error| {
        let message = format!("cannot read {}", path.display());
        Error::with_source(ErrorKind::FailedPrecondition, message, error)
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(unusable(path, &"it is no regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut text).map_err(failed)?;
    Ok((text, metadata))
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::FailedPrecondition, format!("{} cannot be used: {why}", path.display()))
}

fn stamps(files: &CredentialFiles) -> Stamps {
    [&files.ca, &files.cert, &files.key].map(|path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Validity};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use volume::NodeId;

    fn node() -> Role {
        Role::Node(NodeId::parse("n1").unwrap())
    }

    fn made(dir: &Path) -> CredentialFiles {
        let authority = Authority::ensure(dir).unwrap();
        authority.issue(dir, "n1", &[node()], Validity::days(1)).unwrap()
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = made(dir.path());
        let is_root = fs::metadata(&files.key).unwrap().uid() == 0;
        for (mode, fine) in [
            (0o600, true),
            (0o400, true),
            (0o640, is_root),
            (0o440, is_root),
            (0o660, false),
            (0o644, false),
            (0o604, false),
        ] {
            fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = Credentials::load(files.clone(), &[node()]);
            assert_eq!(loaded.is_ok(), fine, "{mode:o}");
            if let Err(error) = loaded {
                assert!(error.to_string().contains(&format!("mode {mode:04o}")), "{error}");
            }
        }
    }

    #[test]
    fn it_must_make_this_process_what_it_is_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let files = made(dir.path());
        let error = Credentials::load(files.clone(), &[Role::Controller]).unwrap_err().to_string();
        assert!(error.contains("is of node n1") && error.contains("hawser://controller"), "{error}");
        let absent = CredentialFiles { ca: dir.path().join("absent"), ..files.clone() };
        assert!(Credentials::load(absent, &[]).unwrap_err().chain().contains("absent"));
        fs::write(&files.cert, "no certificate").unwrap();
        assert!(Credentials::load(files, &[]).unwrap_err().to_string().contains("holds no certificate"));
    }

    #[test]
    fn renewal_is_seen_and_half_a_renewal_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let files = made(dir.path());
        let credentials = Credentials::load(files.clone(), &[node()]).unwrap();
        assert_eq!(credentials.current().generation, 0);
        let old_key = fs::read(&files.key).unwrap();
        made(dir.path());
        let new_key = fs::read(&files.key).unwrap();
        assert_ne!(old_key, new_key);
        let other = dir.path().join("other.key");
        fs::write(&other, &old_key).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&other, &files.key).unwrap();
        assert_eq!(credentials.current().generation, 0, "the key is not the certificate's");
        fs::write(&files.key, &new_key).unwrap();
        assert_eq!(credentials.current().generation, 1);
        assert_eq!(credentials.current().generation, 1);
    }
}
