//! An authority of one's own, and certificates of it: to try things out, for tests and for the chart.

use crate::{CredentialFiles, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use volume::{Error, ErrorKind, Result};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Clocks of machines differ.
const SKEW: Duration = Duration::from_secs(60 * 60);

const AUTHORITY_DAYS: u64 = 3650;

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    from: SystemTime,
    until: SystemTime,
}

/// Signs with the key in `ca.key` of its directory.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: PathBuf,
}

impl Validity {
    /// From now on, with an hour before it for clocks that are behind.
    pub fn days(days: u64) -> Self {
        let now = SystemTime::now();
        Self { from: now - SKEW, until: now + DAY * u32::try_from(days).unwrap_or(u32::MAX) }
    }

    pub fn between(from: SystemTime, until: SystemTime) -> Self {
        Self { from, until }
    }
}

impl Authority {
    /// The one whose `ca.key` is in the directory, or a new one; `ca.crt` is its certificate.
    pub fn ensure(directory: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| Error::io(format!("cannot make {}", directory.display()), error))?;
        let (key_path, certificate) = (directory.join("ca.key"), directory.join("ca.crt"));
        let key = match fs::read_to_string(&key_path) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(|error| failed("read the key of the authority", &error))?,
            Err(absent) if absent.kind() == IoErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(|error| failed("make a key", &error))?;
                write(&key_path, &key.serialize_pem(), 0o600)?;
                key
            }
            Err(error) => return Err(Error::io(format!("cannot read {}", key_path.display()), error)),
        };
        let mut params = params("", Validity::days(AUTHORITY_DAYS))?;
        // A certificate finds its issuer by name: the same for the same key, and another one's for no other.
        let id: String = params.key_identifier(&key).iter().map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name.push(DnType::CommonName, format!("hawser agents {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        if !certificate.exists() {
            let own = params.self_signed(&key).map_err(|error| failed("sign the authority's certificate", &error))?;
            write(&certificate, &own.pem(), 0o644)?;
        }
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Writes `<name>.crt` and `<name>.key` into the directory, in place of earlier ones.
    pub fn issue(&self, directory: &Path, name: &str, roles: &[Role], validity: Validity) -> Result<CredentialFiles> {
        let key = KeyPair::generate().map_err(|error| failed("make a key", &error))?;
        let mut params = params(&format!("hawser {name}"), validity)?;
        for role in roles {
            let uri = role.uri().try_into().map_err(|error| failed("name the certificate", &error))?;
            params.subject_alt_names.push(SanType::URI(uri));
            params.extended_key_usages.push(match role {
                Role::Node(_) => ExtendedKeyUsagePurpose::ServerAuth,
                Role::Controller | Role::Supervisor => ExtendedKeyUsagePurpose::ClientAuth,
            });
        }
        params.extended_key_usages.dedup();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&key, &self.issuer).map_err(|error| failed("sign a certificate", &error))?;
        let at = |extension: &str| directory.join(format!("{name}.{extension}"));
        let files = CredentialFiles { ca: self.certificate.clone(), cert: at("crt"), key: at("key") };
        write(&files.key, &key.serialize_pem(), 0o600)?;
        write(&files.cert, &signed.pem(), 0o644)?;
        Ok(files)
    }
}

fn params(name: &str, validity: Validity) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).map_err(|error| failed("describe a certificate", &error))?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    let since_1970 = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = date_time_ymd(1970, 1, 1) + since_1970(validity.from);
    params.not_after = date_time_ymd(1970, 1, 1) + since_1970(validity.until);
    Ok(params)
}

/// Whole or not at all, and never readable for others meanwhile.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    let result = (|| {
        if let Err(error) = fs::remove_file(&new)
            && error.kind() != IoErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    result.map_err(|error| Error::io(format!("cannot write {}", path.display()), error))
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Internal, format!("cannot {what}: {error}"))
}
