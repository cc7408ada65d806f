use super::fake::{Fake, map, names};
use crate::authority::publish;
use crate::request::NodeCertificate;
use crate::signing::answer;
use agent::{
    AgentAddress, AgentConfig, AgentServer, Agents, AuthorityPem, CertificateRequest, CredentialPem, Credentials,
    NodeState, Role, Signer, Validity,
};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::Api;
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use volume::{ErrorKind, Incarnation, NodeId, NodeIdentity, Result};

fn node(id: &str) -> NodeId {
    NodeId::parse(id).unwrap()
}

/// What a controller does, with the watch left out; or what one without any policy would do.
fn controller(fake: &Arc<Fake>, signer: Signer, has_policy: bool) -> AbortHandle {
    let fake = Arc::clone(fake);
    let requests: Api<CertificateSigningRequest> = Api::all(fake.controller());
    let task = tokio::spawn(async move {
        loop {
            for object in fake.requests() {
                let object: CertificateSigningRequest = serde_json::from_value(object).unwrap();
                if has_policy {
                    answer(&requests, &names(), &signer, object).await.unwrap();
                } else {
                    answer_all(&fake, &signer, &object);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    task.abort_handle()
}

fn answer_all(fake: &Fake, signer: &Signer, object: &CertificateSigningRequest) {
    let request = CertificateRequest::parse(std::str::from_utf8(&object.spec.request.0).unwrap()).unwrap();
    let cert = ByteString(signer.sign(&request, Validity::days(1)).unwrap().into_bytes());
    let mut answered = serde_json::to_value(object).unwrap();
    answered["status"] = json!({"certificate": cert});
    fake.put(&format!("{}/{}", super::fake::REQUESTS, object.metadata.name.as_ref().unwrap()), answered);
}

fn second(pem: &AuthorityPem) -> Signer {
    Signer::from_pem(pem).unwrap()
}

#[tokio::test]
async fn a_node_gets_its_certificate_and_keeps_it() {
    let (signer, pem) = Signer::generate().unwrap();
    let fake = Arc::new(Fake::with_chart());
    let dir = tempfile::tempdir().unwrap();
    let own = NodeCertificate::new(names(), node("n1"), dir.path());
    assert!(own.kept().is_err());
    let early = own.renew(&fake.node("n1")).await.unwrap_err();
    assert!(early.to_string().contains("ConfigMap ns/hawser-ca has no ca.crt yet"), "{early}");
    publish(&fake.controller(), &names(), signer.certificates()).await.unwrap();

    // Two controllers at once do no harm.
    let signing = [controller(&fake, signer, true), controller(&fake, second(&pem), true)];
    own.renew(&fake.node("n1")).await.unwrap();
    own.kept().unwrap();
    let mode = std::fs::metadata(&own.files().key).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let credentials = Credentials::load(own.files().clone(), &[Role::Node(node("n1"))]);
    assert!(credentials.is_ok(), "{credentials:?}");
    let [request] = &fake.requests()[..] else { panic!("one request") };
    let conditions = request["status"]["conditions"].as_array().unwrap();
    assert_eq!((conditions.len(), &conditions[0]["type"]), (1, &json!("Approved")));

    // Nothing more is asked while it is good.
    signing.iter().for_each(AbortHandle::abort);
    own.renew(&fake.node("n1")).await.unwrap();
    assert_eq!(fake.requests().len(), 1);
    // Another node's directory is of no use.
    assert!(NodeCertificate::new(names(), node("n2"), dir.path()).kept().is_err());
}

#[tokio::test]
async fn the_authority_changes_with_and_without_an_overlap() {
    let (old, old_pem) = Signer::generate().unwrap();
    let (new, new_pem) = Signer::generate().unwrap();
    let fake = Arc::new(Fake::with_chart());
    let dir = tempfile::tempdir().unwrap();
    let own = NodeCertificate::new(names(), node("n1"), dir.path());
    let client = fake.node("n1");
    publish(&fake.controller(), &names(), old.certificates()).await.unwrap();
    let signing = controller(&fake, old, true);
    own.renew(&client).await.unwrap();
    // Both are believed: nothing is asked for, and the file says both.
    let both = format!("{}{}", new_pem.certificates, old_pem.certificates);
    publish(&fake.controller(), &names(), &both).await.unwrap();
    own.renew(&client).await.unwrap();
    assert_eq!(fake.requests().len(), 1);
    assert_eq!(std::fs::read_to_string(&own.files().ca).unwrap(), both);
    // The old one goes: its certificate does not count any more.
    signing.abort();
    let _signing = controller(&fake, new, true);
    publish(&fake.controller(), &names(), &new_pem.certificates).await.unwrap();
    own.renew(&client).await.unwrap();
    assert_eq!(fake.requests().len(), 2);
    own.kept().unwrap();
    // What is no authority is not believed.
    fake.put(&map(), json!({"metadata": {"name": "hawser-ca", "resourceVersion": "9"}, "data": {"ca.crt": "x"}}));
    assert!(own.renew(&client).await.unwrap_err().to_string().contains("ConfigMap ns/hawser-ca has no authorities"));
    own.kept().unwrap();
}

/// Node n2 asks in the name of n1. What it has in the end to show as n1's agent.
async fn impersonate(signer: &Signer, pem: &AuthorityPem, has_policy: bool, dir: &Path) -> Result<CredentialPem> {
    let fake = Arc::new(Fake::with_chart());
    publish(&fake.controller(), &names(), signer.certificates()).await.unwrap();
    let signing = controller(&fake, second(pem), has_policy);
    let thief = NodeCertificate::new(names(), node("n1"), dir);
    let got = thief.renew(&fake.node("n2")).await;
    signing.abort();
    got?;
    CredentialPem::read(thief.files())
}

/// How n1 looks to a controller when the agent at its address shows this.
async fn seen_as_n1(signer: &Signer, shown: &CredentialPem) -> NodeState {
    let credentials = Credentials::awaited("");
    credentials.set(shown, &[]).unwrap();
    let identity = NodeIdentity { id: node("n1"), incarnation: Incarnation::new_random(), boot_id: "boot".to_owned() };
    let server = AgentServer::bind(AgentConfig {
        node: node("n1"),
        listen: ([127, 0, 0, 1], 0).into(),
        heartbeat: Duration::from_millis(50),
        credentials,
        backends: Vec::new(),
        identify: Arc::new(move || Ok(identity.clone().into())),
        runtime: rpc::Runtime::new(rpc::Metrics::new(), Duration::from_secs(10)),
        doubted: Arc::default(),
    });
    let server = server.await.unwrap();
    let address = server.address().unwrap().to_string();
    let (_stop, stopping) = watch::channel(false);
    let serving = tokio::spawn(server.serve(stopping));
    let own = Credentials::awaited("");
    own.set(&signer.issue("controller", &[Role::Controller], Validity::days(1)).unwrap(), &[]).unwrap();
    let beat = Duration::from_millis(50);
    let agents = Agents::new(Vec::new(), own, beat, Duration::from_secs(10), tokio::runtime::Handle::current());
    agents.follow(&[AgentAddress { node: node("n1"), address }]);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let state = agents.nodes().remove(0);
        if state.is_connected || !state.problem.contains("being connected") {
            serving.abort();
            return state;
        }
        assert!(Instant::now() < deadline, "{state:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_becomes_another() {
    let (signer, pem) = Signer::generate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let refused = impersonate(&signer, &pem, true, dir.path()).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert!(refused.to_string().contains("name of node n1 and comes from node n2"), "{refused}");
    // What it does get is its own certificate, which is no use at the address of n1.
    let own = signer.issue("n2", &[Role::Node(node("n2"))], Validity::days(1)).unwrap();
    let state = seen_as_n1(&signer, &own).await;
    assert!(!state.is_connected && state.problem.contains("is of node n2, not of node n1"), "{state:?}");

    // Without the policy it would be let in, so it is the policy that keeps it out.
    let stolen = impersonate(&signer, &pem, false, dir.path()).await.ok().unwrap();
    let state = seen_as_n1(&signer, &stolen).await;
    assert!(state.is_connected, "{state:?}");
}
