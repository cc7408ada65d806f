//! One error type for everything below the gRPC edge.

use serde::{Deserialize, Serialize};
use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in words for the person who must act, and a [`ErrorKind`] for the program that must.
///
/// The message names the operation and the object, what was found and what to do; the cause is kept as
/// the source and is not repeated in the message.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// How a caller may react. `rpc` maps each kind to one gRPC status, exhaustively.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The request itself is wrong and will be wrong again.
    InvalidArgument,
    /// The volume, snapshot, node or path named does not exist.
    NotFound,
    /// It exists already, but differs from what was asked for.
    AlreadyExists,
    /// Another operation on the same object is under way in this process or another; retry.
    Busy,
    /// A single-writer volume is held by another node that has not been fenced, or a fence stands against this node.
    Held,
    /// The object is in a state that forbids the operation (in use, still staged, has snapshots).
    FailedPrecondition,
    /// A size is outside what the storage can do.
    OutOfRange,
    /// The pool, a quota or a device table is full.
    Exhausted,
    /// The storage, the kernel or the file system cannot do this at all.
    Unsupported,
    /// The storage cannot be reached now; retry.
    Unavailable,
    /// A deadline passed; the work may still go on and a retry finds it.
    Timeout,
    /// A record, image or file system is damaged or not what it claims to be. Never repaired silently.
    Corrupt,
    /// The operating system refuses: a privilege or capability is missing.
    PermissionDenied,
    /// A page token is not one that this driver gave out, or has expired (CSI: ABORTED).
    BadPageToken,
    /// Anything else: a defect, or a system call that should not fail.
    Internal,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Keeps `source` as the cause. Do not repeat it in `message`.
    pub fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    /// An I/O error with the operation and object it belongs to; the kind follows from the errno.
    pub fn io(message: impl Into<String>, source: std::io::Error) -> Self {
        Self::with_source(ErrorKind::of_io(&source), message, source)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Puts an operation in front: the new message, with this error as its source and of the same kind.
    pub fn context(self, message: impl Into<String>) -> Self {
        Self { kind: self.kind, message: message.into(), source: Some(Box::new(self)) }
    }

    /// The message and all its causes on one line, for logs and for gRPC status messages.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl ErrorKind {
    fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => Self::NotFound,
            Io::PermissionDenied => Self::PermissionDenied,
            Io::StorageFull | Io::QuotaExceeded => Self::Exhausted,
            Io::Unsupported => Self::Unsupported,
            Io::TimedOut => Self::Timeout,
            Io::StaleNetworkFileHandle => Self::Unavailable,
            _ => Self::Internal,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidArgument => "invalid-argument",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::Busy => "busy",
            Self::Held => "held",
            Self::FailedPrecondition => "failed-precondition",
            Self::OutOfRange => "out-of-range",
            Self::Exhausted => "exhausted",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Corrupt => "corrupt",
            Self::PermissionDenied => "permission-denied",
            Self::BadPageToken => "bad-page-token",
            Self::Internal => "internal",
        })
    }
}
