//! The cluster as its administrator sees it: objects as JSON, kubectl for the rest.

use super::Tools;
use super::http::{self, Answer};
use super::process::{Daemon, Seen, wait_until};
use crate::failure::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

pub(super) struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    socket: PathBuf,
    _proxy: Daemon,
}

const START_LIMIT: Duration = Duration::from_secs(60);
/// Of one kubectl.
const COMMAND_LIMIT: &str = "--request-timeout=60s";

impl Cluster {
    /// With a socket in `directory`.
    pub(super) fn connect(directory: &Path, logs: &Path, tools: &Tools, kubeconfig: &Path) -> Result<Self> {
        let socket = directory.join("api.sock");
        // Of a run that was killed.
        let _ = std::fs::remove_file(&socket);
        let kubectl = tools.find("kubectl")?;
        let mut proxy = Command::new(&kubectl);
        proxy.arg("--kubeconfig").arg(kubeconfig).arg("proxy").arg(format!("--unix-socket={}", socket.display()));
        let mut proxy = Daemon::start("kubectl-proxy", proxy, logs)?;
        wait_until("kubectl proxy", START_LIMIT, || {
            proxy.ensure_running()?;
            let answer = http::request(&socket, "GET", "/readyz", None);
            Ok(answer.map(drop).map_err(|failure| failure.to_string()))
        })?;
        Ok(Self { kubectl, kubeconfig: kubeconfig.to_owned(), socket, _proxy: proxy })
    }

    /// `None`: there is no such object.
    pub(super) fn find(&self, path: &str) -> Result<Option<Value>> {
        let answer = http::request(&self.socket, "GET", path, None)?;
        match answer.status {
            404 => Ok(None),
            _ => done("GET", path, answer).map(Some),
        }
    }

    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.find(path)?.ok_or_else(|| format!("there is no {path}").into())
    }

    /// The items of a list.
    pub(super) fn list(&self, path: &str) -> Result<Vec<Value>> {
        Ok(self.get(path)?["items"].as_array().cloned().unwrap_or_default())
    }

    pub(super) fn create(&self, collection: &str, object: &Value) -> Result<Value> {
        let answer = http::request(&self.socket, "POST", collection, Some(("application/json", object)))?;
        done("POST", collection, answer)
    }

    /// A JSON merge patch (RFC 7386).
    pub(super) fn patch(&self, path: &str, change: &Value) -> Result<Value> {
        let answer = http::request(&self.socket, "PATCH", path, Some(("application/merge-patch+json", change)))?;
        done("PATCH", path, answer)
    }

    /// Fine when it is gone.
    pub(super) fn delete(&self, path: &str) -> Result<()> {
        self.delete_with(path, json!({"propagationPolicy": "Background"}))
    }

    /// A pod without waiting for its node, and not another one of its name.
    pub(super) fn delete_this_at_once(&self, path: &str, uid: &str) -> Result<()> {
        let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
        let answer = http::request(&self.socket, "DELETE", path, Some(("application/json", &options)))?;
        // A conflict: the other one is there already.
        if [404, 409].contains(&answer.status) { Ok(()) } else { done("DELETE", path, answer).map(drop) }
    }

    fn delete_with(&self, path: &str, options: Value) -> Result<()> {
        let answer = http::request(&self.socket, "DELETE", path, Some(("application/json", &options)))?;
        if answer.status == 404 { Ok(()) } else { done("DELETE", path, answer).map(drop) }
    }

    pub(super) fn wait<T>(&self, what: &str, limit: Duration, look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
        wait_until(what, limit, look)
    }

    pub(super) fn wait_gone(&self, path: &str, limit: Duration) -> Result<()> {
        self.wait(&format!("{path} gone"), limit, || {
            Ok(match self.find(path)? {
                None => Ok(()),
                Some(object) => Err(format!("{} {}", object["metadata"]["finalizers"], object["status"])),
            })
        })
    }

    /// Runs a command in a pod; what it printed.
    pub(super) fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        self.kubectl(&[&["--namespace", namespace, "exec", pod, "--"], command].concat(), None)
    }

    pub(super) fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl(&["apply", "--server-side", "--filename", "-"], Some(manifests)).map(drop)
    }

    pub(super) fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let (is_done, said, complaint) = self.kubectl_said(arguments, input)?;
        ensure(is_done, || format!("kubectl {}: {}", arguments.join(" "), complaint.trim()))?;
        Ok(said)
    }

    /// Whether it succeeded, and what it wrote to standard output and standard error.
    pub(super) fn kubectl_said(&self, arguments: &[&str], input: Option<&str>) -> Result<(bool, String, String)> {
        let mut kubectl = Command::new(&self.kubectl);
        kubectl.arg("--kubeconfig").arg(&self.kubeconfig).arg(COMMAND_LIMIT).args(arguments);
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child = kubectl.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub(super) fn kubectl_line(&self) -> String {
        format!("{} --kubeconfig {}", self.kubectl.display(), self.kubeconfig.display())
    }

    /// What the cluster says of the objects in a namespace, for the report of a failure: the warnings.
    pub(super) fn warnings(&self, namespace: &str) -> String {
        let events = self.list(&format!("/api/v1/namespaces/{namespace}/events")).unwrap_or_default();
        let warnings = events.iter().filter(|event| event["type"] == "Warning").map(|event| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let object = &event["involvedObject"];
            format!("{} {}: {}", text(&object["kind"]), text(&object["name"]), text(&event["message"]))
        });
        warnings.collect::<Vec<_>>().join("; ")
    }
}

fn done(method: &str, path: &str, answer: Answer) -> Result<Value> {
    ensure((200..300).contains(&answer.status), || answer.message()).context(|| format!("{method} {path}"))?;
    Ok(answer.body)
}

/// Whether a condition of this type is true.
pub(super) fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == kind && one["status"] == "True"))
}
