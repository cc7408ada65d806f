//! The suite of all backends, on the one in memory.

use conformance::backend::Subject;
use host::FakeHost;
use memory::MemoryBackend;
use std::sync::Arc;
use volume::{BackendName, Result};

conformance::backend_suite!(suite, crate::subject);

fn subject() -> std::result::Result<Subject, String> {
    make().map_err(|e| e.chain())
}

fn make() -> Result<Subject> {
    let host = Arc::new(FakeHost::default());
    let backend = MemoryBackend::new(BackendName::parse("memory")?, Arc::clone(&host), 4 << 30, None);
    let connector = Arc::new(backend.connector());
    let another = backend.clone();
    Ok(Subject {
        backend: Arc::new(backend),
        connector,
        another: Box::new(move || Arc::new(another.clone())),
        write: Box::new(move |device, offset_bytes, bytes| host.write_blocks(device, offset_bytes, bytes)),
        keep: Box::new(()),
    })
}
