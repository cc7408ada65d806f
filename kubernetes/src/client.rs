//! The connection to the API server, and its errors in words.

use kube::runtime::watcher;
use kube::{Client, Config, Error as KubeError};
use std::time::Duration;
use volume::{Error, ErrorKind, Result};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// As the pod's service account. Nothing is sent yet.
pub fn connect() -> Result<Client> {
    let mut config = Config::incluster().map_err(|error| {
        Error::with_source(
            ErrorKind::FailedPrecondition,
            "kubernetes.enabled is true and this process does not run as a pod with a service account",
            error,
        )
    })?;
    config.connect_timeout = Some(CONNECT_LIMIT);
    Client::try_from(config).map_err(|error| explain("prepare the connection to the API server", error))
}

/// As kubectl would (KUBECONFIG, `~/.kube/config`), else as the pod's service account: for commands. Nothing is sent yet.
pub async fn connect_as_user() -> Result<Client> {
    let unavailable =
        |error| Error::with_source(ErrorKind::Unavailable, "the API server of Kubernetes cannot be used", error);
    Client::try_default().await.map_err(unavailable)
}

/// `what` was attempted: "read the Secret a/b".
pub(crate) fn explain(what: &str, error: KubeError) -> Error {
    let KubeError::Api(status) = error else {
        return Error::with_source(ErrorKind::Unavailable, format!("cannot {what}"), error);
    };
    let (kind, hint) = match status.code {
        401 | 403 => (ErrorKind::PermissionDenied, "; see that the chart's roles and bindings are there"),
        404 => (ErrorKind::NotFound, ""),
        409 => (ErrorKind::Busy, ""),
        _ => (ErrorKind::Unavailable, ""),
    };
    Error::new(kind, format!("cannot {what}: {}{hint}", status.message))
}

/// As [`explain`], of a watch that will be tried again.
pub(crate) fn explain_watch(what: &str, error: watcher::Error) -> Error {
    match error {
        watcher::Error::InitialListFailed(cause)
        | watcher::Error::WatchStartFailed(cause)
        | watcher::Error::WatchFailed(cause) => explain(what, cause),
        watcher::Error::WatchError(status) => explain(what, KubeError::Api(status)),
        other => Error::with_source(ErrorKind::Unavailable, format!("cannot {what}"), other),
    }
}
