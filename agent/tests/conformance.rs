//! A backend reached by its agent passes the suite of all backends: over a real connection, with certificates.
#![allow(clippy::unwrap_used)] // The helper below is no test function.

mod common;

use agent::{Agents, Role};
use common::{Served, agents, any_port, credentials, node, runtime};
use conformance::backend::Subject;
use host::FakeHost;
use memory::MemoryBackend;
use std::path::Path;
use std::sync::Arc;
use volume::{Backend, BackendName, Backends};

conformance::backend_suite!(suite, crate::subject);

fn subject() -> Result<Subject, String> {
    let runtime = runtime();
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let name = BackendName::of_node(&node("n1"));
    let host = Arc::new(FakeHost::default());
    let images = format!("/hawser-memory/{name}");
    let local = MemoryBackend::new(name, Arc::clone(&host), 4 << 30, None);
    let connector = Arc::new(local.connector());
    let (served, first, second) = runtime.block_on(async {
        let own = credentials(dir.path(), "n0", &[Role::Node(node("n0"))]);
        // Not one of the nodes that the suite fences.
        let served = Served::start("n0", any_port(), own, vec![Arc::new(local)]).await;
        let controller = || agents(credentials(dir.path(), "c", &[Role::Controller]), &[("n0", served.address)]);
        let (first, second) = (controller(), controller());
        for agents in [&first, &second] {
            common::until(agents, "n0", |state| state.is_connected).await;
        }
        (served, first, second)
    });
    let only = |agents: &Agents| -> Arc<dyn Backend> { agents.all().remove(0) };
    let (backend, another) = (only(&first), only(&second));
    Ok(Subject {
        backend,
        connector,
        another: Box::new(move || Arc::clone(&another)),
        write: Box::new({
            let host = Arc::clone(&host);
            move |device, offset_bytes, bytes| host.write_blocks(device, offset_bytes, bytes)
        }),
        set_image_bytes: Box::new(move |id, bytes| {
            host.resize_image(Path::new(&format!("{images}/{id}/image.{:016x}", 0)), bytes).unwrap();
        }),
        keep: Box::new((first, second, served, dir, runtime)),
    })
}
