//! How the C library's allocator keeps what is freed.

/// mallopt(3). By default each of up to 16 threads gets an arena of its own, which keeps what it was once given, and a
/// buffer that was freed raises the size up to which later ones are kept too. A driver that is idle for hours between
/// bursts of calls should hold what it needs when idle.
pub(crate) fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        const ARENAS: libc::c_int = 2;
        const KEPT_BYTES: libc::c_int = 128 << 10;
        for (parameter, value) in
            [(libc::M_ARENA_MAX, ARENAS), (libc::M_TRIM_THRESHOLD, KEPT_BYTES), (libc::M_MMAP_THRESHOLD, KEPT_BYTES)]
        {
            // SAFETY: numbers; a value that does not suit is refused, which changes nothing.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}

/// malloc_trim(3): gives the pages of what was freed back to the kernel.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and works on the allocator's own state, under its locks.
    unsafe {
        libc::malloc_trim(0)
    };
}
