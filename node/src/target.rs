//! Paths that an orchestrator names, and what may be at them.

use host::{Host, PathState};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use volume::{Error, ErrorKind, Result};

/// PATH_MAX less the final NUL (limits.h).
const MAX_PATH_BYTES: usize = 4095;

/// An absolute path without `..`, parsed once at the edge. Nothing is known yet of what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodePath(PathBuf);

impl NodePath {
    /// `field` is the request's field, for the message.
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self> {
        let refuse = |reason: &str| Err(Error::invalid(format!("{field} {text:?} is not usable: {reason}")));
        if text.is_empty() {
            return Err(Error::invalid(format!("{field} is not given")));
        }
        if text.len() > MAX_PATH_BYTES {
            return Err(Error::invalid(format!(
                "{field} has {} bytes; the system allows {MAX_PATH_BYTES}",
                text.len()
            )));
        }
        if text.contains('\0') {
            return refuse("it holds a NUL byte");
        }
        let path = Path::new(text);
        if !path.is_absolute() {
            return refuse("it is relative; CSI asks for an absolute path");
        }
        if path.components().any(|c| c == Component::ParentDir) {
            return refuse("it holds '..'");
        }
        if path.parent().is_none() {
            return refuse("it is the root directory");
        }
        // Also drops repeated and trailing slashes and single dots, which the mount table never shows.
        Ok(Self(path.components().collect()))
    }

    /// An empty text is "not given".
    pub(crate) fn parse_optional(field: &str, text: &str) -> Result<Option<Self>> {
        if text.is_empty() { Ok(None) } else { Self::parse(field, text).map(Some) }
    }

    /// As the mount table shows it.
    pub(crate) fn resolve(&self, host: &dyn Host) -> Result<PathBuf> {
        host.resolve_parents(&self.0)
    }
}

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// What a mount needs to find at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Directory,
    File,
}

/// Whether something can be mounted on `path` without hiding or losing anything; `true` when it has to be made first.
pub(crate) fn check_target(host: &dyn Host, what: &str, path: &Path, wanted: Wanted) -> Result<bool> {
    let found = match (host.observe_path(path)?, wanted) {
        (PathState::Absent, _) => return Ok(true),
        (PathState::Directory { is_empty: true }, Wanted::Directory)
        | (PathState::File { size_bytes: 0 }, Wanted::File) => {
            return Ok(false);
        }
        (PathState::Directory { is_empty: false }, Wanted::Directory) => "a directory that is not empty",
        (PathState::Directory { .. }, Wanted::File) => "a directory, where a block volume needs a file",
        (PathState::File { .. }, Wanted::Directory) => "a file, where a mounted volume needs a directory",
        (PathState::File { .. }, Wanted::File) => "a file that is not empty",
        (PathState::Symlink, _) => "a symlink",
        (PathState::BlockDevice(_), _) => "a block device that is not this volume",
        (PathState::Other, _) => "neither a file nor a directory",
    };
    Err(Error::new(
        ErrorKind::FailedPrecondition,
        format!("{what} {} is {found}; nothing was changed: remove it or give another path", path.display()),
    ))
}

/// Whether `seen` is `path` or the same place seen through a bind mount of a parent (`/host/var/lib/kubelet/x` of
/// `/var/lib/kubelet/x`): what is mounted on one shows on the other where mounts propagate.
pub(crate) fn is_same_place(seen: &Path, path: &Path) -> bool {
    let ends_with = |long: &Path, short: &Path| short.strip_prefix("/").is_ok_and(|tail| long.ends_with(tail));
    seen == path || ends_with(seen, path) || ends_with(path, seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        for bad in ["", "relative", "./x", "/", "//", "/a/../b", "/a/..", "/nul\0", &format!("/{}", "x".repeat(4095))] {
            assert_eq!(NodePath::parse("target_path", bad).unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad:?}");
        }
        for (good, plain) in [
            ("/a//b/./c/", "/a/b/c"),
            ("/per-alloc/x/db[0]/rw", "/per-alloc/x/db[0]/rw"),
            ("/new\nline/ü,ro", "/new\nline/ü,ro"),
        ] {
            assert_eq!(NodePath::parse("target_path", good).unwrap().to_string(), plain);
        }
    }

    #[test]
    fn replicas_are_the_same_place() {
        let same = |a: &str, b: &str| is_same_place(Path::new(a), Path::new(b));
        assert!(same("/var/lib/x", "/var/lib/x") && same("/host/var/lib/x", "/var/lib/x"));
        assert!(same("/var/lib/x", "/host/var/lib/x"));
        assert!(!same("/var/lib/x", "/var/lib/y") && !same("/var/lib/x", "/lib/x/y"));
    }
}
