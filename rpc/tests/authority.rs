//! A client that sends the socket's path as `:authority`, as kubelet does for registration, is answered.

use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

/// Frame types of RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;

#[tokio::test]
async fn a_path_as_authority_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("csi.sock");
    let (incoming, _socket) = rpc::bind(&path).await.unwrap();
    tokio::spawn(Server::builder().add_routes(Routes::default()).serve_with_incoming(incoming));
    assert_eq!(answer(&path).await.unwrap(), HEADERS);
}

/// The control: without the replacement h2 refuses it.
#[tokio::test]
async fn http_2_alone_refuses_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("csi.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
    tokio::spawn(Server::builder().add_routes(Routes::default()).serve_with_incoming(incoming));
    assert_eq!(answer(&path).await.unwrap(), RST_STREAM);
}

/// Calls as gRPC for Go does with a bare path as its target; the type of the first frame that answers.
async fn answer(path: &Path) -> std::io::Result<u8> {
    let authority = path.display().to_string().replace('/', "%2F");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/pluginregistration.Registration/GetInfo"),
        (":authority", &authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut stream = UnixStream::connect(path).await?;
    let sent = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, 4, 1, &fields.map(|(name, value)| literal(name, value)).concat()),
        frame(DATA, 1, 1, &[0; 5]),
    ];
    stream.write_all(&sent.concat()).await?;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        let length = header[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        if header[5..] == [0, 0, 0, 1] {
            return Ok(header[3]);
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// RFC 7541, section 6.2.2. The authority's name comes from the static table, as in every encoder.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let string = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let name = if name == ":authority" { vec![0x41] } else { [vec![0], string(name)].concat() };
    [name, string(value)].concat()
}
