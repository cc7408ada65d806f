//! What the objects of one installation are called.

/// Which objects of the cluster are this installation's. The chart makes them by the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub namespace: String,
    /// What the names of all objects begin with: that of the chart's release.
    pub name: String,
}

/// Of pods with an agent; its value is the installation's name.
pub(crate) const AGENT_LABEL: &str = "hawser.dev/node-agent";
/// Of Nodes that have had an agent: its address.
pub(crate) const ADDRESS_ANNOTATION: &str = "hawser.dev/agent";
/// Of requests that are for this installation's controllers.
pub(crate) const SIGNER: &str = "csi.hawser.dev/agent";

impl Names {
    /// The Secret with the authority, and the ConfigMap with its certificates.
    pub fn authority(&self) -> String {
        format!("{}-ca", self.name)
    }

    /// The Lease of the supervisor that leads.
    pub(crate) fn supervisor(&self) -> String {
        format!("{}-supervisor", self.name)
    }

    /// The ConfigMap with the history of failovers.
    pub(crate) fn failovers(&self) -> String {
        format!("{}-failover", self.name)
    }

    /// What a node's process is to the API server.
    pub fn node_user(&self) -> String {
        format!("system:serviceaccount:{}:{}-node", self.namespace, self.name)
    }

    pub fn agent_selector(&self) -> String {
        format!("{AGENT_LABEL}={}", self.name)
    }

    /// For messages.
    pub(crate) fn of(&self, kind: &str, name: &str) -> String {
        format!("the {kind} {}/{name}", self.namespace)
    }
}
