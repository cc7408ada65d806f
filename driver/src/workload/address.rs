//! Where a recorder listens: on this machine by a unix socket, off it by TCP.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use std::{fmt, thread};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecorderAddress {
    Unix(PathBuf),
    /// `ADDRESS:PORT`.
    Tcp(String),
}

pub trait Connection: Read + Write + Send {}

impl<T: Read + Write + Send> Connection for T {}

pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// The network of a container is there a moment after its process.
const TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

impl RecorderAddress {
    pub fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Unix(path) => UnixListener::bind(path).map(Listener::Unix),
            Self::Tcp(address) => TcpListener::bind(address).map(Listener::Tcp),
        }
    }

    pub fn connect(&self) -> io::Result<Box<dyn Connection>> {
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path)?)),
            Self::Tcp(address) => {
                let address: SocketAddr =
                    address.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                let mut tried = 0;
                loop {
                    match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
                        Ok(stream) => {
                            // An ack that waits for others to go with it looks later than it is.
                            stream.set_nodelay(true)?;
                            return Ok(Box::new(stream));
                        }
                        Err(error) if tried >= TRIES => return Err(error),
                        Err(_) => thread::sleep(BETWEEN_TRIES),
                    }
                    tried += 1;
                }
            }
        }
    }
}

impl Listener {
    pub fn accept(&self) -> io::Result<Box<dyn Connection>> {
        match self {
            Self::Unix(listener) => Ok(Box::new(listener.accept()?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}

impl FromStr for RecorderAddress {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.strip_prefix("tcp:").map_or_else(|| Self::Unix(text.into()), |address| Self::Tcp(address.to_owned())))
    }
}

impl fmt::Display for RecorderAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}
