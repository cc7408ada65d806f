//! The controller's connection to one agent: made again whenever it is lost, and known to be lost within seconds.

use crate::beat::{Beat, Listener, News};
use crate::credentials::Credentials;
use crate::describe::{DESCRIBE, Description};
use crate::envelope::{Answer, Invocation};
use crate::proto::agent_client::AgentClient;
use crate::proto::{self, Heartbeat, WatchRequest};
use crate::{MAX_MESSAGE_BYTES, tls, tls_error};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use volume::{BackendName, Error, ErrorKind, NodeId, Result};

/// What all connections of a controller have in common.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) heartbeat: Duration,
    /// What the agent itself may take for a call.
    pub(crate) deadline: Duration,
}

pub(crate) struct Link {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    state: Mutex<State>,
    /// When the machine last answered that nobody listens there.
    refused: Mutex<Option<Instant>>,
    /// Nobody wants it any more: what it still tells is passed over.
    pub(crate) is_retired: AtomicBool,
    /// Held while news are told, so that they come in order and none after it is retired.
    telling: Mutex<()>,
    listeners: Arc<Listeners>,
}

/// Who is told what happens at the connections.
#[derive(Default)]
pub(crate) struct Listeners(RwLock<Vec<Arc<Listener>>>);

enum State {
    Away { since: Instant, why: String },
    Up(Arc<Session>),
}

/// One connection, verified on both sides.
pub(crate) struct Session {
    client: AgentClient<Channel>,
    deadline: Duration,
    heartbeat: Duration,
    generation: u64,
    lost: watch::Receiver<bool>,
    /// The agent refused the certificate of this connection: a new one may show a newer one.
    refused: Notify,
    last: Mutex<(Instant, Heartbeat)>,
}

/// Why a connection is not held any more.
enum End {
    Lost(String),
    /// The certificate was renewed: calls under way end on the old connection.
    Renewed,
}

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Without a heartbeat for this long, or for some of them, an agent is away.
const SILENCE: Duration = Duration::from_secs(3);
const SILENT_BEATS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// A machine without an agent is asked that often: its answer is a sign of life, and should not be an old one.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
const LOOK_AT_CERTIFICATE: Duration = Duration::from_secs(5);
/// The agent answers at its deadline; this is for its answer to arrive.
const MARGIN: Duration = Duration::from_secs(5);

impl Link {
    pub(crate) fn new(node: NodeId, address: String, listeners: Arc<Listeners>) -> Self {
        let state = State::Away { since: Instant::now(), why: "it is being connected".to_owned() };
        Self {
            node,
            address,
            state: Mutex::new(state),
            refused: Mutex::default(),
            is_retired: AtomicBool::new(false),
            telling: Mutex::default(),
            listeners,
        }
    }

    pub(crate) fn refused(&self) -> Option<Instant> {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing more is told of it.
    pub(crate) fn retire(&self) {
        let was_up = matches!(*self.state(), State::Up(_));
        if was_up {
            self.tell(News::Lost { why: "it is followed at that address no more".to_owned() });
        }
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_retired.store(true, Ordering::SeqCst);
    }

    fn tell(&self, news: News) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_retired.load(Ordering::SeqCst) {
            self.listeners.tell(&self.node, &news);
        }
    }

    /// `Unavailable` at once while the agent is away.
    pub(crate) fn session(&self) -> Result<Arc<Session>> {
        match &*self.state() {
            State::Up(session) => Ok(Arc::clone(session)),
            State::Away { since, why } => {
                let seconds = since.elapsed().as_secs();
                let Self { node, address, .. } = self;
                let message = format!("the agent of node {node} at {address} is away since {seconds} s: {why}");
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    /// Connects, and connects again, for as long as the task runs. `described` is called with what the agent has before
    /// the connection can be used.
    pub(crate) async fn keep(&self, settings: Settings, described: impl Fn(Description)) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            match self.hold(&settings, &described).await {
                End::Renewed => {}
                End::Lost(why) => {
                    self.set_away(why);
                    let is_refused = self.refused().is_some_and(|at| at >= began);
                    let is_long_ago = began.elapsed() > LONGEST_PAUSE;
                    pause = match (is_refused, is_long_ago) {
                        (true, _) => (pause * 2).min(REFUSED_PAUSE),
                        (false, true) => FIRST_PAUSE,
                        (false, false) => (pause * 2).min(LONGEST_PAUSE),
                    };
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// From connecting to the end of the connection.
    async fn hold(&self, settings: &Settings, described: &impl Fn(Description)) -> End {
        let (lost, is_lost) = watch::channel(false);
        let opened = tokio::time::timeout(CONNECT_LIMIT, self.open(settings, is_lost)).await;
        let (session, mut beats) = match opened {
            Ok(Ok((session, description, beats))) => {
                described(description);
                (Arc::new(session), beats)
            }
            Ok(Err(error)) => return End::Lost(error.chain()),
            Err(_) => return End::Lost(format!("no connection within {} s", CONNECT_LIMIT.as_secs())),
        };
        self.set_up(&session);
        let first = Beat::of(&session.last().1);
        self.tell(News::Connected);
        self.tell(News::Heartbeat(first));
        let mut look = tokio::time::interval(LOOK_AT_CERTIFICATE);
        let silence = SILENCE.max(settings.heartbeat * SILENT_BEATS);
        let why = loop {
            tokio::select! {
                beat = tokio::time::timeout(silence, beats.message()) => match beat {
                    Ok(Ok(Some(beat))) => {
                        let news = News::Heartbeat(Beat::of(&beat));
                        *session.last() = (Instant::now(), beat);
                        self.tell(news);
                    }
                    Ok(Ok(None)) => break "it has ended".to_owned(),
                    Ok(Err(status)) => break words_of(&status),
                    Err(_) => break format!("no sign of life for {:.1} s", silence.as_secs_f32()),
                },
                () = session.refused.notified() => break "it refuses the certificate of this connection".to_owned(),
                _ = look.tick() => {
                    if settings.credentials.current().is_ok_and(|now| now.generation != session.generation) {
                        return End::Renewed;
                    }
                }
            }
        };
        let _ = lost.send(true);
        End::Lost(why)
    }

    async fn open(
        &self,
        settings: &Settings,
        lost: watch::Receiver<bool>,
    ) -> Result<(Session, Description, Streaming<Heartbeat>)> {
        let material = settings.credentials.current()?;
        let stream = self.connect(&material.client).await?;
        let channel = channel_over(stream).await?;
        let mut client = AgentClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let json = Invocation::new(None, DESCRIBE, &serde_json::Map::new())?.to_json()?;
        let refused = |status: Status| Error::new(ErrorKind::Unavailable, words_of(&status));
        let answer = client.invoke(proto::Invocation { json }).await.map_err(refused)?;
        let description: Description = Answer::read(&answer.into_inner().json)?;
        let interval_ms = u32::try_from(settings.heartbeat.as_millis()).unwrap_or(u32::MAX);
        let mut beats = client.watch(WatchRequest { interval_ms }).await.map_err(refused)?.into_inner();
        let first = beats.message().await.map_err(refused)?.unwrap_or_default();
        let session = Session {
            client,
            deadline: settings.deadline,
            heartbeat: settings.heartbeat,
            generation: material.generation,
            lost,
            refused: Notify::new(),
            last: Mutex::new((Instant::now(), first)),
        };
        Ok((session, description, beats))
    }

    /// Nothing is sent before it is certain who is there.
    async fn connect(&self, config: &Arc<rustls::ClientConfig>) -> Result<TlsStream<TcpStream>> {
        let unavailable = |words: String| Error::new(ErrorKind::Unavailable, words);
        let stream = TcpStream::connect(&self.address).await.map_err(|error| {
            if error.kind() == std::io::ErrorKind::ConnectionRefused {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                self.tell(News::Refused);
            }
            unavailable(error.to_string())
        })?;
        let _ = stream.set_nodelay(true);
        // Not sent: an agent is told by the URI in its certificate.
        let name = ServerName::try_from("agent").map_err(|error| Error::internal(error.to_string()))?;
        let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream);
        let stream = connecting.await.map_err(|error| unavailable(tls_error::of_agent(&error)))?;
        tls::check_is_node(stream.get_ref().1.peer_certificates(), &self.node)?;
        Ok(stream)
    }

    fn set_up(&self, session: &Arc<Session>) {
        let was_away = matches!(*self.state(), State::Away { .. });
        *self.state() = State::Up(Arc::clone(session));
        if was_away {
            tracing::info!(node = %self.node, address = self.address, "the agent is connected");
        }
    }

    fn set_away(&self, why: String) {
        if matches!(*self.state(), State::Up(_)) {
            self.tell(News::Lost { why: why.clone() });
        }
        let mut state = self.state();
        let since = match &*state {
            State::Away { since, why: before } => {
                if *before != why {
                    tracing::warn!(node = %self.node, address = self.address, why, "the agent is away");
                }
                *since
            }
            State::Up(_) => {
                tracing::warn!(node = %self.node, address = self.address, why, "the agent is away");
                Instant::now()
            }
        };
        *state = State::Away { since, why };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listeners {
    pub(crate) fn add(&self, listener: Arc<Listener>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    fn tell(&self, node: &NodeId, news: &News) {
        for listener in self.0.read().unwrap_or_else(PoisonError::into_inner).iter() {
            listener(node, news.clone());
        }
    }
}

impl Session {
    /// The last sign of life, and when it came.
    pub(crate) fn last(&self) -> MutexGuard<'_, (Instant, Heartbeat)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how many heartbeats none has come, in steps of two: those that are on time are alike.
    pub(crate) fn staleness(&self) -> u128 {
        let step = (self.heartbeat * 2).max(Duration::from_millis(1));
        self.last().0.elapsed().as_millis() / step.as_millis()
    }

    /// Whether the agent said last that the backend can be used there.
    pub(crate) fn has_usable(&self, name: &BackendName) -> bool {
        !self.last().1.backends.iter().any(|state| state.name == name.as_str() && !state.usable)
    }

    /// Sends a request and gives the answer. What was begun may be carried out though this fails: the caller asks again
    /// and finds what there is.
    pub(crate) async fn invoke(&self, json: Vec<u8>) -> Result<Vec<u8>> {
        let mut request = Request::new(proto::Invocation { json });
        request.set_timeout(self.deadline + MARGIN);
        let mut client = self.client.clone();
        let mut lost = self.lost.clone();
        let is_lost = async move {
            // Closed without a word: only renewed, and this call goes on.
            if lost.wait_for(|lost| *lost).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            answered = tokio::time::timeout(self.deadline + MARGIN, client.invoke(request)) => match answered {
                Ok(Ok(answer)) => Ok(answer.into_inner().json),
                Ok(Err(status)) => Err(self.refusal(&status)),
                Err(_) => {
                    let seconds = (self.deadline + MARGIN).as_secs();
                    Err(Error::new(ErrorKind::Timeout, format!("no answer after {seconds} s; the work may go on, retry to find its result")))
                }
            },
            () = is_lost => Err(Error::new(
                ErrorKind::Unavailable,
                "the connection was lost before the answer came; it may have been carried out, retry to find its result",
            )),
        }
    }

    fn refusal(&self, status: &Status) -> Error {
        let kind = match status.code() {
            Code::Unauthenticated => {
                self.refused.notify_one();
                ErrorKind::Unavailable
            }
            Code::PermissionDenied => ErrorKind::PermissionDenied,
            Code::DeadlineExceeded | Code::Cancelled => ErrorKind::Timeout,
            Code::Unimplemented => ErrorKind::Unsupported,
            Code::OutOfRange | Code::ResourceExhausted => ErrorKind::Internal,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, words_of(status))
    }
}

/// HTTP/2 over this stream and no other: a lost connection is made again here, where it is verified, and not in the
/// channel.
async fn channel_over(stream: TlsStream<TcpStream>) -> Result<Channel> {
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| std::io::Error::other("the connection is lost"));
        std::future::ready(stream)
    });
    let connected = Endpoint::from_static("http://agent").connect_with_connector(connector).await;
    connected.map_err(|error| Error::new(ErrorKind::Unavailable, tls_error::of_agent(&error)))
}

/// A status that the agent sent has its words; one that was made here has a cause.
fn words_of(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => tls_error::of_agent(cause),
        None => status.message().to_owned(),
    }
}
