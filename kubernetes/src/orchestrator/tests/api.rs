//! An API server: objects by path with versions that are compared, lists, merge patches, and deletions with preconditions.

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tower::service_fn;

#[derive(Default)]
pub(super) struct Api {
    objects: Mutex<BTreeMap<String, Value>>,
    version: Mutex<u64>,
    /// `DELETE /path` and so on, without reads.
    pub(super) writes: Mutex<Vec<String>>,
    /// Changes this object right before the next write to it, once.
    pub(super) interferes: Mutex<Option<String>>,
}

impl Api {
    pub(super) fn put(&self, path: &str, mut object: Value) {
        object["metadata"]["resourceVersion"] = json!(self.next());
        self.objects.lock().unwrap().insert(path.to_owned(), object);
    }

    pub(super) fn get(&self, path: &str) -> Value {
        self.objects.lock().unwrap().get(path).cloned().unwrap_or(Value::Null)
    }

    pub(super) fn remove(&self, path: &str) {
        self.objects.lock().unwrap().remove(path);
    }

    /// All below.
    pub(super) fn below(&self, path: &str) -> Vec<Value> {
        let objects = self.objects.lock().unwrap();
        objects.iter().filter(|(at, _)| at.starts_with(path)).map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn writes_of(&self, method: &str) -> Vec<String> {
        self.writes.lock().unwrap().iter().filter(|write| write.starts_with(method)).cloned().collect()
    }

    pub(super) fn client(self: &Arc<Self>) -> Client {
        let api = Arc::clone(self);
        let service = service_fn(move |request: Request<Body>| {
            let api = Arc::clone(&api);
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        Client::new(service, "ns")
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        if parts.uri.query().is_some_and(|query| query.contains("watch=true")) {
            return std::future::pending().await;
        }
        let body: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or(Value::Null);
        if parts.method != Method::GET {
            self.writes.lock().unwrap().push(format!("{} {path}", parts.method));
            if self.interferes.lock().unwrap().take_if(|at| *at == path).is_some() {
                let present = self.get(&path);
                self.put(&path, present);
            }
        }
        let present = self.get(&path);
        let is_current = |wanted: &Value| wanted.is_null() || *wanted == present["metadata"]["resourceVersion"];
        let conflict = || refusal(StatusCode::CONFLICT, "the object has been modified");
        match parts.method {
            Method::GET
                if ["nodes", "pods", "persistentvolumes", "volumeattachments"]
                    .iter()
                    .any(|kind| path.ends_with(&format!("/{kind}"))) =>
            {
                self.list(path.rsplit_once('/').unwrap().1)
            }
            Method::POST => {
                let at = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                self.put(&at, body);
                reply(&self.get(&at))
            }
            _ if present.is_null() => refusal(StatusCode::NOT_FOUND, "not found"),
            Method::GET => reply(&present),
            Method::PUT | Method::PATCH if !is_current(&body["metadata"]["resourceVersion"]) => conflict(),
            Method::PUT => {
                self.put(&path, body);
                reply(&self.get(&path))
            }
            Method::PATCH => {
                let mut merged = present;
                merge(&mut merged, body);
                self.put(&path, merged);
                reply(&self.get(&path))
            }
            Method::DELETE => {
                assert_eq!(body["gracePeriodSeconds"], json!(0));
                if body["preconditions"]["uid"] != present["metadata"]["uid"] {
                    return conflict();
                }
                self.objects.lock().unwrap().remove(&path);
                reply(&present)
            }
            other => refusal(StatusCode::METHOD_NOT_ALLOWED, other.as_str()),
        }
    }

    fn list(&self, kind: &str) -> Response<Body> {
        let objects = self.objects.lock().unwrap();
        let items: Vec<&Value> =
            objects.iter().filter(|(path, _)| path.contains(&format!("/{kind}/"))).map(|(_, object)| object).collect();
        reply(&json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
    }

    fn next(&self) -> String {
        let mut version = self.version.lock().unwrap();
        *version += 1;
        version.to_string()
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(fields) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        match value {
            Value::Null => drop(target.as_object_mut().unwrap().remove(&key)),
            value => merge(&mut target[key], value),
        }
    }
}

fn reply(object: &Value) -> Response<Body> {
    Response::new(Body::from(serde_json::to_vec(object).unwrap()))
}

fn refusal(code: StatusCode, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "reason": code.canonical_reason().unwrap_or_default().replace(' ', ""), "message": message, "metadata": {}});
    let mut response = reply(&status);
    *response.status_mut() = code;
    response
}
