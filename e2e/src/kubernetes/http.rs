//! Requests to the API server through `kubectl proxy`, which has a socket without TLS. A look costs a millisecond this
//! way, where starting kubectl costs a hundred: what is measured in the cluster is not to wait for the one who looks.

use crate::failure::{Context, Failure, Result};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Answer {
    /// What the API server says of a refusal.
    pub(super) fn message(&self) -> String {
        let message = self.body["message"].as_str().map_or_else(|| self.body.to_string(), str::to_owned);
        format!("{}: {message}", self.status)
    }
}

/// HTTP/1.0, where an answer ends with the connection.
pub(super) fn request(socket: &Path, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Answer> {
    let failed = || format!("{method} {path}");
    let mut stream = UnixStream::connect(socket).context(failed)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let (content_type, text) = body.map_or(("", String::new()), |(kind, value)| (kind, value.to_string()));
    let mut head = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n");
    if body.is_some() {
        head.push_str(&format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", text.len()));
    }
    stream.write_all(format!("{head}\r\n{text}").as_bytes()).context(failed)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context(failed)?;
    parse(&answer).context(failed)
}

fn parse(answer: &[u8]) -> Result<Answer> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("the answer has no end of its head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| Failure::from(format!("the answer begins with {:?}", head.lines().next())))?;
    let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
    Ok(Answer { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let answer =
            parse(b"HTTP/1.0 409 Conflict\r\nContent-Type: application/json\r\n\r\n{\"message\":\"there\"}").unwrap();
        assert_eq!((answer.status, answer.message().as_str()), (409, "409: there"));
        let answer = parse(b"HTTP/1.0 200 OK\r\n\r\nplain").unwrap();
        assert_eq!((answer.status, answer.body), (200, Value::String("plain".to_owned())));
        assert!(parse(b"HTTP/1.0 200 OK").is_err());
        assert!(parse(b"rubbish\r\n\r\n").is_err());
    }
}
