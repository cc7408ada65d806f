//! What went wrong, in words.

use std::fmt;

pub(crate) type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug, Clone)]
pub(crate) struct Failure(String);

/// `Ok` when `holds`, else what was seen.
pub(crate) fn ensure(holds: bool, seen: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Failure(seen())) }
}

pub(crate) trait Context<T> {
    /// Puts what was attempted in front of the failure.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Failure>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure(format!("{}: {}", what(), error.into().0)))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line a failure, whatever a program said.
        f.write_str(&self.0.replace('\n', " | "))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self(format!("{:?}: {}", status.code(), status.message()))
    }
}
