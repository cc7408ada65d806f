//! Who moves the workload away from a node that failed.

use super::clock::now_ns;
use super::installed::{hawser, node_of};
use crate::failure::{Context, Result};
use crate::kubernetes::Lab;
use crate::kubernetes::space::{LIMIT, name_of};
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mover {
    /// hawser's supervisor.
    Supervisor,
    /// The lab, at the moment of the fault, with the same steps: it detects nothing.
    ByHand,
    /// As by hand, but nothing is fenced: what the checks must notice.
    ByHandWithoutFence,
    /// Kubernetes alone, the supervisor being off.
    Stock,
}

const TAINT: &str = "node.kubernetes.io/out-of-service";

impl Mover {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::ByHand => "by-hand",
            Self::ByHandWithoutFence => "by-hand-without-fence",
            Self::Stock => "stock",
        }
    }

    pub(super) fn is_by_hand(self) -> bool {
        matches!(self, Self::ByHand | Self::ByHandWithoutFence)
    }

    /// Moves what runs in the namespace away from `dead`; when the fence had returned. Nothing to do for those who do it
    /// themselves.
    pub(super) fn act(self, lab: &Lab, namespace: &str, dead: &[&str]) -> Result<Option<u64>> {
        if !self.is_by_hand() {
            return Ok(None);
        }
        for node in dead.iter().filter(|_| self == Self::ByHand) {
            // Running it again is harmless, and the connection through the API server may break when a node goes.
            lab.cluster.wait(&format!("{node} fenced"), LIMIT, || {
                Ok(hawser(lab, dead, &["fence", node]).map(drop).map_err(|failure| failure.to_string()))
            })?;
        }
        let fenced = now_ns()?;
        for node in dead {
            // Nothing new comes here, and volumes are detached without the node; without NoExecute nothing is evicted
            // by its name, which may be that of the pod elsewhere by then.
            let taint = json!([{"key": TAINT, "value": "by-hand", "effect": "NoSchedule"}]);
            lab.cluster.patch(&format!("/api/v1/nodes/{node}"), &json!({"spec": {"taints": taint}}))?;
        }
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        for pod in lab.cluster.list(&pods)?.iter().filter(|pod| dead.contains(&node_of(pod))) {
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
            lab.cluster.delete_this_at_once(&format!("{pods}/{}", name_of(pod)), uid)?;
        }
        Ok(Some(fenced))
    }

    /// Lets the node in again once nothing of its earlier life is left. The others do it themselves.
    pub(super) fn readmit(self, lab: &Lab, node: &str) -> Result<()> {
        if !self.is_by_hand() {
            return Ok(());
        }
        lab.cluster
            .wait(&format!("{node} unfenced"), LIMIT, || {
                Ok(hawser(lab, &[node], &["unfence", node]).map(drop).map_err(|failure| failure.to_string()))
            })
            .context(|| "what it had is not gone".to_owned())?;
        untaint(lab, node)
    }
}

/// Removes the taint of out of service alone.
fn untaint(lab: &Lab, node: &str) -> Result<()> {
    let path = format!("/api/v1/nodes/{node}");
    let object = lab.cluster.get(&path)?;
    let all = object["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let others: Vec<Value> = all.into_iter().filter(|taint| taint["key"] != TAINT).collect();
    lab.cluster.patch(&path, &json!({"spec": {"taints": others}})).map(drop)
}

pub(super) fn has_taint(node: &Value) -> bool {
    node["spec"]["taints"].as_array().is_some_and(|taints| taints.iter().any(|taint| taint["key"] == TAINT))
}
