//! Answers the requests of nodes for certificates. Every controller does it; the API server lets one answer through.

use crate::client::{explain, explain_watch};
use crate::names::{Names, SIGNER};
use crate::policy::{Verdict, judge};
use agent::{Signer, Validity};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use kube::api::PostParams;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use volume::{ErrorKind, Result};

const TRY_AGAIN: Duration = Duration::from_secs(3);
/// An error after so much quiet is news again.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// As it is shown by `kubectl describe csr`.
const REASON: &str = "HawserPolicy";

/// For as long as somebody sends signers.
pub async fn sign_requests(client: Client, names: Names, mut signers: watch::Receiver<Option<Arc<Signer>>>) {
    if signers.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let requests: Api<CertificateSigningRequest> = Api::all(client);
    let mut last = String::new();
    loop {
        let began = Instant::now();
        // It begins with all that are there, so that none is lost by an error.
        if let Err(error) = watch_requests(&requests, &names, &signers).await {
            let text = error.chain();
            if text != last || began.elapsed() > TELL_AGAIN {
                tracing::error!(error = text, "requests for certificates are not answered; trying again");
                last = text;
            }
        }
        if signers.has_changed().is_err() {
            return;
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

async fn watch_requests(
    requests: &Api<CertificateSigningRequest>,
    names: &Names,
    signers: &watch::Receiver<Option<Arc<Signer>>>,
) -> Result<()> {
    let config = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
    let mut events = pin!(watcher(requests.clone(), config));
    while let Some(event) = events.next().await {
        let event = event.map_err(|error| explain_watch("watch requests for certificates", error))?;
        if let watcher::Event::Apply(object) | watcher::Event::InitApply(object) = event {
            let signer = signers.borrow().clone();
            let Some(signer) = signer else { continue };
            answer(requests, names, &signer, object).await?;
        }
    }
    Ok(())
}

/// `Ok` as well where another controller was faster.
pub(crate) async fn answer(
    requests: &Api<CertificateSigningRequest>,
    names: &Names,
    signer: &Signer,
    object: CertificateSigningRequest,
) -> Result<()> {
    let name = object.name_any();
    let answered = match judge(&object, names) {
        Verdict::Pass => return Ok(()),
        Verdict::Deny(why) if is_approved(&object) => {
            tracing::error!(request = name, why, "somebody approved a request that must not be; it is not signed");
            return Ok(());
        }
        Verdict::Deny(why) => {
            tracing::warn!(request = name, why, "a request for a certificate is denied");
            condition(requests, object, "Denied", &why).await.map(drop)
        }
        Verdict::Sign { request, lasting } => {
            let cert = signer.sign(&request, Validity::lasting(lasting))?;
            let node = request.node.clone();
            let message = format!("node {node} asks for its own agent");
            sign(requests, object, &message, cert).await.inspect(|()| {
                tracing::info!(%node, request = name, "the certificate of an agent was signed");
            })
        }
    };
    match answered {
        Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::NotFound) => Ok(()),
        other => other,
    }
}

async fn sign(
    requests: &Api<CertificateSigningRequest>,
    object: CertificateSigningRequest,
    message: &str,
    cert: String,
) -> Result<()> {
    let name = object.name_any();
    let mut approved = match is_approved(&object) {
        true => object,
        false => condition(requests, object, "Approved", message).await?,
    };
    approved.status.get_or_insert_default().certificate = Some(ByteString(cert.into_bytes()));
    let replaced = requests.replace_status(&name, &PostParams::default(), &approved).await;
    replaced.map(drop).map_err(|error| explain(&format!("put the certificate into the request {name}"), error))
}

async fn condition(
    requests: &Api<CertificateSigningRequest>,
    mut object: CertificateSigningRequest,
    type_: &str,
    message: &str,
) -> Result<CertificateSigningRequest> {
    let condition = CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(REASON.to_owned()),
        message: Some(message.to_owned()),
        ..CertificateSigningRequestCondition::default()
    };
    object.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
    let name = object.name_any();
    let replaced = requests.replace_subresource("approval", &name, &PostParams::default(), &object).await;
    replaced.map_err(|error| explain(&format!("answer the request {name}"), error))
}

fn is_approved(object: &CertificateSigningRequest) -> bool {
    let conditions = object.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|conditions| conditions.iter().any(|condition| condition.type_ == "Approved"))
}
