//! Signals and the like, for processes that this binary is and starts.

use nix::sys::signal::Signal;
use std::io;
use tokio::signal::unix::{SignalKind, signal};
use volume::{Error, Result};

/// Asks the kernel to kill this process when the thread of `parent` that started it ends; covers one that has gone
/// already.
pub fn die_with_parent(parent: u32) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| Error::io("cannot tie this process to its parent", errno.into()))?;
    if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(parent) {
        return Err(Error::new(volume::ErrorKind::FailedPrecondition, "the process that started this one has ended"));
    }
    Ok(())
}

/// A mount namespace of this process's own, from which nothing propagates. Before any thread starts (unshare(2)).
pub fn private_mounts() -> Result<()> {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Error::io("cannot make a mount namespace (it needs CAP_SYS_ADMIN)", errno.into()))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|errno| Error::io("cannot make the mount namespace private", errno.into()))
}

/// From the call on these signals do not end the process; the future completes at SIGTERM or SIGINT.
pub fn termination() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
