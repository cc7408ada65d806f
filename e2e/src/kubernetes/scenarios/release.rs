//! helm upgrade, uninstall and install again, while a pod writes.

use super::writer::Writer;
use crate::failure::{Result, ensure};
use crate::kubernetes::Lab;
use crate::kubernetes::failover::installed;
use crate::kubernetes::node::Node;
use crate::kubernetes::space::Space;
use std::time::Instant;

const AUTHORITY: &str = "/api/v1/namespaces/hawser/configmaps/hawser-ca";
const STATE: &str = "/var/lib/hawser/node";
const MOUNTS: &str = "kubernetes.io~csi";

pub(super) fn upgraded_and_removed(space: &Space) -> Result<()> {
    let (lab, name) = (space.lab()?, space.node(2));
    let node = lab.node(name)?;
    let writer = Writer::start(space, name)?;
    let mounts = node.mounts(MOUNTS)?;
    ensure(!mounts.is_empty(), || format!("{name} has no volume mounted"))?;
    let ensure_untouched = |when: &str| {
        let now = node.mounts(MOUNTS)?;
        ensure(now == mounts, || format!("{when} the mounts are {now:?}, and were {mounts:?}"))?;
        writer.ensure_goes_on()
    };

    let history = installed::history(lab)?["history"].clone();
    let began = Instant::now();
    lab.release.upgrade(space.cluster, &["log.level=debug".to_owned()])?;
    space.time("upgraded, all pods replaced", began.elapsed());
    ensure_untouched("after the upgrade")?;
    let now = installed::history(lab)?["history"].clone();
    ensure(now == history, || format!("a failover began by the upgrade: {now}, before {history}"))?;

    let certificates = certificates(lab)?;
    let began = Instant::now();
    lab.release.uninstall(space.cluster)?;
    space.time("uninstalled", began.elapsed());
    ensure_untouched("after hawser was removed")?;
    let volumes = space.volumes()?;
    let handle = volumes[0]["spec"]["csi"]["volumeHandle"].as_str().unwrap_or_default();
    let kept = lab.place.pool_of(name).join("volumes").join(handle);
    ensure(kept.is_dir(), || format!("{} is gone with hawser", kept.display()))?;

    let began = Instant::now();
    lab.release.install(space.cluster)?;
    space.time("installed again", began.elapsed());
    wait_believed(space, lab, &certificates)?;
    space.time("from helm install to certificates of the new authority on all nodes", began.elapsed());
    ensure_untouched("after hawser was installed again")?;
    // Detached and attached by the new installation; and when the scenario ends, deleted by it.
    writer.verify(space.node(0))
}

/// The agents' own, by node.
fn certificates(lab: &Lab) -> Result<Vec<String>> {
    running(lab).map(|node| node.run(&["cat", &format!("{STATE}/agent.pem")])).collect()
}

/// The authority went with the installation, and a new one was made: each node believes it, and has another certificate.
fn wait_believed(space: &Space, lab: &Lab, before: &[String]) -> Result<()> {
    space.look("certificates of the new authority", || {
        let authority = space.cluster.get(AUTHORITY)?["data"]["ca.crt"].as_str().unwrap_or_default().to_owned();
        if authority.is_empty() {
            return Ok(Err("there is no authority yet".to_owned()));
        }
        for node in running(lab) {
            let believed = node.run(&["cat", &format!("{STATE}/agent-ca.pem")])?;
            if believed.trim() != authority.trim() {
                return Ok(Err(format!("{} believes another authority", node.name)));
            }
        }
        let old = certificates(lab)?.into_iter().filter(|now| before.contains(now)).count();
        Ok(if old == 0 { Ok(()) } else { Err(format!("{old} nodes have their old certificate")) })
    })
}

fn running(lab: &Lab) -> impl Iterator<Item = &Node> {
    lab.nodes.iter().filter(|node| node.is_running())
}
