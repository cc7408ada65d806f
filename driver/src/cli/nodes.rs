//! `hawser node` and `hawser failover`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes that the storage knows
    Ls,
    /// Take a node of Kubernetes into maintenance: nothing new is placed there, and it is not failed over
    Cordon {
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// End a node's maintenance
    Uncordon {
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Cordon a node and evict the pods that use its volumes; PodDisruptionBudgets are respected
    Drain(DrainArgs),
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    #[arg(value_name = "NODE")]
    pub node: String,
    /// How long the pods may take to leave
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout_s: u64,
}

#[derive(Debug, Subcommand)]
pub enum FailoverCommand {
    /// Show which nodes are lost or failed over now, what stands in the way, and the history
    Ls(FailoverLsArgs),
}

#[derive(Debug, Args)]
pub struct FailoverLsArgs {
    /// Where hawser is installed [default: kubernetes.namespace]
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// What the names of its objects begin with [default: kubernetes.name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}
