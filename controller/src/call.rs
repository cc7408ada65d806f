//! How the services run a call.

use crate::core::Core;
use rpc::{Call, Runtime, Trace};
use std::fmt::Debug;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use volume::Result;

/// Prepares (parses and locks) and runs one call. `prepare` must have no effect; `run` owns what it prepared.
pub(crate) async fn call<Q, P, R>(
    core: &Arc<Core>,
    runtime: &Runtime,
    call: Call,
    request: Request<Q>,
    prepare: impl FnOnce(&Core, Q) -> Result<P>,
    run: impl FnOnce(&Core, P, &mut Trace) -> Result<R> + Send + 'static,
) -> std::result::Result<Response<R>, Status>
where
    Q: Debug,
    P: Send + 'static,
    R: Send + 'static,
{
    let request = request.into_inner();
    runtime.received(call.rpc, &request);
    let prepared = prepare(core, request).map_err(|error| runtime.refuse(&call, &error))?;
    let core = core.clone();
    runtime.run(call, move |trace| run(&core, prepared, trace)).await.map(Response::new)
}
