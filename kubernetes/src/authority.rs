//! The authority of an installation: its key is in a Secret, its certificates are in a ConfigMap for the nodes.

use crate::client::explain;
use crate::names::Names;
use agent::{AuthorityPem, Credentials, Role, Signer, Validity};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::PostParams;
use kube::{Api, Client};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use volume::{Error, ErrorKind, Result};

pub(crate) const CERTIFICATES: &str = "ca.crt";
const KEY: &str = "ca.key";
/// Each time one of two controllers was faster; more would be somebody else at work.
const TRIES: u32 = 5;
/// How soon a change of the Secret is seen.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_secs(3);
const OWN_LASTING: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// For ever: reads or makes the authority, gives it to `signers`, and keeps the controller's own `credentials` valid.
pub async fn keep_authority(
    client: Client,
    names: Names,
    credentials: Arc<Credentials>,
    signers: watch::Sender<Option<Arc<Signer>>>,
) {
    let mut own = Own { kept: None, renew_at: SystemTime::UNIX_EPOCH };
    let mut last = None;
    loop {
        let kept = own.keep(&client, &names, &credentials, &signers).await;
        let failure = kept.err().map(|error| error.chain());
        if failure != last {
            match &failure {
                Some(error) => tracing::error!(error, "the authority of agents is not as it should be; trying again"),
                None => tracing::info!("the authority of agents is there"),
            }
        }
        tokio::time::sleep(if failure.is_some() { TRY_AGAIN } else { LOOK_AGAIN }).await;
        last = failure;
    }
}

/// What the present certificate was made with.
struct Own {
    kept: Option<AuthorityPem>,
    renew_at: SystemTime,
}

impl Own {
    async fn keep(
        &mut self,
        client: &Client,
        names: &Names,
        credentials: &Credentials,
        signers: &watch::Sender<Option<Arc<Signer>>>,
    ) -> Result<()> {
        let pem = ensure_authority(client, names).await?;
        if self.kept.as_ref() != Some(&pem) || SystemTime::now() >= self.renew_at {
            let signer = read(&pem, names)?;
            let (roles, validity) = ([Role::Controller, Role::Supervisor], Validity::lasting(OWN_LASTING));
            credentials.set(&signer.issue("controller", &roles, validity)?, &roles)?;
            signers.send_replace(Some(Arc::new(signer)));
            self.renew_at = validity.renew_at();
            self.kept = Some(pem.clone());
        }
        // Last: nodes believe who can show a certificate of it already.
        publish(client, names, &pem.certificates).await
    }
}

/// The one in the Secret; a new one where the Secret is empty. A damaged one is never overwritten.
pub(crate) async fn ensure_authority(client: &Client, names: &Names) -> Result<AuthorityPem> {
    let name = names.authority();
    let shown = names.of("Secret", &name);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &names.namespace);
    for _ in 0..TRIES {
        let mut secret = secrets.get(&name).await.map_err(|error| absent(explain(&format!("read {shown}"), error)))?;
        if let Some(pem) = kept(&secret, &shown)? {
            read(&pem, names)?;
            return Ok(pem);
        }
        let (_, pem) = Signer::generate()?;
        let data = secret.data.get_or_insert_default();
        data.insert(CERTIFICATES.to_owned(), ByteString(pem.certificates.clone().into_bytes()));
        data.insert(KEY.to_owned(), ByteString(pem.key.clone().into_bytes()));
        // It carries the version that was read: of two controllers one is refused, and reads what the other made.
        match secrets.replace(&name, &PostParams::default(), &secret).await {
            Ok(_) => {
                tracing::info!("a new authority of agents was put into {shown}");
                return Ok(pem);
            }
            Err(error) => match explain(&format!("fill {shown}"), error) {
                conflict if conflict.kind() == ErrorKind::Busy => {}
                other => return Err(other),
            },
        }
    }
    Err(Error::new(ErrorKind::Busy, format!("{shown} is changed all the time by somebody else")))
}

fn absent(error: Error) -> Error {
    if error.kind() == ErrorKind::NotFound {
        return error.context("the chart makes it, empty; make it, or install the chart again");
    }
    error
}

/// `None` where it is empty.
fn kept(secret: &Secret, shown: &str) -> Result<Option<AuthorityPem>> {
    let text = |key: &str| -> Result<String> {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).map_or(&[][..], |value| &value.0);
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| damaged(shown, &format!("{key} is no text")))
    };
    let (certificates, key) = (text(CERTIFICATES)?, text(KEY)?);
    match (certificates.trim().is_empty(), key.trim().is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(AuthorityPem { certificates, key })),
        (true, false) => Err(damaged(shown, &format!("{KEY} is there and {CERTIFICATES} is not"))),
        (false, true) => Err(damaged(shown, &format!("{CERTIFICATES} is there and {KEY} is not"))),
    }
}

fn read(pem: &AuthorityPem, names: &Names) -> Result<Signer> {
    Signer::from_pem(pem).map_err(|error| damaged(&names.of("Secret", &names.authority()), &error.chain()))
}

fn damaged(shown: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "{shown} holds no authority that can be used: {why}. It is left as it is. Put {CERTIFICATES} and {KEY} back; or take both out, and a new authority is made, of which every node asks for a new certificate"
        ),
    )
}

/// In place of what is there: the Secret is what counts.
pub(crate) async fn publish(client: &Client, names: &Names, certificates: &str) -> Result<()> {
    let name = names.authority();
    let shown = names.of("ConfigMap", &name);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &names.namespace);
    for _ in 0..TRIES {
        let mut map = maps.get(&name).await.map_err(|error| absent(explain(&format!("read {shown}"), error)))?;
        let data = map.data.get_or_insert_default();
        if data.get(CERTIFICATES).is_some_and(|present| present == certificates) {
            return Ok(());
        }
        data.insert(CERTIFICATES.to_owned(), certificates.to_owned());
        match maps.replace(&name, &PostParams::default(), &map).await {
            Ok(_) => return Ok(()),
            Err(error) => match explain(&format!("write {shown}"), error) {
                conflict if conflict.kind() == ErrorKind::Busy => {}
                other => return Err(other),
            },
        }
    }
    Err(Error::new(ErrorKind::Busy, format!("{shown} is changed all the time by somebody else")))
}
