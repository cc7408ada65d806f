//! `hawser probe`: asks the process that serves with the same configuration how it is. For orchestrators that start a program
//! to find that out, since its pages are on a socket that they do not reach.

use crate::cli::Page;
use crate::config::Listen;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use volume::{Error, ErrorKind, Result};

/// Longer than the look at storage takes that `/readyz` waits for.
const TIMEOUT: Duration = Duration::from_secs(8);
/// More than any of the pages asked for is long.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// `Unavailable` when it does not answer or says no, with what it says.
pub fn probe(listen: &Listen, page: Page) -> Result<()> {
    let path = match page {
        Page::Live => "/healthz",
        Page::Ready => "/readyz",
    };
    let away = |error: std::io::Error| match error.kind() {
        // How a read says that its time is over.
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            Error::new(ErrorKind::Unavailable, format!("{listen} did not answer within {} s", TIMEOUT.as_secs()))
        }
        _ => Error::with_source(ErrorKind::Unavailable, format!("{listen} does not answer"), error),
    };
    let answer = match listen {
        Listen::Off => {
            let message =
                "metrics_listen is \"off\", so there is nothing to ask; set it for this command and for `serve`";
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        Listen::Unix(socket) => UnixStream::connect(socket)
            .and_then(|stream| {
                stream.set_read_timeout(Some(TIMEOUT))?;
                ask(stream, path)
            })
            .map_err(away)?,
        Listen::Tcp(address) => TcpStream::connect_timeout(&reachable(*address), TIMEOUT)
            .and_then(|stream| {
                stream.set_read_timeout(Some(TIMEOUT))?;
                ask(stream, path)
            })
            .map_err(away)?,
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split_whitespace().nth(1) == Some("200") {
        return Ok(());
    }
    let status = head.lines().next().unwrap_or_default();
    Err(Error::new(ErrorKind::Unavailable, format!("{path} answers {status:?}: {}", body.trim())))
}

fn ask(mut stream: impl Read + Write, path: &str) -> std::io::Result<String> {
    // In one piece: who is asked may answer and close once it has read some of it.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: hawser\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Who listens on every address is asked on the loopback one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers one request with this and gives it back.
    fn serving(answer: &'static str) -> (Listen, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (Listen::Tcp(SocketAddr::from(([0, 0, 0, 0], port))), served)
    }

    #[test]
    fn yes_no_and_nobody() {
        let (listen, served) = serving("HTTP/1.1 200 OK\r\n\r\nok\n");
        probe(&listen, Page::Live).unwrap();
        assert!(served.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));

        let (listen, served) = serving("HTTP/1.1 503 Service Unavailable\r\n\r\nno agent has answered yet\n");
        let refusal = probe(&listen, Page::Ready).unwrap_err();
        assert_eq!(refusal.kind(), ErrorKind::Unavailable);
        assert!(refusal.to_string().contains("503 Service Unavailable\": no agent has answered yet"), "{refusal}");
        assert!(served.join().unwrap().starts_with("GET /readyz "));
        // It has ended, and its port is nobody's.
        assert_eq!(probe(&listen, Page::Live).unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(probe(&Listen::Off, Page::Live).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    }
}
