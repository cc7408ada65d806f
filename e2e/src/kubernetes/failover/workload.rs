//! What writes in the cluster, and who keeps its ledger outside of it: a StatefulSet or a Deployment of one pod.

use super::clock::now_ns;
use super::room::Room;
use crate::failure::{Context, Result, ensure};
use crate::kubernetes::process::{Daemon, wait_until};
use crate::kubernetes::space::claim;
use crate::kubernetes::{Lab, network};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    StatefulSet,
    Deployment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Ext4,
    Block,
}

/// One that runs, with its recorder.
pub(super) struct Workload {
    pub(super) kind: Kind,
    pub(super) access: Access,
    pub(super) writers: u32,
    pub(super) nonce: Uuid,
    ledger: PathBuf,
    _recorder: Daemon,
}

/// One start of the writer: which pod it was, and which epoch its acks carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) epoch: u64,
    pub(super) pod: String,
    pub(super) uid: String,
    pub(super) node: String,
    pub(super) at_ns: u64,
}

/// What of an ack the measures look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) epoch: u64,
    pub(super) begin_ns: u64,
    pub(super) end_ns: u64,
}

/// The pool's volumes have eight regions of these, 4 KiB each, where they are raw.
const SLOTS: &str = "1024";
const SIZE: &str = "128Mi";
const CLAIM: &str = "data";
/// The StorageClass whose volumes fail over.
pub(super) const CLASS: &str = "hawser";
const START_LIMIT: Duration = Duration::from_secs(20);
/// Each recorder has a port of its own, so that none hears of another run.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::StatefulSet, Self::Deployment];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::StatefulSet => "stateful-set",
            Self::Deployment => "deployment",
        }
    }
}

impl Access {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Block => "block",
        }
    }

    /// Where the volume is in the pod.
    pub(super) fn target(self) -> &'static str {
        match self {
            Self::Ext4 => "/data",
            Self::Block => "/dev/data",
        }
    }
}

impl Workload {
    /// Starts the recorder, the claim and the pod, which is to run on `node` first; afterwards wherever it may.
    pub(super) fn start(
        space: &Room,
        class: &str,
        kind: Kind,
        access: Access,
        writers: u32,
        pause_ms: u64,
        node: &str,
    ) -> Result<Self> {
        let nonce = Uuid::new_v4();
        let (ledger, address, recorder) = record(space.lab, nonce, &format!("{}-{}", space.name, kind.name()))?;
        let arguments = [
            "workload",
            "write",
            "--target",
            access.target(),
            "--recorder",
            &address,
            "--nonce",
            &nonce.to_string(),
            "--name",
            "$(POD)/$(UID)/$(NODE)",
            "--writers",
            &writers.to_string(),
            "--pause-ms",
            &pause_ms.to_string(),
            "--slots",
            SLOTS,
        ];
        let mut claim = claim(CLAIM, class, "ReadWriteOnce", SIZE);
        if access == Access::Block {
            claim["spec"]["volumeMode"] = json!("Block");
        }
        let workload = Self { kind, access, writers, nonce, ledger, _recorder: recorder };
        let name = kind.name();
        let mut spec = pod_spec(access, &arguments, node);
        let labels = json!({"workload": name});
        match kind {
            Kind::StatefulSet => {
                let set = json!({
                    "apiVersion": "apps/v1",
                    "kind": "StatefulSet",
                    "metadata": {"name": name},
                    "spec": {
                        "replicas": 1,
                        "serviceName": name,
                        "selector": {"matchLabels": labels},
                        "template": {"metadata": {"labels": labels}, "spec": spec},
                        "volumeClaimTemplates": [claim],
                    },
                });
                space.lab.cluster.create(&format!("/apis/apps/v1/namespaces/{}/statefulsets", space.name), &set)?;
            }
            Kind::Deployment => {
                space.create_claim(&claim)?;
                spec["volumes"] = json!([{"name": CLAIM, "persistentVolumeClaim": {"claimName": CLAIM}}]);
                let deployment = json!({
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "metadata": {"name": name},
                    "spec": {
                        "replicas": 1,
                        "strategy": {"type": "Recreate"},
                        "selector": {"matchLabels": labels},
                        "template": {"metadata": {"labels": labels}, "spec": spec},
                    },
                });
                space
                    .lab
                    .cluster
                    .create(&format!("/apis/apps/v1/namespaces/{}/deployments", space.name), &deployment)?;
            }
        }
        Ok(workload)
    }

    /// Waits until the writer has written a while; its start.
    pub(super) fn wait_writing(&self, space: &Room) -> Result<Start> {
        let least = 4 * self.writers as usize;
        space.look(&format!("acks of the {}", self.kind.name()), || {
            let starts = self.starts()?;
            let Some(last) = starts.last() else { return Ok(Err("its writer has not started".to_owned())) };
            let acks = self.acks()?.iter().filter(|ack| ack.epoch == last.epoch).count();
            Ok(if acks >= least { Ok(last.clone()) } else { Err(format!("{acks} acks")) })
        })
    }

    pub(super) fn claim_name(&self) -> String {
        match self.kind {
            Kind::StatefulSet => format!("{CLAIM}-{}-0", self.kind.name()),
            Kind::Deployment => CLAIM.to_owned(),
        }
    }

    /// All starts so far.
    pub(super) fn starts(&self) -> Result<Vec<Start>> {
        let text = std::fs::read_to_string(format!("{}.starts", self.ledger.display())).unwrap_or_default();
        complete_lines(&text).map(start).collect()
    }

    pub(super) fn acks(&self) -> Result<Vec<Ack>> {
        complete_lines(&self.ledger_text()?).map(|line| ack(line).map(|(ack, _)| ack)).collect()
    }

    pub(super) fn ledger_text(&self) -> Result<String> {
        std::fs::read_to_string(&self.ledger).context(|| self.ledger.display().to_string())
    }

    /// Acks so far, cheaply.
    pub(super) fn count(&self) -> usize {
        std::fs::read(&self.ledger).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
    }

    /// The first ack of a pod that is not `uid`, and that pod's start. Cheap while there is none.
    pub(super) fn first_ack_elsewhere(&self, uid: &str) -> Result<Option<(Start, Ack)>> {
        let starts = self.starts()?;
        let new: BTreeMap<u64, &Start> =
            starts.iter().filter(|start| start.uid != uid).map(|start| (start.epoch, start)).collect();
        if new.is_empty() {
            return Ok(None);
        }
        let acks = self.acks()?;
        let first = acks.into_iter().filter(|ack| new.contains_key(&ack.epoch)).min_by_key(|ack| ack.end_ns);
        Ok(first.and_then(|ack| new.get(&ack.epoch).map(|start| ((*start).clone(), ack))))
    }

    /// Lines of the ledger of these acks.
    pub(super) fn ledger_of(&self, is_wanted: impl Fn(&Ack) -> bool) -> Result<String> {
        let text = self.ledger_text()?;
        let mut wanted = String::new();
        for line in complete_lines(&text) {
            if is_wanted(&ack(line)?.0) {
                wanted.push_str(line);
                wanted.push('\n');
            }
        }
        Ok(wanted)
    }
}

fn pod_spec(access: Access, arguments: &[&str], node: &str) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let (mounts, devices) = match access {
        Access::Ext4 => (json!([{"name": CLAIM, "mountPath": access.target()}]), json!([])),
        Access::Block => (json!([]), json!([{"name": CLAIM, "devicePath": access.target()}])),
    };
    let wish = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
    json!({
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 1,
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "preference": {"matchExpressions": [wish]}},
        ]}},
        "containers": [{
            "name": "main",
            "image": "hawser.test/hawser:lab",
            "imagePullPolicy": "Never",
            "args": arguments,
            "env": [field("POD", "metadata.name"), field("UID", "metadata.uid"), field("NODE", "spec.nodeName")],
            "volumeMounts": mounts,
            "volumeDevices": devices,
        }],
    })
}

/// A recorder on the clients' network: its ledger, its address and its process.
fn record(lab: &Lab, nonce: Uuid, name: &str) -> Result<(PathBuf, String, Daemon)> {
    let ledger = lab.place.directory("ledgers")?.join(format!("{name}-{nonce}"));
    let address = format!("{}:{}", network::CLIENTS, NEXT_PORT.fetch_add(1, Ordering::Relaxed));
    let mut recorder = Command::new(&lab.hawser);
    recorder.args(["workload", "record", "--socket", &format!("tcp:{address}"), "--nonce", &nonce.to_string()]);
    recorder.arg("--ledger").arg(&ledger);
    let mut recorder = Daemon::start("recorder", recorder, lab.place.logs())?;
    wait_until("the recorder", START_LIMIT, || {
        recorder.ensure_running()?;
        Ok(TcpStream::connect(&address).map(drop).map_err(|error| error.to_string()))
    })?;
    Ok((ledger, format!("tcp:{address}"), recorder))
}

/// Without a last one that is being written.
fn complete_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

fn start(line: &str) -> Result<Start> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("{line:?}: {error}"))?;
    let mut name = value["name"].as_str().unwrap_or_default().split('/').map(str::to_owned);
    let (pod, uid, node) = (name.next(), name.next(), name.next());
    match (value["epoch"].as_u64(), pod, uid, node, value["at_ns"].as_u64()) {
        (Some(epoch), Some(pod), Some(uid), Some(node), Some(at_ns)) => Ok(Start { epoch, pod, uid, node, at_ns }),
        _ => Err(format!("the recorder says {line:?}").into()),
    }
}

/// An ack, and its writer.
pub(super) fn ack(line: &str) -> Result<(Ack, u64)> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("{line:?}: {error}"))?;
    let number = |key: &str| value[key].as_u64().ok_or_else(|| format!("an ack without {key}: {line:?}"));
    let ack = Ack { epoch: number("epoch")?, begin_ns: number("begin_ns")?, end_ns: number("end_ns")? };
    ensure(ack.begin_ns <= ack.end_ns && ack.end_ns <= now_ns()?, || format!("an ack of another time: {line:?}"))?;
    Ok((ack, number("writer")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_recorder() {
        let line = r#"{"epoch":2,"name":"db-0/1-2/node-3","at_ns":5}"#;
        let wanted = Start { epoch: 2, pod: "db-0".into(), uid: "1-2".into(), node: "node-3".into(), at_ns: 5 };
        assert_eq!(start(line).unwrap(), wanted);
        assert!(start(r#"{"epoch":2,"name":"db-0","at_ns":5}"#).is_err());
        let line = r#"{"nonce":"x","epoch":1,"writer":7,"seq":1,"slot":1,"checksum":"","begin_ns":3,"end_ns":4}"#;
        assert_eq!(ack(line).unwrap(), (Ack { epoch: 1, begin_ns: 3, end_ns: 4 }, 7));
        assert!(ack(&line.replace(":4}", ":1}")).is_err());
        assert_eq!(complete_lines("a\nb\nc").collect::<Vec<_>>(), ["a", "b"]);
    }
}
