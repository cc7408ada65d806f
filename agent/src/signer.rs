//! An authority in memory, wherever its key is kept.

use crate::certificates::Validity;
use crate::{CertificateRequest, CredentialPem, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::{SystemTime, UNIX_EPOCH};
use volume::{Error, ErrorKind, Result};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// What an authority is kept as.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorityPem {
    /// All whose word counts; one of them is that of the key.
    pub certificates: String,
    /// PKCS #8.
    pub key: String,
}

/// Signs certificates.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    certificates: String,
}

const AUTHORITY_DAYS: u64 = 3650;

impl Signer {
    /// A new authority, valid for ten years.
    pub fn generate() -> Result<(Self, AuthorityPem)> {
        let key = KeyPair::generate().map_err(|error| failed("make a key", &error))?;
        let pem_of_key = key.serialize_pem();
        let signer = Self::new(key)?;
        let pem = AuthorityPem { certificates: signer.certificates.clone(), key: pem_of_key };
        Ok((signer, pem))
    }

    /// With a new certificate of its own for the key.
    pub(crate) fn new(key: KeyPair) -> Result<Self> {
        let mut params = params("", Validity::days(AUTHORITY_DAYS))?;
        // A certificate finds its issuer by name: the same for the same key, and another one's for no other.
        let id: String = params.key_identifier(&key).iter().map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name.push(DnType::CommonName, format!("hawser agents {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let own = params.self_signed(&key).map_err(|error| failed("sign the authority's certificate", &error))?;
        Ok(Self { issuer: Issuer::new(params, key), certificates: own.pem() })
    }

    /// The authority that was kept. `FailedPrecondition` says what of it cannot be used.
    pub fn from_pem(pem: &AuthorityPem) -> Result<Self> {
        let unusable = |why: String| Error::new(ErrorKind::FailedPrecondition, why);
        let key = KeyPair::from_pem(&pem.key)
            .map_err(|error| unusable(format!("the key is none in PEM (PKCS #8) that can be used: {error}")))?;
        let certificates: std::result::Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(pem.certificates.as_bytes()).collect();
        let certificates = certificates.map_err(|error| unusable(format!("the certificates are damaged: {error}")))?;
        let mut own = None;
        for der in &certificates {
            let (_, certificate) = X509Certificate::from_der(der)
                .map_err(|error| unusable(format!("a certificate cannot be read: {error}")))?;
            if certificate.public_key().raw == key.subject_public_key_info() {
                check_authority(&certificate).map_err(unusable)?;
                own = Some(der);
            }
        }
        let own = own.ok_or_else(|| unusable("none of the certificates is that of the key".to_owned()))?;
        let issuer = Issuer::from_ca_cert_der(own, key)
            .map_err(|error| unusable(format!("the certificate of the key cannot be used: {error}")))?;
        Ok(Self { issuer, certificates: pem.certificates.clone() })
    }

    /// Of all whose word counts beside it, its own included.
    pub fn certificates(&self) -> &str {
        &self.certificates
    }

    /// A certificate with a new key.
    pub fn issue(&self, name: &str, roles: &[Role], validity: Validity) -> Result<CredentialPem> {
        let key = KeyPair::generate().map_err(|error| failed("make a key", &error))?;
        let cert = self.signed(name, roles, validity, &key)?;
        Ok(CredentialPem { ca: self.certificates.clone(), cert, key: key.serialize_pem() })
    }

    /// The certificate that a node asks for. Of the request nothing is taken over but the node and the key.
    pub fn sign(&self, request: &CertificateRequest, validity: Validity) -> Result<String> {
        let role = Role::Node(request.node.clone());
        self.signed(&format!("node-{}", request.node), &[role], validity, &request.key)
    }

    fn signed(&self, name: &str, roles: &[Role], validity: Validity, key: &impl PublicKeyData) -> Result<String> {
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
        let signed = params.signed_by(key, &self.issuer).map_err(|error| failed("sign a certificate", &error))?;
        Ok(signed.pem())
    }
}

/// RFC 5280, 4.2.1.3 and 4.2.1.9: what others would refuse it for.
fn check_authority(certificate: &X509Certificate<'_>) -> std::result::Result<(), String> {
    if !certificate.is_ca() {
        return Err("the certificate of the key is not that of an authority (basicConstraints CA)".to_owned());
    }
    let usage = certificate.key_usage().map_err(|error| error.to_string())?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("the certificate of the key may not sign others (keyUsage keyCertSign)".to_owned());
    }
    if !certificate.validity().is_valid() {
        return Err(format!("the certificate of the key is valid until {} only", certificate.validity().not_after));
    }
    Ok(())
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

pub(crate) fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Internal, format!("cannot {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check_node_certificate;
    use std::time::Duration;
    use volume::NodeId;

    fn node() -> NodeId {
        NodeId::parse("n1").unwrap()
    }

    #[test]
    fn a_kept_authority_signs_what_its_certificates_vouch_for() {
        let (_, pem) = Signer::generate().unwrap();
        let signer = Signer::from_pem(&pem).unwrap();
        let (key, request) = CertificateRequest::make(&node()).unwrap();
        let request = CertificateRequest::parse(&request).unwrap();
        let cert = signer.sign(&request, Validity::days(7)).unwrap();
        let own = CredentialPem { ca: pem.certificates.clone(), cert, key };
        let validity = check_node_certificate(&own, &node()).unwrap();
        let left = validity.until.duration_since(SystemTime::now()).unwrap();
        assert!(left > Duration::from_secs(6 * 86_400) && left <= Duration::from_secs(7 * 86_400), "{left:?}");

        // Beside one that is to come or to go, in either order.
        let (_, other) = Signer::generate().unwrap();
        for both in [other.certificates.clone() + &pem.certificates, pem.certificates.clone() + &other.certificates] {
            Signer::from_pem(&AuthorityPem { certificates: both.clone(), key: pem.key.clone() }).unwrap();
            check_node_certificate(&CredentialPem { ca: both, ..own.clone() }, &node()).unwrap();
        }
        let alone = check_node_certificate(&CredentialPem { ca: other.certificates, ..own }, &node());
        assert!(alone.unwrap_err().to_string().contains("not signed by"));
    }

    #[test]
    fn what_is_no_authority() {
        let (signer, pem) = Signer::generate().unwrap();
        let (_, other) = Signer::generate().unwrap();
        let leaf = signer.issue("leaf", &[Role::Controller], Validity::days(1)).unwrap();
        let with = |certificates: &str, key: &str| {
            let pem = AuthorityPem { certificates: certificates.to_owned(), key: key.to_owned() };
            Signer::from_pem(&pem).err().unwrap().to_string()
        };
        assert!(with(&other.certificates, &pem.key).contains("none of the certificates is that of the key"));
        assert!(with("", &pem.key).contains("none of the certificates"));
        assert!(with(&pem.certificates, "no key").contains("the key is none in PEM"));
        assert!(with(&leaf.cert, &leaf.key).contains("not that of an authority"));
    }
}
