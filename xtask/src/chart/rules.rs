//! What every rendering of the chart must keep to.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

type Rule = (&'static str, fn(&[Value]) -> Vec<String>);

const RULES: [Rule; 6] = [
    ("every object is whole", whole),
    ("no two objects are one", distinct),
    ("permissions have no wildcards", wildcards),
    ("secrets are named", secrets),
    ("only the node's pod is privileged", privileges),
    ("the controller's pod is nobody's", unprivileged_controller),
];
/// Kinds that belong to no namespace.
const CLUSTER_WIDE: [&str; 8] = [
    "CSIDriver",
    "ClusterRole",
    "ClusterRoleBinding",
    "SnapshotMetadataService",
    "StorageClass",
    "VolumeAttributesClass",
    "VolumeGroupSnapshotClass",
    "VolumeSnapshotClass",
];
const DOCUMENT_OF_METRICS: &str = "docs/operations.md";

/// Each rule, and what breaks it.
pub(super) fn check(rendered: &str, root: &Path) -> Vec<(&'static str, Vec<String>)> {
    let documents: Vec<Value> = match serde_saphyr::from_multiple(rendered) {
        Ok(documents) => documents,
        Err(error) => return vec![("it is YAML", vec![error.to_string()])],
    };
    let documents: Vec<Value> = documents.into_iter().filter(|document| !document.is_null()).collect();
    let mut found: Vec<_> = RULES.iter().map(|(name, rule)| (*name, rule(&documents))).collect();
    let known = std::fs::read_to_string(root.join(DOCUMENT_OF_METRICS)).unwrap_or_default();
    found.push(("metrics are documented ones", unknown_metrics(rendered, &known)));
    found
}

fn whole(documents: &[Value]) -> Vec<String> {
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let is_whole = |document: &&Value| {
        let is_placed = CLUSTER_WIDE.contains(&document["kind"].as_str().unwrap_or_default())
            != is_text(&document["metadata"]["namespace"]);
        is_placed
            && ["apiVersion", "kind"].iter().all(|key| is_text(&document[*key]))
            && is_text(&document["metadata"]["name"])
    };
    if documents.is_empty() {
        return vec!["nothing was rendered".to_owned()];
    }
    documents.iter().filter(|document| !is_whole(document)).map(name).collect()
}

fn distinct(documents: &[Value]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    documents.iter().map(name).filter(|name| !seen.insert(name.clone())).collect()
}

fn wildcards(documents: &[Value]) -> Vec<String> {
    let has_wildcard = |rule: &Value| {
        ["apiGroups", "resources", "verbs"].iter().any(|key| {
            let named = rule[*key].as_array().is_some_and(|all| !all.is_empty());
            !named || list(&rule[*key]).iter().any(|entry| entry.contains('*'))
        })
    };
    roles(documents).filter(|(_, rule)| has_wildcard(rule)).map(|(name, rule)| format!("{name}: {rule}")).collect()
}

/// A Secret of somebody else is none of its business.
fn secrets(documents: &[Value]) -> Vec<String> {
    let is_open =
        |rule: &Value| list(&rule["resources"]).contains(&"secrets") && list(&rule["resourceNames"]).is_empty();
    roles(documents).filter(|(_, rule)| is_open(rule)).map(|(name, rule)| format!("{name}: {rule}")).collect()
}

fn privileges(documents: &[Value]) -> Vec<String> {
    let mut broken = Vec::new();
    for document in pods(documents).filter(|document| document["kind"] != "DaemonSet") {
        let pod = &document["spec"]["template"]["spec"];
        let shared = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|key| pod[*key] == true);
        broken.extend(shared.map(|key| format!("{} has {key}", name(document))));
        let host = array(&pod["volumes"]).iter().filter(|volume| !volume["hostPath"].is_null());
        broken.extend(host.map(|volume| format!("{} mounts {} of the host", name(document), volume["hostPath"])));
        let privileged = containers(pod).filter(|container| container["securityContext"]["privileged"] == true);
        broken.extend(privileged.map(|container| format!("{}: {} is privileged", name(document), container["name"])));
    }
    broken
}

fn unprivileged_controller(documents: &[Value]) -> Vec<String> {
    let mut broken = Vec::new();
    for document in pods(documents).filter(|document| document["kind"] == "Deployment") {
        let pod = &document["spec"]["template"]["spec"];
        let of_pod = &pod["securityContext"];
        if of_pod["runAsNonRoot"] != true || of_pod["seccompProfile"]["type"] != "RuntimeDefault" {
            broken.push(format!("{}: {of_pod}", name(document)));
        }
        let is_bare = |container: &&Value| {
            let context = &container["securityContext"];
            context["readOnlyRootFilesystem"] == true
                && context["allowPrivilegeEscalation"] == false
                && list(&context["capabilities"]["drop"]) == ["ALL"]
                && context["capabilities"]["add"].is_null()
        };
        let others = containers(pod).filter(|container| !is_bare(container));
        broken.extend(others.map(|container| format!("{}: {}", name(document), container["name"])));
    }
    broken
}

fn unknown_metrics(rendered: &str, known: &str) -> Vec<String> {
    let is_part = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    let words = rendered.split(|letter: char| !is_part(letter)).filter(|word| word.starts_with("hawser_"));
    let names: BTreeSet<&str> = words.map(|word| word.trim_end_matches("_bucket")).collect();
    names.into_iter().filter(|name| !known.contains(&format!("`{name}"))).map(str::to_owned).collect()
}

/// Each rule of each role, with the role's name.
fn roles(documents: &[Value]) -> impl Iterator<Item = (String, &Value)> {
    let roles = documents.iter().filter(|document| document["kind"] == "Role" || document["kind"] == "ClusterRole");
    roles.flat_map(|document| array(&document["rules"]).iter().map(move |rule| (name(document), rule)))
}

fn pods(documents: &[Value]) -> impl Iterator<Item = &Value> {
    documents.iter().filter(|document| document["spec"]["template"]["spec"].is_object())
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().flat_map(|key| array(&pod[key]))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn list(value: &Value) -> Vec<&str> {
    array(value).iter().filter_map(Value::as_str).collect()
}

fn name(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{} {}", text(&document["kind"]), text(&document["metadata"]["name"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each rule, broken.
    #[test]
    fn what_breaks_a_rule_is_named() {
        let rendered = r#"
kind: ClusterRole
apiVersion: v1
metadata: {name: all}
rules:
  - {apiGroups: [""], resources: [secrets], verbs: [get]}
  - {apiGroups: [""], resources: [pods], verbs: ["*"]}
  - {apiGroups: [""], resources: [pods], verbs: []}
---
kind: Deployment
apiVersion: v1
metadata: {name: controller}
spec:
  template:
    spec:
      hostNetwork: true
      volumes: [{name: a, hostPath: {path: /}}]
      containers:
        - {name: a, securityContext: {privileged: true}}
---
kind: ClusterRole
apiVersion: v1
metadata: {name: all}
data: hawser_no_such_thing_bucket
"#;
        let found = check(rendered, Path::new("/nonexistent"));
        let broken: Vec<(&str, usize)> = found.iter().map(|(rule, broken)| (*rule, broken.len())).collect();
        assert_eq!(
            broken,
            [
                ("every object is whole", 1),
                ("no two objects are one", 1),
                ("permissions have no wildcards", 2),
                ("secrets are named", 1),
                ("only the node's pod is privileged", 3),
                ("the controller's pod is nobody's", 2),
                ("metrics are documented ones", 1),
            ]
        );
        assert_eq!(check("a: [", Path::new("/"))[0].0, "it is YAML");
        assert_eq!(check("", Path::new("/"))[0].1, ["nothing was rendered"]);
    }
}
