//! What scenarios run on: the lab's cluster, or one that somebody else made and installed hawser in.

use super::Lab;
use super::cluster::Cluster;
use super::place::Pools;
use super::space::name_of;
use crate::failure::{Result, ensure};
use serde_json::Value;

pub(super) struct Ground<'a> {
    pub(super) cluster: &'a Cluster,
    /// Nodes that have hawser's driver, by name.
    pub(super) nodes: Vec<String>,
    /// Where nodes and their processes can be seen and killed.
    pub(super) lab: Option<&'a Lab>,
    /// Whether each node has a pool of its own.
    pub(super) has_local_pools: bool,
    /// Made here and removed at the end.
    classes: Vec<String>,
}

pub(super) const DRIVER: &str = "csi.hawser.dev";
/// What a local pool says of where it is; a shared one names itself.
const NODE_KEY: &str = "csi.hawser.dev/node";
/// The classes that scenarios use.
const CLASSES: &str = include_str!("manifests/classes.yaml");

/// What a scenario cannot do without.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Any cluster with hawser and two nodes.
    Cluster,
    /// A pool that all nodes see.
    SharedPool,
    /// The lab and its shared pool.
    Lab,
    /// The lab with a pool on each node.
    LabOfLocalPools,
}

impl<'a> Ground<'a> {
    pub(super) fn of_lab(lab: &'a Lab) -> Self {
        Self {
            cluster: &lab.cluster,
            nodes: lab.nodes.iter().filter(|node| node.is_running()).map(|node| node.name.clone()).collect(),
            lab: Some(lab),
            has_local_pools: lab.place.pools() == Pools::Local,
            classes: Vec::new(),
        }
    }

    /// Classes that are missing are made.
    pub(super) fn of_cluster(cluster: &'a Cluster) -> Result<Self> {
        let drivers = cluster.list("/apis/storage.k8s.io/v1/csinodes")?;
        let own =
            |object: &Value| object["spec"]["drivers"].as_array()?.iter().find(|one| one["name"] == DRIVER).cloned();
        let mut nodes: Vec<String> =
            drivers.iter().filter(|object| own(object).is_some()).map(|object| name_of(object).to_owned()).collect();
        nodes.sort();
        ensure(nodes.len() >= 2, || {
            format!("{DRIVER} is on the nodes {nodes:?} of this cluster; scenarios need it on two at least")
        })?;
        let has_local_pools =
            drivers.iter().filter_map(own).any(|driver| driver["topologyKeys"].to_string().contains(NODE_KEY));
        Ok(Self { cluster, nodes, lab: None, has_local_pools, classes: create_missing_classes(cluster)? })
    }

    /// `None`: the scenario can run here.
    pub(super) fn lacks(&self, needs: Needs) -> Option<&'static str> {
        match (needs, self.lab.is_some(), self.has_local_pools) {
            (Needs::LabOfLocalPools, true, true) => None,
            (Needs::LabOfLocalPools, _, _) => Some("needs the lab with --local-pools"),
            (Needs::Lab, false, _) => Some("needs the lab"),
            (Needs::SharedPool | Needs::Lab, _, true) => Some("needs a pool that all nodes share"),
            (Needs::Cluster | Needs::SharedPool | Needs::Lab, _, _) => None,
        }
    }

    /// Elsewhere the namespaces of scenarios must not be somebody's.
    pub(super) fn namespace(&self, scenario: &str) -> String {
        if self.lab.is_some() { scenario.to_owned() } else { format!("hawser-e2e-{scenario}") }
    }

    /// Removes what was made for all scenarios.
    pub(super) fn leave(&self) -> Result<()> {
        self.classes.iter().try_for_each(|class| self.cluster.kubectl(&["delete", class], None).map(drop))
    }
}

/// Kinds and names of those that were missing.
fn create_missing_classes(cluster: &Cluster) -> Result<Vec<String>> {
    let mut created = Vec::new();
    for class in CLASSES.split("\n---\n") {
        let text = |key: &str| class.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_default().trim();
        let object = format!("{}/{}", text("kind:"), text("name:"));
        let found = cluster.kubectl(&["get", &object, "--ignore-not-found", "--output", "name"], None);
        // A cluster without the definitions of snapshots has no such classes; its scenarios will say what they miss.
        if found.is_ok_and(|found| found.trim().is_empty()) {
            cluster.apply(class)?;
            created.push(object);
        }
    }
    Ok(created)
}
