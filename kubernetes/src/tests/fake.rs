//! An API server: objects by path, versions that are compared, and who asks.

use crate::Names;
use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::sync::Barrier;
use tower::service_fn;

pub(super) const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

#[derive(Default)]
pub(super) struct Fake {
    objects: Mutex<BTreeMap<String, Value>>,
    /// How many writes there have been; also the next version.
    writes: Mutex<u64>,
    /// Readers of what was never written meet here.
    pub(super) meeting: Option<Barrier>,
    /// As the real one must never be.
    pub(super) is_careless: bool,
}

pub(crate) fn names() -> Names {
    Names { namespace: "ns".to_owned(), name: "hawser".to_owned() }
}

impl Fake {
    /// With the objects that the chart makes.
    pub(super) fn with_chart() -> Self {
        let fake = Self::default();
        fake.put(&secret(), json!({"metadata": {"name": "hawser-ca", "resourceVersion": "0"}}));
        fake.put(&map(), json!({"metadata": {"name": "hawser-ca", "resourceVersion": "0"}}));
        fake
    }

    pub(super) fn put(&self, path: &str, object: Value) {
        self.objects.lock().unwrap().insert(path.to_owned(), object);
    }

    pub(super) fn get(&self, path: &str) -> Value {
        self.objects.lock().unwrap().get(path).cloned().unwrap_or(Value::Null)
    }

    pub(super) fn writes(&self) -> u64 {
        *self.writes.lock().unwrap()
    }

    pub(super) fn requests(&self) -> Vec<Value> {
        let objects = self.objects.lock().unwrap();
        objects.iter().filter(|(path, _)| path.starts_with(REQUESTS)).map(|(_, object)| object.clone()).collect()
    }

    /// Somebody whose token the server has verified.
    pub(super) fn client(self: &Arc<Self>, user: &str, node: Option<&str>) -> Client {
        let (fake, user, node) = (Arc::clone(self), user.to_owned(), node.map(str::to_owned));
        let service = service_fn(move |request: Request<Body>| {
            let (fake, user, node) = (Arc::clone(&fake), user.clone(), node.clone());
            async move { Ok::<_, Infallible>(fake.serve(request, &user, node.as_deref()).await) }
        });
        Client::new(service, "ns")
    }

    pub(super) fn node(self: &Arc<Self>, node: &str) -> Client {
        self.client(&names().node_user(), Some(node))
    }

    pub(super) fn controller(self: &Arc<Self>) -> Client {
        self.client("system:serviceaccount:ns:hawser-controller", None)
    }

    async fn serve(&self, request: Request<Body>, user: &str, node: Option<&str>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let body: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or(Value::Null);
        match parts.method {
            Method::GET => {
                let object = self.get(&path);
                if let (Some(meeting), "0") = (&self.meeting, version(&object)) {
                    meeting.wait().await;
                }
                if object.is_null() { refusal(StatusCode::NOT_FOUND, "not found") } else { reply(&object) }
            }
            Method::POST => self.create(&path, body, user, node),
            Method::PUT => self.replace(&path, &body),
            other => refusal(StatusCode::METHOD_NOT_ALLOWED, other.as_str()),
        }
    }

    fn create(&self, path: &str, mut object: Value, user: &str, node: Option<&str>) -> Response<Body> {
        let number = self.next();
        let name = format!("{}{number}", object["metadata"]["generateName"].as_str().unwrap());
        object["metadata"]["name"] = json!(name);
        object["metadata"]["resourceVersion"] = json!(number.to_string());
        // Whatever the sender says of itself.
        object["spec"]["username"] = json!(user);
        object["spec"]["extra"] = match node {
            Some(node) => json!({"authentication.kubernetes.io/node-name": [node]}),
            None => json!({}),
        };
        self.put(&format!("{path}/{name}"), object.clone());
        reply(&object)
    }

    fn replace(&self, path: &str, object: &Value) -> Response<Body> {
        let (path, part) = match path.rsplit_once('/') {
            Some((path, part @ ("approval" | "status"))) => (path, Some(part)),
            _ => (path, None),
        };
        let mut present = self.get(path);
        if present.is_null() {
            return refusal(StatusCode::NOT_FOUND, "not found");
        }
        if !self.is_careless && version(&present) != version(object) {
            return refusal(StatusCode::CONFLICT, "the object has been modified");
        }
        match part {
            None => present = object.clone(),
            Some("approval") => present["status"]["conditions"] = object["status"]["conditions"].clone(),
            Some(_) => present["status"]["certificate"] = object["status"]["certificate"].clone(),
        }
        present["metadata"]["resourceVersion"] = json!(self.next().to_string());
        self.put(path, present.clone());
        reply(&present)
    }

    fn next(&self) -> u64 {
        let mut writes = self.writes.lock().unwrap();
        *writes += 1;
        *writes
    }
}

pub(super) fn secret() -> String {
    "/api/v1/namespaces/ns/secrets/hawser-ca".to_owned()
}

pub(super) fn map() -> String {
    "/api/v1/namespaces/ns/configmaps/hawser-ca".to_owned()
}

fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
}

fn reply(object: &Value) -> Response<Body> {
    Response::new(Body::from(serde_json::to_vec(object).unwrap()))
}

fn refusal(code: StatusCode, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "reason": code.canonical_reason(), "message": message, "metadata": {}});
    let mut response = reply(&status);
    *response.status_mut() = code;
    response
}
