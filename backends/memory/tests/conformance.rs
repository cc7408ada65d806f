//! The suite of all backends, on the one in memory.
#![allow(clippy::unwrap_used)] // The helper below is no test function.

use conformance::backend::Subject;
use host::FakeHost;
use memory::MemoryBackend;
use std::path::Path;
use std::sync::Arc;
use volume::{BackendName, Result};

conformance::backend_suite!(suite, crate::subject);

fn subject() -> std::result::Result<Subject, String> {
    make().map_err(|e| e.chain())
}

fn make() -> Result<Subject> {
    let host = Arc::new(FakeHost::default());
    let backend = MemoryBackend::new(BackendName::parse("memory")?, host.clone(), 4 << 30, None);
    let connector = Arc::new(backend.connector());
    let another = backend.clone();
    Ok(Subject {
        backend: Arc::new(backend),
        connector,
        another: Box::new(move || Arc::new(another.clone())),
        write: Box::new({
            let host = host.clone();
            move |device, offset_bytes, bytes| host.write_blocks(device, offset_bytes, bytes)
        }),
        set_image_bytes: Box::new(move |id, bytes| {
            host.resize_image(Path::new(&format!("/hawser-memory/memory/{id}/image.{:016x}", 0)), bytes).unwrap();
        }),
        keep: Box::new(()),
    })
}
