//! Work that may hang in the kernel on a device, kept from holding up anything else.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use volume::{Error, ErrorKind, Result};

/// Runs `work` on a thread of its own. After `deadline` the answer is `Timeout`, and the thread goes on with whatever
/// it owns (its volume's lock among it) until the kernel lets it go.
pub(crate) fn with_deadline<T: Send + 'static>(
    deadline: Duration,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (send, receive) = mpsc::channel();
    let worker = move || {
        // Nobody listens any more after the deadline.
        let _ = send.send(work());
    };
    std::thread::Builder::new()
        .spawn(worker)
        .map_err(|error| Error::io(format!("starting a thread for {what}"), error))?;
    receive.recv_timeout(deadline).map_err(|error| match error {
        RecvTimeoutError::Timeout => {
            Error::new(ErrorKind::Timeout, format!("{what} is not done after {} s and goes on", deadline.as_secs_f32()))
        }
        RecvTimeoutError::Disconnected => Error::internal(format!("{what} panicked")),
    })?
}
