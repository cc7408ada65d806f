//! A connection at the agent, and who is at its other end.

use crate::Role;
use crate::credentials::Material;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use volume::{Error, ErrorKind, Result};

/// A certificate that expired, or whose authority was taken away, stops counting this soon on connections that stand.
const VERIFIED_FOR: Duration = Duration::from_secs(60);

pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Arc<Peer>,
}

/// Shown to the service with every request.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    roles: Vec<Role>,
    chain: Vec<CertificateDer<'static>>,
    verified: Mutex<Instant>,
}

impl Connection {
    /// After the handshake, which has verified the certificate.
    pub(crate) fn new(stream: TlsStream<TcpStream>, address: SocketAddr) -> Result<Self> {
        let chain: Vec<_> = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let first = chain.first().ok_or_else(|| Error::new(ErrorKind::PermissionDenied, "it has no certificate"))?;
        let roles = Role::of(first)?;
        let peer = Peer { address, roles, chain, verified: Mutex::new(Instant::now()) };
        Ok(Self { stream, peer: Arc::new(peer) })
    }
}

impl Peer {
    /// `PermissionDenied` unless it has one of the roles.
    pub(crate) fn is_one_of(&self, allowed: &[Role]) -> Result<()> {
        if self.roles.iter().any(|role| allowed.contains(role)) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::PermissionDenied,
            format!("the certificate shown is of {}; this is for {}", Role::list(&self.roles), Role::list(allowed)),
        ))
    }

    /// Verifies the certificate again when that was long ago. `PermissionDenied` says why it does not count any more.
    pub(crate) fn is_still_valid(&self, material: &Material) -> Result<()> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.elapsed() < VERIFIED_FOR {
            return Ok(());
        }
        self.verify(material)?;
        *verified = Instant::now();
        Ok(())
    }

    fn verify(&self, material: &Material) -> Result<()> {
        let (first, others) = self.chain.split_first().ok_or_else(|| Error::internal("the peer has no certificate"))?;
        material.verifier.verify_client_cert(first, others, UnixTime::now()).map(drop).map_err(|error| {
            Error::new(ErrorKind::PermissionDenied, format!("the certificate shown does not count any more: {error}"))
        })
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Credentials, Validity};
    use rustls::pki_types::pem::PemObject;
    use std::time::SystemTime;

    #[test]
    fn an_expired_certificate_stops_counting_on_a_connection_that_stands() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::ensure(dir.path()).unwrap();
        let now = SystemTime::now();
        let hours = |hours: u64| Duration::from_secs(3600 * hours);
        let check = |from: SystemTime, until: SystemTime, ago: Duration| {
            let files = authority.issue(dir.path(), "c", &[Role::Controller], Validity::between(from, until)).unwrap();
            let credentials = Credentials::load(files.clone(), &[]).unwrap();
            let chain = CertificateDer::pem_file_iter(&files.cert)
                .unwrap()
                .map(std::result::Result::unwrap)
                .collect::<Vec<_>>();
            let roles = Role::of(&chain[0]).unwrap();
            let verified = Mutex::new(Instant::now().checked_sub(ago).unwrap());
            let peer = Peer { address: ([127, 0, 0, 1], 1).into(), roles, chain, verified };
            peer.is_still_valid(&credentials.current().unwrap())
        };
        assert!(check(now - hours(2), now + hours(2), VERIFIED_FOR * 2).is_ok());
        let error = check(now - hours(2), now - hours(1), VERIFIED_FOR * 2).unwrap_err();
        assert!(error.to_string().contains("expired"), "{error}");
        assert!(check(now - hours(2), now - hours(1), Duration::ZERO).is_ok(), "verified a moment ago");
    }
}
