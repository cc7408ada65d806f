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
