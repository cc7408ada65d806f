//! Values that are wrong, and what is said of them.

use super::Helm;
use crate::process;

pub(super) struct Refusal {
    pub(super) set: &'static [&'static str],
    /// Must be in the message: the place, and what is wrong there.
    says: &'static [&'static str],
}

pub(super) const REFUSALS: [Refusal; 16] = [
    Refusal { set: &["pool.scop=shared"], says: &["/pool", "additional properties 'scop' not allowed"] },
    Refusal { set: &["pools.scope=shared"], says: &["additional properties 'pools' not allowed"] },
    Refusal { set: &["pool.scope=global"], says: &["/pool/scope", "'local', 'shared'"] },
    Refusal { set: &["pool.path=pool"], says: &["/pool/path"] },
    Refusal { set: &["pool.path=/srv/pool/"], says: &["/pool/path"] },
    Refusal { set: &["pool.scope=shared", "pool.imageSize=10GiB"], says: &["/pool/imageSize"] },
    Refusal { set: &["pool.imageSize=much"], says: &["/pool/imageSize"] },
    Refusal { set: &["pool.allowForkOnlyFence=true"], says: &["/pool/allowForkOnlyFence"] },
    Refusal { set: &["failover.settings.suspect_ms=soon"], says: &["/failover/settings/suspect_ms"] },
    Refusal { set: &["controller.replicas=0"], says: &["/controller/replicas"] },
    Refusal { set: &["storageClasses[0].name=a", "storageClasses[0].fsType=zfs"], says: &["/storageClasses/0/fsType"] },
    Refusal { set: &["storageClasses[0].fsType=xfs"], says: &["/storageClasses/0", "missing property 'name'"] },
    Refusal { set: &["metrics.port=9809"], says: &["/metrics/port"] },
    Refusal { set: &["metrics.serviceMonitor.enabled=true"], says: &["needs metrics.enabled"] },
    Refusal { set: &["certificates.given.controllerSecret=tls"], says: &["controllerSecret and nodePath go together"] },
    Refusal { set: &["snapshotMetadata.enabled=true"], says: &["snapshotMetadata.tlsSecret"] },
];

impl Refusal {
    pub(super) fn check(&self, helm: &Helm) -> Result<(), String> {
        let mut template = helm.template();
        template.args(self.set.iter().flat_map(|value| ["--set", value]));
        let Err(message) = process::output(&mut template) else { return Err("it was taken".to_owned()) };
        match self.says.iter().find(|part| !message.contains(*part)) {
            None => Ok(()),
            Some(part) => Err(format!("{part:?} is not in {message:?}")),
        }
    }
}
