//! A node's own certificate: kept on the node, asked for when there is none, and renewed in time.

use crate::authority::CERTIFICATES;
use crate::client::{connect, explain};
use crate::names::{AGENT_LABEL, Names, SIGNER};
use crate::policy::{LASTING, USAGES};
use agent::{CertificateRequest, CredentialFiles, CredentialPem, Validity, check_authorities, check_node_certificate};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use volume::{Error, ErrorKind, NodeId, Result};

/// Of one node.
#[derive(Debug, Clone)]
pub struct NodeCertificate {
    names: Names,
    node: NodeId,
    files: CredentialFiles,
}

/// How soon a node believes a new authority that no controller has shown to it yet. Each look is one small request, and
/// nothing stays in memory between two.
const LOOK_AGAIN: Duration = Duration::from_secs(10 * 60);
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks in any case, since whoever reaches the agent can cause them.
const SHORTEST_PAUSE: Duration = Duration::from_secs(2);
/// After an answer that is no.
const TRY_LATER: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Then it is asked for anew.
const ANSWER_LIMIT: Duration = Duration::from_secs(5 * 60);

impl NodeCertificate {
    /// Kept in `directory`, which is for this user alone.
    pub fn new(names: Names, node: NodeId, directory: &Path) -> Self {
        // Key and certificate in one file, so that they are renewed at one instant.
        let own: PathBuf = directory.join("agent.pem");
        let files = CredentialFiles { ca: directory.join("agent-ca.pem"), cert: own.clone(), key: own };
        Self { names, node, files }
    }

    pub fn files(&self) -> &CredentialFiles {
        &self.files
    }

    /// Until when the kept one can be used; an error says why it cannot.
    pub fn kept(&self) -> Result<Validity> {
        check_node_certificate(&CredentialPem::read(&self.files)?, &self.node)
    }

    /// For ever: `is_there` becomes true when there is a certificate that can be used. What the cluster says of authorities
    /// is looked at now and then, and soon after the agent and a controller did not believe the same one: then the
    /// installation has a new one, or a controller is behind.
    pub async fn keep(self, is_there: watch::Sender<bool>, doubted: Arc<Notify>) {
        let mut last = None;
        loop {
            let kept = match connect() {
                Ok(client) => self.renew(&client).await,
                Err(error) => Err(error),
            };
            if kept.is_ok() {
                is_there.send_replace(true);
            }
            let pause = match &kept {
                Ok(validity) => {
                    let left = validity.renew_at().duration_since(SystemTime::now()).unwrap_or_default();
                    left.clamp(TRY_AGAIN, LOOK_AGAIN)
                }
                // The agent serves with what it has, or the answer was no.
                Err(error) if error.kind() == ErrorKind::PermissionDenied || self.kept().is_ok() => TRY_LATER,
                Err(_) => TRY_AGAIN,
            };
            // A request that was refused is not made again each time that a controller connects.
            let heeds_doubt = kept.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::Unavailable);
            let failure = kept.err().map(|error| error.chain());
            if failure != last {
                match &failure {
                    Some(error) => tracing::error!(error, "the certificate of this node's agent; trying again"),
                    None => tracing::info!("the certificate of this node's agent is in order"),
                }
                last = failure;
            }
            tokio::time::sleep(SHORTEST_PAUSE).await;
            tokio::select! {
                () = tokio::time::sleep(pause.saturating_sub(SHORTEST_PAUSE)) => {}
                () = doubted.notified(), if heeds_doubt => {}
            }
        }
    }

    /// Believes whom the cluster says, and asks for a certificate where the kept one is old or not of them.
    pub(crate) async fn renew(&self, client: &Client) -> Result<Validity> {
        let ca = self.authorities(client).await?;
        if std::fs::read_to_string(&self.files.ca).ok().as_ref() != Some(&ca) {
            CredentialPem::store_authorities(&self.files, &ca)?;
        }
        match self.kept() {
            Ok(validity) if SystemTime::now() < validity.renew_at() => return Ok(validity),
            Ok(_) => tracing::info!("it is time for a new certificate of this node's agent"),
            Err(why) => tracing::info!(why = why.chain(), "a certificate of this node's agent is needed"),
        }
        let own = self.ask(client, ca).await?;
        let validity = check_node_certificate(&own, &self.node)
            .map_err(|error| error.context("the certificate that came cannot be used"))?;
        own.store(&self.files)?;
        Ok(validity)
    }

    async fn authorities(&self, client: &Client) -> Result<String> {
        let name = self.names.authority();
        let shown = self.names.of("ConfigMap", &name);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &self.names.namespace);
        let map = maps.get(&name).await.map_err(|error| explain(&format!("read {shown}"), error))?;
        let ca = map.data.and_then(|mut data| data.remove(CERTIFICATES)).unwrap_or_default();
        if ca.trim().is_empty() {
            let message = format!("{shown} has no {CERTIFICATES} yet; a controller puts it there when it starts");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        check_authorities(&ca).map_err(|error| error.context(format!("{shown} has no authorities")))?;
        Ok(ca)
    }

    async fn ask(&self, client: &Client, ca: String) -> Result<CredentialPem> {
        let (key, request) = CertificateRequest::make(&self.node)?;
        let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
        let object = CertificateSigningRequest {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-node-", self.names.name)),
                labels: Some([(AGENT_LABEL.to_owned(), self.names.name.clone())].into()),
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(request.into_bytes()),
                signer_name: SIGNER.to_owned(),
                usages: Some(USAGES.map(str::to_owned).to_vec()),
                expiration_seconds: i32::try_from(LASTING.as_secs()).ok(),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let made = requests.create(&PostParams::default(), &object).await;
        let name = made.map_err(|error| explain("make a CertificateSigningRequest", error))?.name_any();
        tracing::info!(request = name, "waiting for a controller to sign the certificate of this node's agent");
        let waited = tokio::time::timeout(ANSWER_LIMIT, answer(&requests, &name)).await;
        let cert = waited.unwrap_or_else(|_| {
            let seconds = ANSWER_LIMIT.as_secs();
            let message = format!("no controller answered the CertificateSigningRequest {name} within {seconds} s");
            Err(Error::new(ErrorKind::Timeout, message))
        })?;
        Ok(CredentialPem { ca, cert, key })
    }
}

async fn answer(requests: &Api<CertificateSigningRequest>, name: &str) -> Result<String> {
    loop {
        let what = format!("read the CertificateSigningRequest {name}");
        let object = requests.get(name).await.map_err(|error| explain(&what, error))?;
        let status = object.status.unwrap_or_default();
        if let Some(cert) = status.certificate {
            return String::from_utf8(cert.0)
                .map_err(|_| Error::internal(format!("the certificate in {name} is no text")));
        }
        let refused = |type_: &str| type_ == "Denied" || type_ == "Failed";
        if let Some(no) = status.conditions.iter().flatten().find(|condition| refused(&condition.type_)) {
            let why = no.message.as_deref().unwrap_or("no reason is given");
            let message = format!("the CertificateSigningRequest {name} is {}: {why}", no.type_.to_lowercase());
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
