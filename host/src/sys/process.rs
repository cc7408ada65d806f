//! A child that thaws a file system when its parent dies.

use super::inode;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Guards a frozen file system against the death of this process.
///
/// The child waits at a pipe whose other end is here. A byte means "thawed already"; the end of the pipe without one
/// means that this process is gone, and the child thaws. It is a fork without exec, of a process with many threads, so
/// between fork and `_exit` it calls only what signal-safety(7) lists (and bare system calls), and allocates nothing.
pub(crate) struct ThawGuard {
    child: Pid,
    pipe: OwnedFd,
}

impl ThawGuard {
    /// `file` is any file or directory of the file system that is about to be frozen.
    pub(crate) fn start(file: impl AsFd) -> nix::Result<Self> {
        let (wait, pipe) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (file, wait_number) = (file.as_fd().as_raw_fd(), wait.as_raw_fd());
        // SAFETY: the child runs `wait_and_thaw` alone, which is async-signal-safe and never returns.
        match unsafe { libc::fork() } {
            -1 => Err(Errno::last()),
            // SAFETY: this is the child of the fork.
            0 => unsafe { wait_and_thaw(wait_number, file) },
            child => Ok(Self { child: Pid::from_raw(child), pipe }),
        }
    }
}

impl Drop for ThawGuard {
    /// To be dropped after the thaw: tells the child that nothing is left to do, and reaps it.
    fn drop(&mut self) {
        // A failure means that the child is gone, and so is what it was for.
        let _ = nix::unistd::write(&self.pipe, b"d");
        while nix::sys::wait::waitpid(self.child, None) == Err(Errno::EINTR) {}
    }
}

/// The child's whole life.
///
/// # Safety
/// Only in a child right after fork.
unsafe fn wait_and_thaw(wait: libc::c_int, file: libc::c_int) -> ! {
    // Two places that stay open; everything else that was inherited (sockets, devices, locks) is let go at once.
    const WAIT: libc::c_int = 0;
    const FILE: libc::c_int = 1;
    const SPARE: libc::c_int = 2;
    // SAFETY: async-signal-safe calls on numbers and on memory of this frame.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
        // Out of the terminal's process group, so that what ends the parent need not end the guard.
        libc::setsid();
        // `wait` and `file` may be numbered 0 or 1 themselves: move both out of the way first.
        let high_wait = libc::fcntl(wait, libc::F_DUPFD, 16);
        let high_file = libc::fcntl(file, libc::F_DUPFD, 16);
        if high_wait < 0 || high_file < 0 {
            libc::_exit(1);
        }
        libc::dup2(high_wait, WAIT);
        libc::dup2(high_file, FILE);
        libc::syscall(libc::SYS_close_range, SPARE, libc::c_uint::MAX, 0);
        let mut byte = 0u8;
        loop {
            match libc::read(WAIT, (&raw mut byte).cast(), 1) {
                1 => libc::_exit(0),
                -1 if *libc::__errno_location() == libc::EINTR => {}
                _ => {
                    let _ = inode::thaw_raw(FILE);
                    libc::_exit(0)
                }
            }
        }
    }
}
