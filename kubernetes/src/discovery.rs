//! Which agents there are, from the pods and Nodes of the cluster.
//!
//! A node is remembered longer than its pod: while a pod is replaced or cannot run, the volumes of the node are away and
//! not unknown. What was seen once is followed until its Node object is gone. For a controller that starts in such a
//! moment, the address is noted at the Node.

use agent::AgentAddress;
use std::collections::BTreeMap;
use volume::NodeId;

/// Of a pod, what tells where its agent is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SeenPod {
    pub(crate) node: Option<String>,
    /// `host:port`, once it has one.
    pub(crate) address: Option<String>,
    /// It runs, and is not being deleted.
    pub(crate) is_current: bool,
    /// Seconds since 1970.
    pub(crate) created: i64,
}

/// Of a Node, the address that is noted there.
pub(crate) type SeenNode = Option<String>;

/// What is to be done about what was seen.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Picture {
    pub(crate) follow: Vec<AgentAddress>,
    /// What must be there and cannot be followed yet, in words.
    pub(crate) awaited: Vec<String>,
    /// To be noted at the Nodes.
    pub(crate) notes: Vec<AgentAddress>,
}

/// The last known address of each node.
#[derive(Debug, Default)]
pub(crate) struct Discovery {
    remembered: BTreeMap<NodeId, String>,
}

impl Discovery {
    /// Both lists are whole.
    pub(crate) fn look(
        &mut self,
        pods: &BTreeMap<String, SeenPod>,
        nodes: &BTreeMap<String, SeenNode>,
        selector: &str,
    ) -> Picture {
        let mut with_pod: BTreeMap<NodeId, Option<&SeenPod>> = BTreeMap::new();
        for pod in pods.values() {
            let Some(node) = pod.node.as_deref().and_then(|node| NodeId::parse(node).ok()) else { continue };
            let best = with_pod.entry(node).or_default();
            let rank = |pod: &SeenPod| (pod.is_current, pod.created);
            if pod.address.is_some() && best.is_none_or(|best| rank(pod) > rank(best)) {
                *best = Some(pod);
            }
        }
        for (node, noted) in nodes {
            if let (Ok(node), Some(address)) = (NodeId::parse(node), noted) {
                self.remembered.entry(node).or_insert_with(|| address.clone());
            }
        }
        let mut notes = Vec::new();
        for (node, best) in &with_pod {
            let Some(address) = best.and_then(|pod| pod.address.clone()) else { continue };
            if nodes.get(node.as_str()).is_some_and(|noted| noted.as_ref() != Some(&address)) {
                notes.push(AgentAddress { node: node.clone(), address: address.clone() });
            }
            self.remembered.insert(node.clone(), address);
        }
        self.remembered.retain(|node, _| nodes.contains_key(node.as_str()) || with_pod.contains_key(node));
        let follow =
            self.remembered.iter().map(|(node, address)| AgentAddress { node: node.clone(), address: address.clone() });
        let follow: Vec<_> = follow.collect();
        let unaddressed = with_pod.keys().filter(|node| !self.remembered.contains_key(node));
        let mut awaited: Vec<String> =
            unaddressed.map(|node| format!("node {node}, whose pod has no address yet")).collect();
        if follow.is_empty() && awaited.is_empty() {
            awaited.push(format!("a pod with the label {selector}"));
        }
        Picture { follow, awaited, notes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: &str, address: Option<&str>, is_current: bool, created: i64) -> SeenPod {
        SeenPod { node: Some(node.to_owned()), address: address.map(str::to_owned), is_current, created }
    }

    fn named<V: Clone>(entries: &[(&str, V)]) -> BTreeMap<String, V> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    fn addresses(picture: &[AgentAddress]) -> Vec<(&str, &str)> {
        picture.iter().map(|one| (one.node.as_str(), one.address.as_str())).collect()
    }

    #[test]
    fn a_node_is_followed_until_its_object_is_gone() {
        let mut discovery = Discovery::default();
        let nodes = named(&[("n1", None), ("n2", None), ("other", None)]);
        let both = named(&[("a", pod("n1", Some("10.0.0.1:9809"), true, 1)), ("b", pod("n2", None, true, 1))]);
        let picture = discovery.look(&both, &nodes, "l=x");
        assert_eq!(addresses(&picture.follow), [("n1", "10.0.0.1:9809")]);
        assert_eq!(picture.awaited, ["node n2, whose pod has no address yet"]);
        assert_eq!(addresses(&picture.notes), [("n1", "10.0.0.1:9809")]);
        // The pods are deleted, and made again elsewhere.
        let picture = discovery.look(&named(&[]), &nodes, "l=x");
        assert_eq!(addresses(&picture.follow), [("n1", "10.0.0.1:9809")]);
        assert!(picture.notes.is_empty());
        let moved = named(&[("c", pod("n1", Some("10.0.0.9:9809"), true, 2))]);
        let picture = discovery.look(&moved, &nodes, "l=x");
        assert_eq!(addresses(&picture.follow), [("n1", "10.0.0.9:9809")]);
        // The machine is taken out of the cluster.
        let picture = discovery.look(&named(&[]), &named(&[("n2", None), ("other", None)]), "l=x");
        assert!(picture.follow.is_empty());
        assert_eq!(picture.awaited, ["a pod with the label l=x"]);
    }

    #[test]
    fn one_that_starts_while_a_pod_is_away_knows_the_node_all_the_same() {
        let nodes = named(&[("n1", Some("10.0.0.1:9809".to_owned())), ("other", None)]);
        let picture = Discovery::default().look(&named(&[]), &nodes, "l=x");
        assert_eq!(addresses(&picture.follow), [("n1", "10.0.0.1:9809")]);
        assert!(picture.awaited.is_empty());
    }

    #[test]
    fn the_pod_that_runs_counts_and_not_the_one_that_goes() {
        let nodes = named(&[("n1", Some("10.0.0.2:9809".to_owned()))]);
        let pods = named(&[
            ("evicted", pod("n1", Some("10.0.0.1:9809"), false, 3)),
            ("running", pod("n1", Some("10.0.0.2:9809"), true, 2)),
            ("pending", pod("n1", None, false, 4)),
        ]);
        let picture = Discovery::default().look(&pods, &nodes, "l=x");
        assert_eq!(addresses(&picture.follow), [("n1", "10.0.0.2:9809")]);
        assert!(picture.notes.is_empty() && picture.awaited.is_empty());
    }
}
