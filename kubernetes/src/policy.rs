//! Who may have which certificate.

use crate::names::{Names, SIGNER};
use agent::CertificateRequest;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use std::time::Duration;

/// What to do with a request.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is another signer's, or has been answered.
    Pass,
    Sign {
        request: CertificateRequest,
        lasting: Duration,
    },
    /// Why, for its sender.
    Deny(String),
}

/// What nodes ask for. A stolen certificate is of use for no longer.
pub(crate) const LASTING: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The claim of a bound service account token, which the API server takes from the token itself.
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";
pub(crate) const USAGES: [&str; 2] = ["digital signature", "server auth"];

/// A node gets the certificate of its own agent, and nobody gets any other. The API server vouches for who asks
/// (`username`, `extra`); the request itself is only what somebody says.
pub(crate) fn judge(object: &CertificateSigningRequest, names: &Names) -> Verdict {
    if object.spec.signer_name != SIGNER || is_answered(object) {
        return Verdict::Pass;
    }
    match check(&object.spec, names) {
        Ok((request, lasting)) => Verdict::Sign { request, lasting },
        Err(why) => Verdict::Deny(why),
    }
}

fn is_answered(object: &CertificateSigningRequest) -> bool {
    let Some(status) = &object.status else { return false };
    let is_over = |condition: &str| condition == "Denied" || condition == "Failed";
    status.certificate.is_some() || status.conditions.iter().flatten().any(|condition| is_over(&condition.type_))
}

fn check(spec: &CertificateSigningRequestSpec, names: &Names) -> Result<(CertificateRequest, Duration), String> {
    let user = spec.username.as_deref().unwrap_or_default();
    let expected = names.node_user();
    if user != expected {
        return Err(format!("{user:?} asks; certificates of agents are for {expected}"));
    }
    let claimed = spec.extra.as_ref().and_then(|extra| extra.get(NODE_CLAIM)).map_or(&[][..], Vec::as_slice);
    let [node] = claimed else {
        return Err(format!(
            "the token of {user} is not bound to one node (no {NODE_CLAIM}); Kubernetes 1.32 or later is needed, and the token of a pod"
        ));
    };
    let mut usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    usages.sort_unstable();
    usages.dedup();
    if usages != USAGES {
        return Err(format!("it is to be used for {}; an agent's is for {}", usages.join(", "), USAGES.join(", ")));
    }
    let pem = std::str::from_utf8(&spec.request.0).map_err(|_| "the request is no text".to_owned())?;
    let request = CertificateRequest::parse(pem).map_err(|error| error.chain())?;
    if request.node.as_str() != node {
        return Err(format!("it asks for the name of node {} and comes from node {node}", request.node));
    }
    // A longer wish is shortened, as signers may do: nodes of another version get along.
    let wish = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    Ok((request, wish.map_or(LASTING, |wish| wish.min(LASTING))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::names;
    use serde_json::{Value, json};
    use volume::NodeId;

    /// What node n1 asks for, and `change` of it.
    fn judged(change: impl FnOnce(&mut Value)) -> Verdict {
        let (_, pem) = CertificateRequest::make(&NodeId::parse("n1").unwrap()).unwrap();
        let mut object = json!({"metadata": {"name": "r"}, "spec": {
            "request": k8s_openapi::ByteString(pem.into_bytes()),
            "signerName": "csi.hawser.dev/agent",
            "usages": ["server auth", "digital signature"],
            "username": "system:serviceaccount:ns:hawser-node",
            "extra": {"authentication.kubernetes.io/node-name": ["n1"]},
        }});
        change(&mut object);
        judge(&serde_json::from_value(object).unwrap(), &names())
    }

    #[test]
    fn a_node_gets_its_own_for_a_week_at_most() {
        let lasting = |seconds: Option<i64>| match judged(|object| object["spec"]["expirationSeconds"] = json!(seconds))
        {
            Verdict::Sign { request, lasting } if request.node.as_str() == "n1" => lasting,
            other => panic!("{other:?}"),
        };
        assert_eq!(lasting(None), LASTING);
        assert_eq!(lasting(Some(600)), Duration::from_secs(600));
        assert_eq!(lasting(Some(30 * 24 * 3600)), LASTING);
    }

    #[test]
    fn whose_request_is_refused() {
        let of_node = |id: &str| CertificateRequest::make(&NodeId::parse(id).unwrap()).unwrap().1;
        let claim = "authentication.kubernetes.io/node-name";
        type Change = Box<dyn FnOnce(&mut Value)>;
        let cases: Vec<(Change, &str)> = vec![
            (Box::new(|o| o["spec"]["username"] = json!("system:serviceaccount:ns:default")), "ns:default"),
            (
                Box::new(|o| o["spec"]["username"] = json!("system:serviceaccount:other:hawser-node")),
                "other:hawser-node",
            ),
            (Box::new(|o| o["spec"]["username"] = json!("system:node:n1")), "system:node:n1"),
            (Box::new(|o| o["spec"]["username"] = Value::Null), "\"\" asks"),
            (Box::new(move |o| o["spec"]["extra"][claim] = json!(["n2"])), "name of node n1 and comes from node n2"),
            (Box::new(move |o| o["spec"]["extra"][claim] = json!(["n1", "n2"])), "not bound to one node"),
            (Box::new(move |o| o["spec"]["extra"][claim] = json!([])), "not bound to one node"),
            (Box::new(|o| o["spec"]["extra"] = Value::Null), "not bound to one node"),
            (Box::new(|o| o["spec"]["usages"] = json!(["digital signature", "client auth"])), "client auth"),
            (Box::new(|o| o["spec"]["usages"] = json!(["digital signature", "server auth", "cert sign"])), "cert sign"),
            (Box::new(|o| o["spec"]["usages"] = json!([])), "to be used for"),
            (
                Box::new(move |o| o["spec"]["request"] = json!(k8s_openapi::ByteString(of_node("n2").into_bytes()))),
                "name of node n2 and comes from node n1",
            ),
            (Box::new(|o| o["spec"]["request"] = json!(k8s_openapi::ByteString(b"none".to_vec()))), "cannot be used"),
            (Box::new(|o| o["spec"]["request"] = json!(k8s_openapi::ByteString(vec![0xff]))), "no text"),
        ];
        for (change, expected) in cases {
            match judged(change) {
                Verdict::Deny(why) => assert!(why.contains(expected), "{expected}: {why}"),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_not_to_be_answered() {
        let passed = |change: fn(&mut Value)| assert!(matches!(judged(change), Verdict::Pass));
        passed(|object| object["spec"]["signerName"] = json!("kubernetes.io/kubelet-serving"));
        passed(|object| object["status"] = json!({"certificate": "eA=="}));
        passed(|object| object["status"] = json!({"conditions": [{"type": "Denied", "status": "True"}]}));
        passed(|object| object["status"] = json!({"conditions": [{"type": "Failed", "status": "True"}]}));
        // Approved by a controller that died before it signed.
        let approved =
            judged(|object| object["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]}));
        assert!(matches!(approved, Verdict::Sign { .. }));
    }
}
