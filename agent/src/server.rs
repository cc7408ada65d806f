//! Listens for controllers: mutual TLS on TCP, and nothing is read of anybody whose certificate was not verified.

use crate::Life;
use crate::condition;
use crate::connection::Connection;
use crate::credentials::Credentials;
use crate::proto::agent_server::AgentServer as Generated;
use crate::service::Service;
use crate::{MAX_MESSAGE_BYTES, tls_error};
use rpc::Runtime;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use volume::{Backend, Error, ErrorKind, LockTable, NodeId, Result};

/// Who the node is, or why it is nobody yet. Blocks for a moment at most.
pub(crate) type Identify = Arc<dyn Fn() -> Result<Life> + Send + Sync>;

pub struct AgentConfig {
    pub node: NodeId,
    pub listen: SocketAddr,
    /// How often a heartbeat is sent to who does not say how often.
    pub heartbeat: Duration,
    pub credentials: Arc<Credentials>,
    pub backends: Vec<Arc<dyn Backend>>,
    /// Who the node is, or why it is nobody yet.
    pub identify: Arc<dyn Fn() -> Result<Life> + Send + Sync>,
    /// Works go on in it when their client is gone.
    pub runtime: Runtime,
    /// Notified when the agent and who connects do not believe the same authority.
    pub doubted: Arc<Notify>,
}

/// Bound, and not serving yet.
pub struct AgentServer {
    listener: TcpListener,
    config: AgentConfig,
}

/// A handshake takes a few messages; who needs longer than this is not coming.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Strangers can begin this many at once and no more; each costs some KiB.
const HANDSHAKES: usize = 128;
/// For a refused client to hear why.
const LINGER: Duration = Duration::from_millis(500);
/// A client that vanished is noticed after this much silence, twice over.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Strangers do not fill the log.
const REFUSALS_A_SECOND: u64 = 10;

impl AgentServer {
    pub async fn bind(config: AgentConfig) -> Result<Self> {
        let listener = rpc::bind_tcp(config.listen).await.map_err(|error| {
            Error::with_source(ErrorKind::FailedPrecondition, format!("cannot listen on {}", config.listen), error)
        })?;
        Ok(Self { listener, config })
    }

    /// Where it listens, with the port that the kernel chose if it was left to it.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|error| Error::io("cannot tell where the agent listens", error))
    }

    /// Until `stopping` holds true; calls under way are answered.
    pub async fn serve(self, stopping: watch::Receiver<bool>) -> Result<()> {
        let Self { listener, config } = self;
        let condition = condition::observe(&config.node, config.identify, &config.backends);
        let service = Service {
            node: config.node,
            backends: config.backends,
            credentials: Arc::clone(&config.credentials),
            locks: LockTable::default(),
            runtime: config.runtime,
            heartbeat: config.heartbeat,
            condition,
            stopping: stopping.clone(),
        };
        let service = Generated::new(service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (send, incoming) = mpsc::channel(16);
        let accepting = tokio::spawn(accept(listener, config.credentials, config.doubted, send));
        let mut stop = stopping;
        let served = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(service)
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
                drop(stop.wait_for(|stop| *stop).await);
            })
            .await;
        accepting.abort();
        served.map_err(|error| Error::with_source(ErrorKind::Internal, "the agent's server failed", error))
    }
}

/// Ends when nobody takes connections any more.
async fn accept(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    doubted: Arc<Notify>,
    send: mpsc::Sender<std::result::Result<Connection, std::io::Error>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let refusals = Arc::new(Refusals::default());
    loop {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = send.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, say: it passes, and is not to be tried a million times a second.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (send, refusals, doubted) = (send.clone(), Arc::clone(&refusals), Arc::clone(&doubted));
        let acceptor = match credentials.current() {
            Ok(material) => TlsAcceptor::from(Arc::clone(&material.server)),
            Err(error) => {
                refusals.log(address, &error.chain());
                continue;
            }
        };
        tokio::spawn(async move {
            let _permit = permit;
            match handshake(acceptor, stream, address, &doubted).await {
                // Closed: the server stops.
                Ok(connection) => drop(send.send(Ok(connection)).await),
                Err(error) => refusals.log(address, &error.chain()),
            }
        });
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    doubted: &Notify,
) -> Result<Connection> {
    // Requests are small and wait for their answers.
    let _ = stream.set_nodelay(true);
    let done = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream).into_fallible()).await;
    match done {
        Ok(Ok(stream)) => Connection::new(stream, address),
        Ok(Err((error, stream))) => {
            if tls_error::is_of_another_authority(&error) {
                doubted.notify_one();
            }
            hang_up(stream).await;
            Err(tls_error::of_client(&error))
        }
        Err(_) => Err(Error::new(ErrorKind::Timeout, format!("no handshake within {} s", HANDSHAKE_LIMIT.as_secs()))),
    }
}

/// Lets the client read why it is refused: to close with its bytes unread would reset the connection, and take the alert
/// with it.
async fn hang_up(mut stream: TcpStream) {
    let mut rest = [0; 1024];
    let _ = stream.shutdown().await;
    let drained = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(LINGER, drained).await;
}

/// So many lines a second, and the number of those that were left out before.
#[derive(Default)]
struct Refusals {
    second: Mutex<Option<Second>>,
}

struct Second {
    began: Instant,
    refusals: u64,
}

impl Refusals {
    fn log(&self, peer: SocketAddr, error: &str) {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let refusals = second.as_ref().map_or(0, |second| second.refusals);
        let left_out = match &mut *second {
            Some(now) if now.began.elapsed() < Duration::from_secs(1) => {
                now.refusals += 1;
                if now.refusals > REFUSALS_A_SECOND {
                    return;
                }
                0
            }
            other => {
                *other = Some(Second { began: Instant::now(), refusals: 1 });
                refusals.saturating_sub(REFUSALS_A_SECOND)
            }
        };
        tracing::warn!(%peer, error, left_out, "a connection to the agent is refused");
    }
}
