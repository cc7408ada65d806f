//! The unix socket that a service listens on.

use crate::authority::Connection;
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use volume::{Error, ErrorKind, Result};

/// Connections, for tonic's `serve_with_incoming_shutdown`.
#[derive(Debug)]
pub struct Incoming(UnixListenerStream);

/// unix(7): `sun_path` has 108 bytes with the final zero.
const MAX_PATH_BYTES: usize = 107;
/// Where the socket is made before it is moved into place. Kubelet's plugin watcher passes over dot names.
const BIND_DIRECTORY: &str = ".hawser-bind";

/// Parses CSI_ENDPOINT: `unix:///path`, `unix://path`, `unix:path` or a path.
pub fn parse_endpoint(text: &str) -> Result<PathBuf> {
    let wrong = |why: &str| {
        Error::invalid(format!("CSI endpoint {text:?} {why}; give a unix socket such as unix:///run/hawser/csi.sock"))
    };
    let path = match text.split_once(':') {
        Some(("unix", rest)) => rest.strip_prefix("//").unwrap_or(rest),
        Some((scheme, _)) if !scheme.contains('/') => return Err(wrong("is not a unix socket")),
        _ => text,
    };
    if path.is_empty() {
        return Err(wrong("names no path"));
    }
    if path.contains('\0') {
        return Err(wrong("holds a zero byte"));
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(wrong(&format!("is too long: a socket's path has at most {MAX_PATH_BYTES} bytes")));
    }
    Ok(PathBuf::from(path))
}

/// A bound socket's name. Dropping it removes the name, if it still leads to this socket.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

/// Listens on `path`, for this user alone (mode 0600). A stale socket is replaced; one that somebody listens on, and
/// whatever is no socket, is `FailedPrecondition`. A missing directory is made, for this user alone.
pub async fn bind(path: &Path) -> Result<(Incoming, SocketFile)> {
    if path.as_os_str().len() > MAX_PATH_BYTES {
        return Err(Error::invalid(format!(
            "listen on {}: a socket's path has at most {MAX_PATH_BYTES} bytes",
            path.display()
        )));
    }
    let failed = |source: io::Error| Error::io(format!("listen on {}", path.display()), source);
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    // From here to the rename one process at a time, or two could both find the socket stale.
    let _lock = lock(parent, path).await?;
    check_replaceable(path).await?;

    // The socket gets its mode before it gets its name, so there is no moment at which others can connect. Through the
    // descriptor the path to bind stays short, however long the directory's own path is.
    let private = parent.join(BIND_DIRECTORY);
    let unfinished = private.join("socket");
    remove_if_there(fs::remove_file(&unfinished)).map_err(failed)?;
    remove_if_there(fs::remove_dir(&private)).map_err(failed)?;
    DirBuilder::new().mode(0o700).create(&private).map_err(failed)?;
    let listener = bind_in(&private, &unfinished, path);
    let removed = fs::remove_dir(&private).or_else(|_| {
        fs::remove_file(&unfinished)?;
        fs::remove_dir(&private)
    });
    let (listener, identity) = listener.map_err(failed)?;
    removed.map_err(failed)?;
    Ok((Incoming(UnixListenerStream::new(listener)), SocketFile { path: path.to_owned(), identity }))
}

fn bind_in(private: &Path, unfinished: &Path, path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let directory = File::open(private)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/socket", directory.as_raw_fd()))?;
    fs::set_permissions(unfinished, Permissions::from_mode(0o600))?;
    let metadata = fs::symlink_metadata(unfinished)?;
    fs::rename(unfinished, path)?;
    Ok((listener, (metadata.dev(), metadata.ino())))
}

async fn lock(parent: &Path, path: &Path) -> Result<File> {
    const TRIES: u32 = 100;
    let failed =
        |source: io::Error| Error::io(format!("lock {} to listen on {}", parent.display(), path.display()), source);
    let directory = File::open(parent).map_err(failed)?;
    for _ in 0..TRIES {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    Err(Error::new(
        ErrorKind::Timeout,
        format!("listen on {}: another process keeps {} locked", path.display(), parent.display()),
    ))
}

async fn check_replaceable(path: &Path) -> Result<()> {
    let refuse =
        |why: &str| Err(Error::new(ErrorKind::FailedPrecondition, format!("listen on {}: {why}", path.display())));
    match fs::symlink_metadata(path) {
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::io(format!("look at {}", path.display()), source)),
        Ok(found) if !found.file_type().is_socket() => {
            return refuse("something that is no socket is there; move it away or choose another path");
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(stale) if matches!(stale.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        // Also when its queue is full (EAGAIN): somebody is there, however slow.
        Ok(_) => refuse("another process listens there; stop it first"),
        Err(busy) if busy.kind() == io::ErrorKind::WouldBlock => refuse("another process listens there; stop it first"),
        Err(source) => Err(Error::io(format!("find out whether anybody listens on {}", path.display()), source)),
    }
}

fn remove_if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(context).map(|next| next.map(|stream| stream.map(Connection::new)))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, path) in [
            ("unix:///run/x.sock", "/run/x.sock"),
            ("unix://run/x.sock", "run/x.sock"),
            ("unix:/run/x.sock", "/run/x.sock"),
            ("/run/x.sock", "/run/x.sock"),
            ("csi.sock", "csi.sock"),
            ("/run/a:b/x.sock", "/run/a:b/x.sock"),
        ] {
            assert_eq!(parse_endpoint(text).unwrap(), Path::new(path), "{text}");
        }
        let long = format!("/{}", "x".repeat(107));
        for text in ["", "unix://", "tcp://0.0.0.0:9", "http://x/y", "localhost:9", "/nul\0", &long] {
            assert_eq!(parse_endpoint(text).unwrap_err().kind(), ErrorKind::InvalidArgument, "{text}");
        }
    }

    #[tokio::test]
    async fn private_and_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/deep/csi.sock");
        let (incoming, file) = bind(&path).await.unwrap();
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop((incoming, file));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn stale_is_replaced_and_live_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        // As after a SIGKILL: the name stays, nobody listens, and the private directory was left behind as well.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        fs::create_dir(dir.path().join(BIND_DIRECTORY)).unwrap();
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(BIND_DIRECTORY).join("socket")).unwrap());
        let (_incoming, file) = bind(&path).await.unwrap();
        let refused = bind(&path).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
        assert!(refused.to_string().contains("csi.sock"), "{refused}");
        assert!(UnixStream::connect(&path).await.is_ok());
        // Replaced by somebody else: not ours to remove.
        fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn two_at_once_one_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let (first, second) = tokio::join!(bind(&path), bind(&path));
        assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1);
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link, &dir.path().to_owned()] {
            assert_eq!(bind(path).await.unwrap_err().kind(), ErrorKind::FailedPrecondition, "{path:?}");
        }
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        assert!(bind(Path::new(&format!("{}/{}", dir.path().display(), "x".repeat(120)))).await.is_err());
    }
}
