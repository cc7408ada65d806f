//! `hawser failover ls` and `hawser node cordon|uncordon|drain`: what is asked of the orchestrator, not of the storage.

use crate::cli::{DrainArgs, FailoverLsArgs};
use crate::config::Config;
use crate::output::{Output, Table};
use kubernetes::Names;
use kubernetes::orchestrator::{self, NodeStanding, Report};
use serde_json::json;
use std::time::Duration;
use volume::{Error, ErrorKind, NodeId, Result};

/// The history and how things stand, as the leading replica wrote them down.
pub fn list_failovers(config: &Config, output: Output, args: &FailoverLsArgs) -> Result<()> {
    let configured = config.kubernetes.as_ref();
    let namespace = args.namespace.clone().or_else(|| configured.map(|names| names.namespace.clone()));
    let name = args.name.clone().or_else(|| configured.map(|names| names.name.clone()));
    let (Some(namespace), Some(name)) = (namespace, name) else {
        return Err(Error::invalid(
            "which installation is not known: give --namespace and --name (of the Helm release), or run it in the controller's pod",
        ));
    };
    let report = block_on(async {
        let client = kubernetes::connect_as_user().await?;
        orchestrator::read_history(client, &Names { namespace, name }).await.map_err(unavailable)
    })?;
    if output.json {
        output.print(&serde_json::to_value(&report).unwrap_or_default(), "");
    } else {
        output.print(&json!(null), &text(&report));
    }
    Ok(())
}

pub fn cordon(output: Output, node: &str) -> Result<()> {
    let node = NodeId::parse(node)?;
    block_on(async {
        orchestrator::cordon(&kubernetes::connect_as_user().await?, node.as_str()).await.map_err(unavailable)
    })?;
    let text = format!("{node} is in maintenance: nothing new is placed there, and it is not failed over");
    output.print(&json!({"node": node, "maintenance": true}), &text);
    Ok(())
}

pub fn uncordon(output: Output, node: &str) -> Result<()> {
    let node = NodeId::parse(node)?;
    let client = kubernetes::connect_as_user();
    block_on(async { orchestrator::uncordon(&client.await?, node.as_str()).await.map_err(unavailable) })?;
    output.print(&json!({"node": node, "maintenance": false}), &format!("{node} is in use again"));
    Ok(())
}

pub fn drain(output: Output, args: &DrainArgs) -> Result<()> {
    let node = NodeId::parse(&args.node)?;
    let limit = Duration::from_secs(args.timeout_s);
    let drained = output.progress(&format!("draining {node}"), || {
        block_on(async {
            orchestrator::drain(&kubernetes::connect_as_user().await?, node.as_str(), limit).await.map_err(unavailable)
        })
    })?;
    let mut text = format!("{node} is in maintenance, and {} pod(s) with volumes have left\n", drained.evicted.len());
    for left in &drained.left {
        text.push_str(&format!("  {left} stays: it is of a DaemonSet\n"));
    }
    output.print(&json!({"node": node, "evicted": drained.evicted, "left": drained.left}), &text);
    Ok(())
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    if report.status.nodes.is_empty() {
        text.push_str("no node is lost or failed over now\n");
    }
    for NodeStanding { node, suspected, stage, since, refusal } in &report.status.nodes {
        text.push_str(&format!("{node}: {}", stage.as_deref().unwrap_or("suspected")));
        for (before, words) in [("since", since), ("counts as lost:", suspected), ("not failed over:", refusal)] {
            if let Some(words) = words {
                text.push_str(&format!("; {before} {words}"));
            }
        }
        text.push('\n');
    }
    if report.history.is_empty() {
        return text;
    }
    let mut table = Table::new(&["AT", "NODE", "STAGE", "BEFORE TOOK", "BY", ""]);
    for line in &report.history {
        let took = if line.took_ms == 0 { String::new() } else { format!("{} ms", line.took_ms) };
        table.row([line.at.clone(), line.node.clone(), line.stage.clone(), took, line.by.clone(), line.text.clone()]);
    }
    format!("{text}\n{table}")
}

fn unavailable(message: String) -> Error {
    Error::new(ErrorKind::Unavailable, message)
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::io("cannot start the runtime", error))?.block_on(work)
}
