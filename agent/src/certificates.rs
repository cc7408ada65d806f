//! An authority of one's own, and certificates of it: to try things out, for tests and for the chart.

use crate::signer::{Signer, failed};
use crate::{CredentialFiles, Role};
use rcgen::KeyPair;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use volume::{Error, Result};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Clocks of machines differ.
const SKEW: Duration = Duration::from_secs(60 * 60);

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
}

/// Signs with the key in `ca.key` of its directory.
pub struct Authority {
    signer: Signer,
    certificate: PathBuf,
}

impl Validity {
    /// From now on, with an hour before it for clocks that are behind.
    pub fn days(days: u64) -> Self {
        Self::lasting(DAY * u32::try_from(days).unwrap_or(u32::MAX))
    }

    pub fn between(from: SystemTime, until: SystemTime) -> Self {
        Self { from, until }
    }

    /// As [`Validity::days`].
    pub fn lasting(time: Duration) -> Self {
        let now = SystemTime::now();
        Self { from: now - SKEW, until: now + time }
    }

    /// When it is time for a new one: after two thirds, so that there is time for what goes wrong.
    pub fn renew_at(&self) -> SystemTime {
        let length = self.until.duration_since(self.from).unwrap_or_default();
        self.from + length * 2 / 3
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
        let signer = Signer::new(key)?;
        if !certificate.exists() {
            write(&certificate, signer.certificates(), 0o644)?;
        }
        Ok(Self { signer, certificate })
    }

    /// Writes `<name>.crt` and `<name>.key` into the directory, in place of earlier ones.
    pub fn issue(&self, directory: &Path, name: &str, roles: &[Role], validity: Validity) -> Result<CredentialFiles> {
        let made = self.signer.issue(name, roles, validity)?;
        let at = |extension: &str| directory.join(format!("{name}.{extension}"));
        let files = CredentialFiles { ca: self.certificate.clone(), cert: at("crt"), key: at("key") };
        write(&files.key, &made.key, 0o600)?;
        write(&files.cert, &made.cert, 0o644)?;
        Ok(files)
    }
}

/// Whole or not at all, and never readable for others meanwhile.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
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
