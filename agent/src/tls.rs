//! TLS as it is used here: version 1.3 alone (older ones are not compiled in), certificates on both sides, no resumption,
//! because a resumed session would not look at the certificate again.

use crate::Role;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, ServerConfig, SignatureScheme};
use std::sync::Arc;
use volume::{Error, ErrorKind, NodeId, Result};

/// RFC 7540: HTTP/2 over TLS.
const ALPN: &[u8] = b"h2";

pub(crate) fn client_verifier(
    roots: &Arc<RootCertStore>,
) -> std::result::Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider()).build()
}

pub(crate) fn server_config(
    verifier: &Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> std::result::Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::clone(verifier))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Believes every server whose certificate the authorities signed; [`check_is_node`] then tells which it is.
pub(crate) fn client_config(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> std::result::Result<ClientConfig, TlsError> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SignedServer { roots, algorithms }))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// What a controller will find out about this server's certificate.
pub(crate) fn check_server(
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'_>],
) -> std::result::Result<(), TlsError> {
    let verifier = SignedServer { roots: Arc::clone(roots), algorithms: provider().signature_verification_algorithms };
    let (first, others) = chain.split_first().ok_or(TlsError::NoCertificatesPresented)?;
    let name = ServerName::try_from("agent").map_err(|error| TlsError::General(error.to_string()))?;
    verifier.verify_server_cert(first, others, &name, &[], UnixTime::now()).map(drop)
}

/// `PermissionDenied` unless the certificate is that node's. To be called before anything is sent.
pub(crate) fn check_is_node(chain: Option<&[CertificateDer<'_>]>, node: &NodeId) -> Result<()> {
    let first = chain.and_then(<[_]>::first);
    let roles = first.map(Role::of).transpose()?.unwrap_or_default();
    if roles.contains(&Role::Node(node.clone())) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::PermissionDenied,
        format!("its certificate is of {}, not of node {node}: the address is another one's", Role::list(&roles)),
    ))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What [`rustls::client::WebPkiServerVerifier`] checks, but for the name: an agent is named by its node, which need not
/// be a name of DNS, and is reached by whatever address.
#[derive(Debug)]
struct SignedServer {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for SignedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, TlsError> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not used".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
