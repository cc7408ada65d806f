//! What the process holds in memory.

use crate::sys::memory;

/// For a process that lives long and is mostly idle; to be called before the first thread starts.
pub fn keep_little() {
    memory::keep_little();
}

/// After a burst of work: gives what was freed back to the machine.
pub fn give_back() {
    memory::give_back();
}
