//! The files that say who this process is and whom it believes, read again when they change.

use crate::certificates::Validity;
use crate::{Role, certificates, tls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, ClientConfig, Error as TlsError, RootCertStore, ServerConfig};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use volume::{Error, ErrorKind, NodeId, Result};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

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

/// The same as texts.
#[derive(Clone, PartialEq, Eq)]
pub struct CredentialPem {
    pub ca: String,
    pub cert: String,
    pub key: String,
}

/// Shared by all connections of a process.
#[derive(Debug)]
pub struct Credentials {
    /// Where they are read again from when they change; else somebody sets them.
    files: Option<CredentialFiles>,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    stamps: Stamps,
    material: Option<Arc<Material>>,
    /// Why there is none yet.
    missing: String,
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
        let (material, roles) = material(&read(&files)?, 0)?;
        check_roles(&format!("the certificate {}", files.cert.display()), &roles, own)?;
        let loaded = Loaded { stamps, material: Some(Arc::new(material)), missing: String::new() };
        Ok(Arc::new(Self { files: Some(files), loaded: Mutex::new(loaded) }))
    }

    /// None yet: they will be set. Until then nothing connects.
    pub fn awaited(why: &str) -> Arc<Self> {
        let loaded = Loaded { stamps: Stamps::default(), material: None, missing: why.to_owned() };
        Arc::new(Self { files: None, loaded: Mutex::new(loaded) })
    }

    /// In place of earlier ones. `FailedPrecondition` as [`Credentials::load`]; then the earlier ones go on to be used.
    pub fn set(&self, pem: &CredentialPem, own: &[Role]) -> Result<()> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = loaded.material.as_ref().map_or(0, |material| material.generation + 1);
        let (material, roles) = material(&pem.parts(), generation)?;
        check_roles(CERTIFICATE, &roles, own)?;
        loaded.material = Some(Arc::new(material));
        Ok(())
    }

    /// Of the files as they are now. While they cannot be used (half renewed, say), of what they were. `Unavailable`
    /// where they are awaited.
    pub(crate) fn current(&self) -> Result<Arc<Material>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &self.files {
            loaded.read_again(files);
        }
        let missing = || Error::new(ErrorKind::Unavailable, format!("there is no certificate yet: {}", loaded.missing));
        loaded.material.clone().ok_or_else(missing)
    }
}

impl Loaded {
    fn read_again(&mut self, files: &CredentialFiles) {
        let now = stamps(files);
        if now == self.stamps {
            return;
        }
        // Noted in any case: what cannot be used is told once, and looked at again when it changes.
        self.stamps = now;
        let generation = self.material.as_ref().map_or(0, |material| material.generation + 1);
        match read(files).and_then(|parts| material(&parts, generation)) {
            Ok((material, _)) => {
                self.material = Some(Arc::new(material));
                tracing::info!(cert = %files.cert.display(), "the certificate was read again");
            }
            Err(error) => tracing::error!(error = error.chain(), "the changed certificate is not used"),
        }
    }
}

/// Whether controllers that believe `ca` will take this for the node's, and how long. `FailedPrecondition` says why not.
pub fn check_node_certificate(pem: &CredentialPem, node: &NodeId) -> Result<Validity> {
    let parts = pem.parts();
    let (_, roles) = material(&parts, 0)?;
    check_roles(CERTIFICATE, &roles, &[Role::Node(node.clone())])?;
    let [ca, cert, _] = &parts;
    let chain = chain_of(cert)?;
    tls::check_server(&Arc::new(roots(ca)?), &chain).map_err(|error| match error {
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            cert.unusable(&"it is not signed by an authority that counts")
        }
        other => cert.unusable(&other),
    })?;
    let first = chain.first().ok_or_else(|| cert.unusable(&"it holds no certificate"))?;
    let (_, parsed) = X509Certificate::from_der(first).map_err(|error| cert.unusable(&error))?;
    let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let validity = parsed.validity();
    Ok(Validity::between(at(validity.not_before.timestamp()), at(validity.not_after.timestamp())))
}

/// `FailedPrecondition` unless these are certificates to believe in.
pub fn check_authorities(ca: &str) -> Result<()> {
    roots(&Part { name: "the authorities' text".to_owned(), text: ca.as_bytes().to_vec() }).map(drop)
}

/// A text, and what errors call it.
struct Part {
    name: String,
    text: Vec<u8>,
}

const CERTIFICATE: &str = "the certificate of this process";

impl CredentialPem {
    /// As [`Credentials::load`] reads them.
    pub fn read(files: &CredentialFiles) -> Result<Self> {
        let text = |part: &Part| String::from_utf8(part.text.clone()).map_err(|error| part.unusable(&error));
        let [ca, cert, key] = read(files)?;
        Ok(Self { ca: text(&ca)?, cert: text(&cert)?, key: text(&key)? })
    }

    /// Each file whole or not at all. The key may be in the certificate's file.
    pub fn store(&self, files: &CredentialFiles) -> Result<()> {
        Self::store_authorities(files, &self.ca)?;
        if files.cert == files.key {
            return certificates::write(&files.key, &format!("{}{}", self.cert, self.key), 0o600);
        }
        certificates::write(&files.key, &self.key, 0o600)?;
        certificates::write(&files.cert, &self.cert, 0o644)
    }

    pub fn store_authorities(files: &CredentialFiles, ca: &str) -> Result<()> {
        certificates::write(&files.ca, ca, 0o644)
    }

    fn parts(&self) -> [Part; 3] {
        [("its ca", &self.ca), (CERTIFICATE, &self.cert), ("its key", &self.key)]
            .map(|(name, text)| Part { name: name.to_owned(), text: text.as_bytes().to_vec() })
    }
}

impl Part {
    fn unusable(&self, why: &dyn std::fmt::Display) -> Error {
        Error::new(ErrorKind::FailedPrecondition, format!("{} cannot be used: {why}", self.name))
    }
}

fn check_roles(name: &str, roles: &[Role], own: &[Role]) -> Result<()> {
    let Some(missing) = own.iter().find(|role| !roles.contains(role)) else { return Ok(()) };
    Err(Error::new(
        ErrorKind::FailedPrecondition,
        format!("{name} is of {}; to be {missing} it must carry the URI {}", Role::list(roles), missing.uri()),
    ))
}

fn material([ca, cert, key]: &[Part; 3], generation: u64) -> Result<(Material, Vec<Role>)> {
    let roots = Arc::new(roots(ca)?);
    let chain = chain_of(cert)?;
    let first = chain.first().ok_or_else(|| cert.unusable(&"it holds no certificate"))?;
    let roles = Role::of(first).map_err(|error| error.context(format!("read {}", cert.name)))?;
    let secret = PrivateKeyDer::from_pem_slice(&key.text).map_err(|error| key.unusable(&error))?;
    let verifier = tls::client_verifier(&roots).map_err(|error| ca.unusable(&error))?;
    // Both refuse a key that is not the certificate's, as while one of the two is renewed.
    let server = tls::server_config(&verifier, chain.clone(), secret.clone_key());
    let client = tls::client_config(roots, chain, secret);
    let server = server.map_err(|error| cert.unusable(&error))?;
    let client = client.map_err(|error| cert.unusable(&error))?;
    Ok((Material { generation, server: Arc::new(server), client: Arc::new(client), verifier }, roles))
}

fn roots(ca: &Part) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in chain_of(ca)? {
        roots.add(certificate).map_err(|error| ca.unusable(&error))?;
    }
    Ok(roots)
}

fn chain_of(part: &Part) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&part.text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(part.unusable(&"it holds no certificate in PEM")),
        Err(error) => Err(part.unusable(&error)),
    }
}

fn read(files: &CredentialFiles) -> Result<[Part; 3]> {
    let (ca, _) = contents(&files.ca)?;
    let (cert, _) = contents(&files.cert)?;
    let (key, metadata) = contents(&files.key)?;
    check_private(&files.key, &metadata)?;
    Ok([ca, cert, key])
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

fn contents(path: &Path) -> Result<(Part, Metadata)> {
    let failed = |error| {
        let message = format!("cannot read {}", path.display());
        Error::with_source(ErrorKind::FailedPrecondition, message, error)
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mut part = Part { name: path.display().to_string(), text: Vec::new() };
    if !metadata.is_file() {
        return Err(part.unusable(&"it is no regular file"));
    }
    file.take(MAX_FILE_BYTES).read_to_end(&mut part.text).map_err(failed)?;
    Ok((part, metadata))
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
    use crate::{Authority, Signer};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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
        assert_eq!(credentials.current().unwrap().generation, 0);
        let old_key = fs::read(&files.key).unwrap();
        made(dir.path());
        let new_key = fs::read(&files.key).unwrap();
        assert_ne!(old_key, new_key);
        let other = dir.path().join("other.key");
        fs::write(&other, &old_key).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&other, &files.key).unwrap();
        assert_eq!(credentials.current().unwrap().generation, 0, "the key is not the certificate's");
        fs::write(&files.key, &new_key).unwrap();
        assert_eq!(credentials.current().unwrap().generation, 1);
        assert_eq!(credentials.current().unwrap().generation, 1);
    }

    #[test]
    fn credentials_that_somebody_sets() {
        let (signer, _) = Signer::generate().unwrap();
        let credentials = Credentials::awaited("the authority is being made");
        assert!(credentials.current().unwrap_err().to_string().contains("the authority is being made"));
        let own = [Role::Controller, Role::Supervisor];
        let first = signer.issue("controller", &own, Validity::days(1)).unwrap();
        credentials.set(&first, &own).unwrap();
        assert_eq!(credentials.current().unwrap().generation, 0);
        let foreign = signer.issue("other", &[Role::Supervisor], Validity::days(1)).unwrap();
        assert!(credentials.set(&foreign, &own).unwrap_err().to_string().contains("hawser://controller"));
        let broken = CredentialPem { key: foreign.key, ..first };
        assert!(credentials.set(&broken, &own).is_err());
        assert_eq!(credentials.current().unwrap().generation, 0, "what is wrong changes nothing");
        credentials.set(&signer.issue("controller", &own, Validity::days(1)).unwrap(), &own).unwrap();
        assert_eq!(credentials.current().unwrap().generation, 1);
    }
}
