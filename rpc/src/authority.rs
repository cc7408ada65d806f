//! Clients that put the socket's path into `:authority`.
//!
//! gRPC for Go does so for a target that is a bare path: kubelet 1.36 when it asks a plugin to register, and CSI clients
//! of old. h2 refuses it as malformed (RFC 3986, section 3.2, has no such authority). On a unix socket it means nothing,
//! so it is replaced before h2 sees it, whatever it is.
//!
//! Nothing needs decoding for that: HPACK (RFC 7541) gives the length of each string. What it is replaced by is as short
//! as can be, because it may enter h2's dynamic table: entries that are smaller than the client believes leave the table
//! later than the client believes, and that does no harm.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// A connection of a client.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    inbound: Inbound,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, inbound: Inbound::default() }
    }
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

const READ_BYTES: usize = 8 << 10;

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, inbound } = self.get_mut();
        while inbound.ready.is_empty() {
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The end. A frame that was cut short says no more than the end does.
                return Poll::Ready(Ok(()));
            }
            inbound.take(read.filled());
        }
        let length = into.remaining().min(inbound.ready.len());
        into.put_slice(&inbound.ready[..length]);
        inbound.ready.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;
/// Section 4.1.
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// h2 takes no larger frames (section 4.2), so none is kept to be looked at.
const MAX_FRAME_BYTES: usize = 16 << 10;

/// What a client sent: cut into frames, of which those with headers are held back until they are complete.
#[derive(Debug)]
struct Inbound {
    /// Bytes of the frame that begins, or is held back.
    held: Vec<u8>,
    /// How many more bytes pass as they are.
    passing: usize,
    /// What h2 may read.
    ready: Vec<u8>,
}

impl Default for Inbound {
    fn default() -> Self {
        Self { held: Vec::new(), passing: PREFACE_BYTES, ready: Vec::new() }
    }
}

impl Inbound {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let (passed, rest) = bytes.split_at(self.passing.min(bytes.len()));
                self.ready.extend_from_slice(passed);
                self.passing -= passed.len();
                bytes = rest;
                continue;
            }
            let wanted = self.wanted();
            let (taken, rest) = bytes.split_at((wanted - self.held.len()).min(bytes.len()));
            self.held.extend_from_slice(taken);
            bytes = rest;
            if self.held.len() == self.wanted() {
                self.release();
            }
        }
    }

    /// How long what is held must be before anything can be done with it: more than it is.
    fn wanted(&self) -> usize {
        match self.frame() {
            Some((HEADERS, length)) if length <= MAX_FRAME_BYTES => FRAME_HEADER_BYTES + length,
            _ => FRAME_HEADER_BYTES,
        }
    }

    /// Type and length of the frame that is held, once its header is complete.
    fn frame(&self) -> Option<(u8, usize)> {
        let header = self.held.get(..FRAME_HEADER_BYTES)?;
        let length = header[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        Some((header[3], length))
    }

    fn release(&mut self) {
        let Some((kind, length)) = self.frame() else { return };
        if kind == HEADERS && length <= MAX_FRAME_BYTES {
            replace_authority(&mut self.held);
        } else {
            self.passing = length;
        }
        self.ready.append(&mut self.held);
    }
}

/// A valid authority, and no longer than any that it may replace.
const REPLACEMENT: [u8; 2] = [1, b'-'];
/// Of `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;

/// In a complete HEADERS frame. One that makes no sense is left to h2.
fn replace_authority(frame: &mut Vec<u8>) {
    let Some(value) = find_authority(frame) else { return };
    frame.splice(value, REPLACEMENT);
    let length = frame.len() - FRAME_HEADER_BYTES;
    // At most MAX_FRAME_BYTES, since it only became shorter.
    for (byte, shift) in frame[..3].iter_mut().zip([16, 8, 0]) {
        *byte = u8::try_from(length >> shift & 0xff).unwrap_or(0);
    }
}

/// Where its value is, length and all. `None` too when it is empty, or not all in this frame.
fn find_authority(frame: &[u8]) -> Option<std::ops::Range<usize>> {
    let flags = frame[4];
    let mut at = FRAME_HEADER_BYTES;
    let mut end = frame.len();
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(at)?))?;
        at += 1;
    }
    if flags & PRIORITY != 0 {
        at += 5;
    }
    let block = frame.get(..end)?;
    while at < end {
        // RFC 7541, section 6.
        let first = block[at];
        let (name, is_literal) = match first {
            0x80.. => (integer(block, &mut at, 7)?, false),
            0x40.. => (integer(block, &mut at, 6)?, true),
            0x20.. => (integer(block, &mut at, 5)?, false),
            _ => (integer(block, &mut at, 4)?, true),
        };
        if !is_literal {
            continue;
        }
        if name == 0 {
            skip_string(block, &mut at)?;
        }
        let begin = at;
        skip_string(block, &mut at)?;
        if name == AUTHORITY {
            return (at - begin > 1).then_some(begin..at);
        }
    }
    None
}

/// Section 5.2: a bit for Huffman's code, the length in bytes, the bytes.
fn skip_string(block: &[u8], at: &mut usize) -> Option<()> {
    let length = integer(block, at, 7)?;
    *at = at.checked_add(length).filter(|end| *end <= block.len())?;
    Some(())
}

/// Section 5.1, of those that can be a length or an index here.
fn integer(block: &[u8], at: &mut usize, prefix_bits: u32) -> Option<usize> {
    let mask = (1 << prefix_bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & mask;
    *at += 1;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let byte = usize::from(*block.get(*at)?);
        *at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// Fed in pieces of each size, since a socket may give any.
    fn through(bytes: &[u8]) -> Vec<u8> {
        let mut seen: Option<Vec<u8>> = None;
        for size in [1, 2, 7, 64, 100_000] {
            let mut inbound = Inbound::default();
            bytes.chunks(size).for_each(|part| inbound.take(part));
            assert!(seen.as_ref().is_none_or(|seen| *seen == inbound.ready), "in pieces of {size}");
            seen = Some(inbound.ready);
        }
        seen.unwrap()
    }

    /// RFC 7541, appendix C.4.1: `GET http://www.example.com/`, coded after Huffman.
    const EXAMPLE: &[u8] =
        &[0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];

    #[test]
    fn the_authority_is_replaced_and_nothing_else() {
        let preface = [b'P'; PREFACE_BYTES];
        let data = frame(0, 1, &[0x41; 300]);
        let replaced = [0x82, 0x86, 0x84, 0x41, 1, b'-'];
        let padded = [&[2, 0, 0, 0, 0, 9][..], EXAMPLE, &[0, 0]].concat();
        let padded_after = [&[2, 0, 0, 0, 0, 9][..], &replaced, &[0, 0]].concat();
        // A table's size, a name in full with a value, then the authority without indexing and in plain letters.
        let plain = [&[0x3f, 0xe1, 0x1f, 0x40, 1, b'x', 1, b'y', 0x01, 4][..], b"%2Fx", &[0x84]].concat();
        let plain_after = [&[0x3f, 0xe1, 0x1f, 0x40, 1, b'x', 1, b'y', 0x01, 1][..], b"-", &[0x84]].concat();
        let sent = [&preface[..], &data, &frame(1, 5, EXAMPLE), &frame(1, 0x2d, &padded), &data, &frame(1, 5, &plain)];
        let seen = [
            &preface[..],
            &data,
            &frame(1, 5, &replaced),
            &frame(1, 0x2d, &padded_after),
            &data,
            &frame(1, 5, &plain_after),
        ];
        assert_eq!(through(&sent.concat()), seen.concat());
    }

    #[test]
    fn what_makes_no_sense_is_left_as_it_is() {
        let cut = &EXAMPLE[..EXAMPLE.len() - 1];
        let no_authority = [0x82, 0x86, 0x84, 0xc0];
        let empty = [0x82, 0x41, 0];
        let endless = [0x7f, 0xff, 0xff, 0xff, 0xff, 0xff];
        for (flags, payload) in
            [(5, cut), (5, &no_authority), (5, &empty), (5, &endless), (PADDED, &[200, 1]), (PRIORITY, &[1]), (5, &[])]
        {
            let sent = [&[b'P'; PREFACE_BYTES][..], &frame(1, flags, payload)].concat();
            assert_eq!(through(&sent), sent, "{payload:x?}");
        }
        let large = [&[b'P'; PREFACE_BYTES][..], &frame(1, 5, &[0x84; MAX_FRAME_BYTES + 1])].concat();
        assert_eq!(through(&large), large);
    }
}
