use super::fake::{Fake, map, names, secret};
use crate::authority::{ensure_authority, publish};
use agent::{AuthorityPem, Signer};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Barrier;
use volume::ErrorKind;

fn data(pem: &AuthorityPem) -> Value {
    let bytes = |text: &str| serde_json::to_value(ByteString(text.as_bytes().to_vec())).unwrap();
    json!({"ca.crt": bytes(&pem.certificates), "ca.key": bytes(&pem.key)})
}

fn object(data: &Value) -> Value {
    json!({"metadata": {"name": "hawser-ca", "resourceVersion": "7"}, "data": data})
}

/// Both read the empty Secret before either fills it.
async fn two_at_once(is_careless: bool) -> (AuthorityPem, AuthorityPem) {
    let mut fake = Fake::with_chart();
    (fake.meeting, fake.is_careless) = (Some(Barrier::new(2)), is_careless);
    let fake = Arc::new(fake);
    let (one, other) = (fake.controller(), fake.controller());
    let names = names();
    let (one, other) = tokio::join!(ensure_authority(&one, &names), ensure_authority(&other, &names));
    (one.unwrap(), other.unwrap())
}

#[tokio::test]
async fn two_controllers_have_one_authority() {
    let (one, other) = two_at_once(false).await;
    assert!(one == other);
    // Where nobody compares versions, each would go on with its own.
    let (one, other) = two_at_once(true).await;
    assert!(one != other);
}

#[tokio::test]
async fn it_stays_and_is_published() {
    let fake = Arc::new(Fake::with_chart());
    let client = fake.controller();
    let made = ensure_authority(&client, &names()).await.unwrap();
    publish(&client, &names(), &made.certificates).await.unwrap();
    assert_eq!(fake.get(&map())["data"]["ca.crt"], json!(made.certificates));
    let writes = fake.writes();
    assert!(ensure_authority(&client, &names()).await.unwrap() == made);
    publish(&client, &names(), &made.certificates).await.unwrap();
    assert_eq!(fake.writes(), writes, "nothing is to be changed");
    // One of the administrator's own counts as well, and what is published follows.
    let (_, given) = Signer::generate().unwrap();
    fake.put(&secret(), object(&data(&given)));
    assert!(ensure_authority(&client, &names()).await.unwrap() == given);
    publish(&client, &names(), &given.certificates).await.unwrap();
    assert_eq!(fake.get(&map())["data"]["ca.crt"], json!(given.certificates));
}

#[tokio::test]
async fn a_damaged_secret_is_told_and_left_alone() {
    let (_, pem) = Signer::generate().unwrap();
    let (_, other) = Signer::generate().unwrap();
    let whole = data(&pem);
    let cases = [
        (json!({"ca.crt": whole["ca.crt"]}), "ca.crt is there and ca.key is not"),
        (json!({"ca.key": whole["ca.key"]}), "ca.key is there and ca.crt is not"),
        (json!({"ca.crt": data(&other)["ca.crt"], "ca.key": whole["ca.key"]}), "none of the certificates"),
        (json!({"ca.crt": whole["ca.crt"], "ca.key": whole["ca.crt"]}), "the key is none in PEM"),
        (json!({"ca.crt": "//8=", "ca.key": whole["ca.key"]}), "ca.crt is no text"),
    ];
    for (data, why) in cases {
        let fake = Arc::new(Fake::with_chart());
        fake.put(&secret(), object(&data));
        let error = ensure_authority(&fake.controller(), &names()).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let text = error.to_string();
        assert!(text.contains(why) && text.contains("Secret ns/hawser-ca") && text.contains("take both out"), "{text}");
        assert_eq!((fake.get(&secret()), fake.writes()), (object(&data), 0));
    }
}

#[tokio::test]
async fn a_missing_secret_is_the_charts_to_make() {
    let error = ensure_authority(&Arc::new(Fake::default()).controller(), &names()).await.err().unwrap();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("the chart makes it"), "{error}");
}
