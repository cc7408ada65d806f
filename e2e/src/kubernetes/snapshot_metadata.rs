//! Changed blocks as a backup program gets them: by Kubernetes' service, over TLS, with a token of its own.

use super::Lab;
use super::cluster::Cluster;
use super::ground::DRIVER;
use super::place::Place;
use super::process::{Daemon, wait_until};
use crate::failure::{Context, Result, ensure};
use crate::lab::kernel::program;
use serde_json::{Value, json};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

const SERVICES: &str = "/apis/cbt.storage.k8s.io/v1beta1/snapshotmetadataservices";
/// What the certificate is for. Nobody resolves it in the lab, where [`Way`] stands in for DNS and services.
const HOST: &str = "hawser-snapshot-metadata.hawser.svc";
/// Where the sidecar listens in its pod.
const POD_PORT: u16 = 50051;
/// Where the lab forwards to it.
const LAB_PORT: u16 = 15443;
const HOSTS: &str = "/etc/hosts";
const START_LIMIT: Duration = Duration::from_secs(30);

/// A certificate for the sidecar; in base64, whoever signed it.
pub(super) fn make_certificate(cluster: &Cluster, place: &Place) -> Result<String> {
    let directory = place.directory("snapshot-metadata")?;
    let (key, certificate) = (directory.join("tls.key"), directory.join("tls.crt"));
    let (key_name, certificate_name) = (key.to_string_lossy(), certificate.to_string_lossy());
    let make = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=snapshot-metadata"];
    let names = format!("subjectAltName=DNS:{HOST}");
    program("openssl", &[&make[..], &["-addext", &names, "-keyout", &key_name, "-out", &certificate_name]].concat())
        .context(|| "making a certificate".to_owned())?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hawser-snapshot-metadata-tls"},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.key": std::fs::read_to_string(&key)?, "tls.crt": std::fs::read_to_string(&certificate)?},
    });
    cluster.create("/api/v1/namespaces/hawser/secrets", &secret)?;
    let authority = program("base64", &["--wrap=0", &certificate_name])?;
    Ok(authority.trim().to_owned())
}

/// To the service, as long as this lives: the name of its host in /etc/hosts, which the lab has for itself, and a port that
/// is forwarded to the sidecar's pod.
pub(super) struct Way<'a> {
    lab: &'a Lab,
    address: String,
    _forward: Daemon,
}

impl<'a> Way<'a> {
    pub(super) fn open(lab: &'a Lab) -> Result<Self> {
        let path = format!("{SERVICES}/{DRIVER}");
        let address = lab.cluster.get(&path)?["spec"]["address"].as_str().unwrap_or_default().to_owned();
        let (host, _) = address.rsplit_once(':').ok_or_else(|| format!("the service's address is {address:?}"))?;
        let mut forward = lab.tools.command("kubectl")?;
        forward.arg("--kubeconfig").arg(lab.cluster.kubeconfig());
        forward.args(["--namespace", "hawser", "port-forward", "deploy/hawser-controller"]);
        forward.arg(format!("{LAB_PORT}:{POD_PORT}"));
        let mut forward = Daemon::start("kubectl-port-forward", forward, lab.place.logs())?;
        wait_until("the forwarded port", START_LIMIT, || {
            forward.ensure_running()?;
            let connected = TcpStream::connect(("127.0.0.1", LAB_PORT));
            Ok(connected.map(drop).map_err(|failure| failure.to_string()))
        })?;
        let hosts = lab.place.directory("snapshot-metadata")?.join("hosts");
        std::fs::write(&hosts, format!("127.0.0.1 localhost {host}\n"))?;
        program("mount", &["--bind", &hosts.to_string_lossy(), HOSTS])?;
        lab.cluster.patch(&path, &json!({"spec": {"address": format!("{host}:{LAB_PORT}")}}))?;
        Ok(Self { lab, address, _forward: forward })
    }

    /// Where blocks of the snapshot are, or those that differ from `base`: offsets and sizes in bytes.
    pub(super) fn blocks(&self, namespace: &str, snapshot: &str, base: Option<&str>) -> Result<Vec<(u64, u64)>> {
        let mut ask = Command::new(self.lab.tools.find("changed-blocks")?);
        ask.arg("-kubeconfig").arg(self.lab.cluster.kubeconfig()).args([
            "-namespace",
            namespace,
            "-snapshot",
            snapshot,
        ]);
        ask.args(["-account-namespace", namespace]).args(base.map(|base| format!("-base={base}")));
        // The service is reached directly, whatever the machine's way into the world is.
        ask.env("NO_PROXY", "*");
        let output = ask.output()?;
        ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).trim().to_owned())?;
        parse(&String::from_utf8_lossy(&output.stdout))
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        let _ = program("umount", &[HOSTS]);
        let _ = self.lab.cluster.patch(&format!("{SERVICES}/{DRIVER}"), &json!({"spec": {"address": self.address}}));
    }
}

/// A list of answers, each with a list of blocks; zeroes are left out.
fn parse(text: &str) -> Result<Vec<(u64, u64)>> {
    let answers: Value = serde_json::from_str(text.trim()).map_err(|error| format!("{error}: {text:?}"))?;
    let answers = answers.as_array().ok_or_else(|| format!("no list: {text:?}"))?;
    let blocks = answers.iter().filter_map(|answer| answer["block_metadata"].as_array()).flatten();
    Ok(blocks
        .map(|block| {
            (block["byte_offset"].as_u64().unwrap_or_default(), block["size_bytes"].as_u64().unwrap_or_default())
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_service() {
        let text = r#"[{"volume_capacity_bytes":4096,"block_metadata":[{"size_bytes":4096}]},{"block_metadata":[{"byte_offset":8192,"size_bytes":4096}]}]"#;
        assert_eq!(parse(text).unwrap(), [(0, 4096), (8192, 4096)]);
        assert_eq!(parse("[]").unwrap(), []);
        assert!(parse("{}").is_err());
        assert!(parse("").is_err());
    }
}
