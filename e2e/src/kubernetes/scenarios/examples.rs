//! The examples for Kubernetes are what the API server takes. Their images are not here, so nothing of them runs.

use crate::failure::{Context, Result};
use crate::kubernetes::space::Space;

const EXAMPLES: [(&str, &str); 2] = [
    ("database.yaml", include_str!("../../../../examples/kubernetes/database.yaml")),
    ("snapshot.yaml", include_str!("../../../../examples/kubernetes/snapshot.yaml")),
];

pub(super) fn are_valid(space: &Space) -> Result<()> {
    for (name, manifests) in EXAMPLES {
        let check = ["apply", "--dry-run=server", "--validate=strict", "--namespace", &space.name, "--filename", "-"];
        space.cluster.kubectl(&check, Some(manifests)).context(|| name.to_owned())?;
    }
    Ok(())
}
