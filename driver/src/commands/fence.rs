//! `hawser fence` and `hawser unfence`. What they do is the storage's; here it is said, recorded and reported.

use super::show;
use crate::cli::FenceArgs;
use crate::output::Output;
use crate::storage::{Storage, actor};
use serde_json::{Value, json};
use volume::{Error, ErrorKind, FenceHow, FenceOutcome, NodeId, Result};

/// Fails when any volume could not be fenced; the others stay fenced.
pub fn fence(storage: &Storage, output: Output, args: &FenceArgs) -> Result<()> {
    let node = NodeId::parse(&args.node)?;
    let how = if args.powered_off { FenceHow::PoweredOff } else { FenceHow::Enforce };
    let outcomes = output.progress(&format!("fencing {node}"), || fence_node(storage, &node, &actor(), how))?;
    let values: Vec<Value> = outcomes
        .iter()
        .map(|outcome| match &outcome.proof {
            Ok(proof) => json!({"volume": outcome.volume, "proof": proof}),
            Err(error) => {
                json!({"volume": outcome.volume, "error": {"kind": error.kind().to_string(), "message": error.chain()}})
            }
        })
        .collect();
    let mut text = format!("{node} is fenced; it held {} volume(s)\n", outcomes.len());
    for outcome in &outcomes {
        match &outcome.proof {
            Ok(proof) => text.push_str(&format!("  {}  {}\n", outcome.volume, show::proof(proof))),
            Err(error) => text.push_str(&format!("  {}  NOT FENCED: {}\n", outcome.volume, error.chain())),
        }
    }
    output.print(&json!({"node": node, "volumes": values}), &text);
    let failed = outcomes.iter().filter(|outcome| outcome.proof.is_err()).count();
    if failed > 0 {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "{failed} volume(s) of {node} could not be fenced and are given to nobody; remove the cause and run the \
                 command again"
            ),
        ));
    }
    Ok(())
}

pub fn unfence(storage: &Storage, output: Output, node: &str) -> Result<()> {
    let node = NodeId::parse(node)?;
    let actor = actor();
    let mut known = false;
    for backend in storage.backends() {
        let Some(fence) = backend.fence() else { continue };
        match fence.unfence(&node, None, &actor) {
            Ok(()) => {
                known = true;
                tracing::warn!(target: "audit", node = %node, actor, backend = %backend.name(), "node unfenced");
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if !known {
        return Err(unknown_node(&node));
    }
    output.print(&json!({"node": node, "unfenced": true}), &format!("{node} may attach volumes again"));
    Ok(())
}

/// Fences `node` on every backend that knows it. What the supervisor and the demo call, too.
pub fn fence_node(storage: &Storage, node: &NodeId, actor: &str, how: FenceHow) -> Result<Vec<FenceOutcome>> {
    let mut outcomes = Vec::new();
    let mut known = false;
    for backend in storage.backends() {
        let Some(fence) = backend.fence() else { continue };
        match fence.fence(node, None, actor, how) {
            Ok(report) => {
                known = true;
                let failed = report.volumes.iter().filter(|outcome| outcome.proof.is_err()).count();
                tracing::warn!(
                    target: "audit",
                    node = %node,
                    actor,
                    backend = %backend.name(),
                    powered_off = how == FenceHow::PoweredOff,
                    volumes = report.volumes.len(),
                    failed,
                    "node fenced"
                );
                outcomes.extend(report.volumes);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.context(format!("cannot fence {node} on backend {}", backend.name()))),
        }
    }
    if known { Ok(outcomes) } else { Err(unknown_node(node)) }
}

fn unknown_node(node: &NodeId) -> Error {
    Error::not_found(format!("no backend knows a node {node}; see: hawser node ls"))
}
